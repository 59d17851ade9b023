"""The four steps by hand, and the recipe that holds them against the backend's own."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from recipes import backprop as recipe
from tests.recipe import interrupt_after
from zoo import datasets
from zoo.backends import backend
from zoo.evaluation import gradients
from zoo.lessons import backprop
from zoo.lessons.activations import ACTIVATIONS
from zoo.training import Interrupted

ROOT = Path(__file__).parents[2]
LABELS = np.array([2, 0, 1, 1, 2], np.int32)
NETWORKS = {
    "sigmoid": ((4,), "sigmoid"),
    "relu": ((4, 6), "relu"),
    "tanh": ((4, 6, 5), "tanh"),
    "mixed": ((6, 4, 5, 4), ("relu", "tanh", "sigmoid", "relu")),
    "none": ((), "relu"),
}


def network(name: str = "mixed", **arguments: object) -> keras.Model:
    hidden_units, activation = NETWORKS[name]
    return zoo.mlp((7,), 3, hidden_units, activation, **arguments)


def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


def limits(distances: dict[str, float], model: keras.Model) -> float:
    assert list(distances) == [variable.path for variable in model.trainable_variables]
    return max(distances.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_by_hand_is_the_backends_own(name: str) -> None:
    """Measured: at most 5e-7 in float32 and 6e-16 in float64."""
    model = network(name)
    assert limits(gradients.distances(model, inputs(), LABELS), model) <= 1e-5
    with backend.float64():
        model = network(name, dtype="float64")
        assert limits(gradients.distances(model, inputs(), LABELS), model) <= 1e-12


@pytest.mark.parametrize("name", ["sigmoid", "relu", "tanh"])
def test_a_wrong_derivative_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that layer and those before it, not behind it."""
    wrong = dataclasses.replace(ACTIVATIONS[name], derivative=lambda y: 1 - y)
    monkeypatch.setitem(ACTIVATIONS, name, wrong)
    model = zoo.mlp((7,), 3, (4, 6), ("relu" if name != "relu" else "tanh", name))
    distances = gradients.distances(model, inputs(), LABELS)
    for path, far in distances.items():
        assert (far > 1e-2) == (not path.startswith("output")), path


def test_the_steps_by_hand_in_numpy() -> None:
    """One hidden neuron, two classes, one example: w = 2, z = 0.5·2 + 0.1, y = tanh(z)."""
    layers = [
        backprop.Layer(*map(ops.convert_to_tensor, ([[2.0]], [0.1])), "tanh"),
        backprop.Layer(*map(ops.convert_to_tensor, ([[1.0, -1.0]], [0.0, 0.2])), None),
    ]
    labels = ops.convert_to_tensor(np.array([1], np.int32))
    outputs = backprop.forward(layers, ops.convert_to_tensor([[0.5]]))
    y = np.tanh(1.1)
    logits = np.array([y, 0.2 - y])
    np.testing.assert_allclose(ops.convert_to_numpy(outputs[2]), [logits], rtol=1e-6)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    loss = float(backprop.cross_entropy(outputs[2], labels))
    assert loss == pytest.approx(-np.log(probabilities[1]), rel=1e-6)

    gradients = backprop.backward(layers, outputs, labels)
    dz2 = probabilities - [0, 1]
    dz1 = (dz2[0] - dz2[1]) * (1 - y**2)
    expected = [([[0.5 * dz1]], [dz1]), ([y * dz2], dz2)]
    for found, wanted in zip(gradients, expected):
        for a, b in zip(found, wanted):
            np.testing.assert_allclose(ops.convert_to_numpy(a), b, rtol=1e-5)

    (w, b, activation), _ = backprop.update(layers, gradients, 0.1)
    assert float(ops.convert_to_numpy(w)[0, 0]) == pytest.approx(2 - 0.1 * 0.5 * dz1, rel=1e-6)
    assert float(ops.convert_to_numpy(b)[0]) == pytest.approx(0.1 - 0.1 * dz1, rel=1e-5)
    assert activation == "tanh"


