"""The activation functions, and the recipe that shows what they do to a gradient."""

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
def test_it_is_the_one_that_keras_has(name: str) -> None:
    z = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    found = ACTIVATIONS[name].function(ops.convert_to_tensor(z))
    expected = keras.activations.get(name)(ops.convert_to_tensor(z))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(expected), rtol=1e-6
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_is_the_slope(name: str) -> None:
    """By finite differences in float64, of the first of six numbers by itself."""
    z = np.random.default_rng(0).normal(size=(20, 6))
    nudge = np.zeros(6)
    nudge[0] = 1e-6
    with backend.float64():
        function = ACTIVATIONS[name].function

        def at(z: np.ndarray) -> np.ndarray:
            return ops.convert_to_numpy(function(ops.convert_to_tensor(z, "float64")))

        slope = (at(z + nudge) - at(z - nudge))[:, 0] / 2e-6
        found = ACTIVATIONS[name].derivative(function(ops.convert_to_tensor(z, "float64")))
        np.testing.assert_allclose(ops.convert_to_numpy(found)[:, 0], slope, atol=1e-9)


# ------------------------------------------------------------------ the recipe


def config(folder: Path, **arguments: object) -> recipe.Config:
    small = {"layers": 4, "units": 16, "train_examples": 100}
    return recipe.Config(run_dir=folder, **{**small, **arguments})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, recipe.main(config(folder))


def test_the_run_directory_is_complete(finished: tuple[Path, dict[str, object]]) -> None:
    folder, metrics = finished
    assert sorted(os.listdir(folder)) == ["activations.png", "config.json", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_the_gradient_shrinks_on_its_way_back(finished: tuple[Path, dict[str, object]]) -> None:
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


def test_it_is_the_same_on_every_backend(tmp_path: Path) -> None:
    """Measured on the three: 1e-6 apart."""
    metrics = recipe.main(config(tmp_path / "run", layers=10, units=64, train_examples=256))
    assert metrics["first_to_last"] == pytest.approx(TEN_LAYERS, rel=1e-4, abs=0)


def test_a_finished_run_says_so_and_another_configuration_is_refused(
    finished: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = finished
    assert recipe.main(config(folder)) == metrics
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration: units was 16 and is 8"):
        recipe.main(config(folder, units=8))


def test_quick_takes_fewer_images(tmp_path: Path) -> None:
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
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        recipe.main(config(tmp_path / "run", **arguments))
