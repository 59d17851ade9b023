"""Tests of backpropagation by hand, and of the recipe that compares it with autodiff."""

import csv
import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from recipes import backprop as recipe
from tests import recipe as recipe_tests
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


def largest(distances: dict[str, float], model: keras.Model) -> float:
    """The largest distance, after a check that each weight has one."""
    assert list(distances) == [variable.path for variable in model.trainable_variables]
    return max(distances.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_backward_matches_autodiff(name: str) -> None:
    """Measured: at most 5e-7 in float32 and 6e-16 in float64."""
    model = network(name)
    assert largest(gradients.distances(model, inputs(), LABELS), model) <= 1e-5
    with backend.float64():
        model = network(name, dtype="float64")
        assert largest(gradients.distances(model, inputs(), LABELS), model) <= 1e-12


@pytest.mark.parametrize("name", ["sigmoid", "relu", "tanh"])
def test_distances_show_wrong_derivative(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its layer and the earlier ones, not in the later one."""
    wrong = dataclasses.replace(ACTIVATIONS[name], derivative=lambda y: 1 - y)
    monkeypatch.setitem(ACTIVATIONS, name, wrong)
    model = zoo.mlp((7,), 3, (4, 6), ("relu" if name != "relu" else "tanh", name))
    distances = gradients.distances(model, inputs(), LABELS)
    for path, distance in distances.items():
        assert (distance > 1e-2) == (not path.startswith("output")), path


def test_steps_match_numpy() -> None:
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
    for layer, expected_layer in zip(gradients, expected):
        for a, b in zip(layer, expected_layer):
            np.testing.assert_allclose(ops.convert_to_numpy(a), b, rtol=1e-5)

    (w, b, activation), _ = backprop.update(layers, gradients, 0.1)
    assert float(ops.convert_to_numpy(w)[0, 0]) == pytest.approx(2 - 0.1 * 0.5 * dz1, rel=1e-6)
    assert float(ops.convert_to_numpy(b)[0]) == pytest.approx(0.1 - 0.1 * dz1, rel=1e-5)
    assert activation == "tanh"


def test_layers_of_copies_weights() -> None:
    model = network()
    layers = backprop.layers_of(model)
    initial = [np.array(ops.convert_to_numpy(layer.w)) for layer in layers]
    for variable in model.trainable_variables:
        variable.assign(0 * variable.value)
    for layer, w in zip(layers, initial):
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
def test_layers_of_rejects_other_models(arguments: dict[str, object], text: str) -> None:
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


def test_main_finds_same_gradients_and_curves(
    finished: tuple[Path, dict[str, object]],
) -> None:
    _, metrics = finished
    assert metrics["gradients_agree"] is True
    assert metrics["gradient_distances"]["float32"] <= 1e-5
    assert metrics["gradient_distances"]["float64"] <= 1e-12
    assert metrics["loss_distance"]["largest"] < 1e-12  # measured: 4e-16 in these 16 steps
    assert metrics["test_accuracy_by_hand"] == metrics["test_accuracy"]
    assert metrics["train_examples"] == 300


def test_main_writes_complete_run_directory(finished: tuple[Path, dict[str, object]]) -> None:
    folder, metrics = finished
    names = (
        "checkpoints config.json curves.png history.csv losses.csv manifest.json metrics.json "
        "model.json "
        "model.weights.h5"
    )
    assert sorted(os.listdir(folder)) == names.split()
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert float(rows[1]["val_loss"]) == metrics["test_loss"]


def test_main_reports_finished_run_and_rejects_other_configuration(
    finished: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = finished
    assert recipe.main(config(folder)) == metrics
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration: seed was 0 and is 1"):
        recipe.main(config(folder, seed=1))


@pytest.mark.parametrize("step", [3, 16])
def test_main_resumes_with_whole_curve(
    finished: tuple[Path, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """In an epoch's middle, and after the last step of all."""
    with monkeypatch.context() as patch:
        recipe_tests.interrupt_after(step, patch)
        with pytest.raises(Interrupted):
            recipe.main(config(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    metrics = recipe.main(config(tmp_path / "run"))
    assert metrics["test_loss"] == pytest.approx(finished[1]["test_loss"], rel=1e-12)
    assert metrics["loss_distance"] == finished[1]["loss_distance"]


def test_main_compares_only_steps_before_early_stopping(tmp_path: Path) -> None:
    """The learning rate is too small for an improvement."""
    few = {"learning_rate": 1e-30, "patience": 1, "train_examples": 80}
    metrics = recipe.main(config(tmp_path / "run", epochs=4, **few))
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert metrics["loss_distance"]["largest"] < 1e-12


def test_main_trains_in_float32(finished: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    metrics = recipe.main(config(tmp_path / "run", dtype_policy="float32"))
    assert metrics["loss_distance"]["largest"] < 1e-5  # measured: 0 to 2e-7
    distance = abs(metrics["test_loss"] / finished[1]["test_loss"] - 1)
    assert 1e-12 < distance < 1e-5  # measured: 4e-10; in float64 1e-15


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1. Received: epochs=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"hidden_units": (8, 0)}, r"Received: hidden_units=\(8, 0\)"),
        ({"learning_rate": 0.0}, "Received: learning_rate=0"),
        ({"train_examples": 70_000}, "Received: train_examples=70000"),
        ({"activation": ("relu", "tanh")}, "one for all hidden layers or one for each"),
    ],
)
def test_main_rejects_invalid_arguments(
    tmp_path: Path, arguments: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        recipe.main(config(tmp_path / "run", **{"activation": ("relu",), **arguments}))


def test_command_line_prints_table(
    tmp_path: Path, in_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The distances in both precisions; the exit status is 0."""
    result = in_process(
        ROOT / "recipes" / "backprop.py", "--hidden-units", "8", "8", "--activation", "tanh",
        "--train-examples", "64", "--epochs", "1", "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "float64, at most 1e-12" in result.stdout
    assert "hidden2/kernel" in result.stdout
    assert "1 steps: " in result.stdout


def test_command_line_fails_when_gradients_differ(
    tmp_path: Path,
    in_process: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = dataclasses.replace(ACTIVATIONS["tanh"], derivative=lambda y: 1 - y)
    monkeypatch.setitem(ACTIVATIONS, "tanh", wrong)
    result = in_process(
        ROOT / "recipes" / "backprop.py", "--hidden-units", "8", "--activation", "tanh",
        "--train-examples", "64", "--epochs", "1", "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert result.returncode == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["gradients_agree"] is False