def test_the_layers_are_a_copy() -> None:
    model = network()
    layers = backprop.layers_of(model)
    before = [np.array(ops.convert_to_numpy(layer.w)) for layer in layers]
    for variable in model.trainable_variables:
        variable.assign(0 * variable.value)
    for layer, w in zip(layers, before):
        np.testing.assert_array_equal(ops.convert_to_numpy(layer.w), w)
    assert [layer.activation for layer in layers] == ["relu", "tanh", "sigmoid", "relu", None]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"activation": "softmax"}, "the layer hidden1, Dense, activation=softmax"),
        ({"output_activation": "sigmoid"}, "the layer output, Dense, activation=sigmoid"),
        ({"dropout": 0.5}, "the layer dropout1, Dropout, activation=None"),
    ],
)
def test_what_does_not_go_by_hand(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=f"must be an MLP of dense layers.*{text}"):
        backprop.layers_of(zoo.mlp((7,), 3, (4,), **arguments))


# ------------------------------------------------------------------ the recipe


def config(folder: Path, **arguments: object) -> recipe.Config:
    small = {"hidden_units": (16, 8, 8), "epochs": 2, "train_examples": 300, "batch_size": 40}
    return recipe.Config(run_dir=folder, **{**small, **arguments})


@pytest.fixture(scope="module", autouse=True)
def few_test_images() -> Iterator[None]:
    load = datasets.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda *arguments: load(*arguments, test_examples=500))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, recipe.main(config(folder))


def test_the_gradients_agree_and_the_curves_coincide(
    finished: tuple[Path, dict[str, object]],
) -> None:
    _, metrics = finished
    assert metrics["gradients_agree"] is True
    assert metrics["gradient_distances"]["float32"] <= 1e-5
    assert metrics["gradient_distances"]["float64"] <= 1e-12
    assert metrics["loss_distance"]["largest"] < 1e-12  # measured: 4e-16 in these 16 steps
    assert metrics["test_accuracy_by_hand"] == metrics["test_accuracy"]
    assert metrics["train_examples"] == 300


def test_the_run_directory_is_complete(finished: tuple[Path, dict[str, object]]) -> None:
    folder, metrics = finished
    names = (
        "checkpoints config.json curves.png history.csv metrics.json model.json model.weights.h5"
    )
    assert sorted(os.listdir(folder)) == names.split()
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_a_finished_run_says_so_and_another_configuration_is_refused(
    finished: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = finished
    assert recipe.main(config(folder)) == metrics
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration: seed was 0 and is 1"):
        recipe.main(config(folder, seed=1))


def test_it_goes_on_after_a_stop_with_the_whole_curve(
    finished: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(5, patched)
        with pytest.raises(Interrupted, match="Stopped after step 5"):
            recipe.main(config(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    metrics = recipe.main(config(tmp_path / "run"))
    assert metrics["test_loss"] == pytest.approx(finished[1]["test_loss"], rel=1e-12)
    assert metrics["loss_distance"]["largest"] < 1e-12


def test_it_trains_in_float32_too(finished: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    metrics = recipe.main(config(tmp_path / "run", dtype_policy="float32"))
    assert metrics["loss_distance"]["largest"] < 1e-5  # measured: 0 to 2e-7
    off = abs(metrics["test_loss"] / finished[1]["test_loss"] - 1)
    assert 1e-12 < off < 1e-5  # measured: 4e-10; in float64 1e-15


def test_a_mistake_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        ACTIVATIONS, "tanh", dataclasses.replace(ACTIVATIONS["tanh"], derivative=lambda y: 1 - y)
    )
    metrics = recipe.main(config(tmp_path / "run", epochs=1, train_examples=80))
    assert metrics["gradients_agree"] is False


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1. Received: epochs=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"hidden_units": (8, 0)}, "Received: hidden_units=0"),
        ({"learning_rate": 0.0}, "Received: learning_rate=0"),
        ({"train_examples": 70_000}, "Received: train_examples=70000"),
        ({"activation": ("relu", "tanh")}, "one for all hidden layers or one for each"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        recipe.main(config(tmp_path / "run", **{"activation": ("relu",), **arguments}))


def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    """Exit status 0, the table in both precisions."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "backprop.py"), "--hidden-units", "8", "8",
         "--activation", "tanh", "--train-examples", "64", "--epochs", "1",
         "--run-dir", str(tmp_path / "run")],
        env={**os.environ, "KERAS_BACKEND": zoo.backends.name, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "float64, at most 1e-12" in result.stdout
    assert "hidden2/kernel" in result.stdout
    assert "1 steps: " in result.stdout
