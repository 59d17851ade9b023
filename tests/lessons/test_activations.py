"""Activation functions, and the recipe that measures how they scale gradients."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from recipes import activations as recipe
from zoo.backends import backend
from zoo.lessons.activations import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_matches_keras(name: str) -> None:
    z = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    outputs = ACTIVATIONS[name].function(ops.convert_to_tensor(z))
    expected = keras.activations.get(name)(ops.convert_to_tensor(z))
    np.testing.assert_allclose(
        ops.convert_to_numpy(outputs), ops.convert_to_numpy(expected), rtol=1e-6
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_matches_finite_differences(name: str) -> None:
    """Derivative of the first of six outputs with respect to its own input, in float64."""
    z = np.random.default_rng(0).normal(size=(20, 6))
    delta = np.zeros(6)
    delta[0] = 1e-6
    with backend.float64():
        function = ACTIVATIONS[name].function

        def evaluate(z: np.ndarray) -> np.ndarray:
            return ops.convert_to_numpy(function(ops.convert_to_tensor(z, "float64")))

        expected = (evaluate(z + delta) - evaluate(z - delta))[:, 0] / 2e-6
        derivative = ACTIVATIONS[name].derivative(function(ops.convert_to_tensor(z, "float64")))
        np.testing.assert_allclose(ops.convert_to_numpy(derivative)[:, 0], expected, atol=1e-9)


# ------------------------------------------------------------------ the recipe


def config(folder: Path, **arguments: object) -> recipe.Config:
    small = {"layers": 4, "units": 16, "train_examples": 100}
    return recipe.Config(run_dir=folder, **{**small, **arguments})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, recipe.main(config(folder))


def test_main_writes_complete_run_directory(finished: tuple[Path, dict[str, object]]) -> None:
    folder, metrics = finished
    files = ["activations.png", "config.json", "manifest.json", "metrics.json"]
    assert sorted(os.listdir(folder)) == files
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_gradients_shrink_towards_first_layer(finished: tuple[Path, dict[str, object]]) -> None:
    _, metrics = finished
    ratios = metrics["first_to_last"]
    assert ratios["softmax"] < ratios["sigmoid"] < ratios["relu"] < ratios["tanh"] < 1
    for name, norms in metrics["gradient_norms"].items():
        assert len(norms) == 4
        assert ratios[name] == norms[0] / norms[-1]


TEN_LAYERS = {
    "sigmoid": 2.546649e-8,
    "relu": 6.306238e-4,
    "tanh": 6.583261e-3,
    "softmax": 7.454613e-19,
    "linear": 8.500898e-3,
}


def test_main_matches_other_backends(tmp_path: Path) -> None:
    """Measured relative differences between the three backends: 1e-6."""
    metrics = recipe.main(config(tmp_path / "run", layers=10, units=64, train_examples=256))
    assert metrics["first_to_last"] == pytest.approx(TEN_LAYERS, rel=1e-4, abs=0)


def test_main_reports_finished_run_and_rejects_other_configuration(
    finished: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = finished
    assert recipe.main(config(folder)) == metrics
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration: units was 16 and is 8"):
        recipe.main(config(folder, units=8))


def test_quick_uses_fewer_images(tmp_path: Path) -> None:
    assert recipe.Config(run_dir=tmp_path).train_examples == 4096
    assert recipe.Config(run_dir=tmp_path, quick=True).train_examples == 1024


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"layers": 0}, "`layers` must be a whole number of at least 1. Received: layers=0"),
        ({"units": 0}, "Received: units=0"),
        ({"train_examples": 0}, "Received: train_examples=0"),
        ({"train_examples": 70_000}, "Received: train_examples=70000"),
        ({"seed": -1}, "Received: seed=-1"),
    ],
)
def test_main_rejects_invalid_arguments(
    tmp_path: Path, arguments: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        recipe.main(config(tmp_path / "run", **arguments))
