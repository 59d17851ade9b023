"""Tests of `.keras` and weights files, whose training goes on where it was saved."""

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import zoo
from zoo.datasets.augmentation import ImageAugmentation
from zoo.random import Dropout
from zoo.training import Adam, load_model

X, Y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)


def make(optimizer: Any = None) -> keras.Model:
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(20, name="hidden"),
        Dropout(0.5, name="dropout"),
        keras.layers.Dense(2, name="dense"),
    ]
    model = keras.Sequential(layers, name="m")
    if optimizer is not None:
        model.compile(optimizer, "mean_squared_error")
    return model


def edit_config(source: Path, target: Path, change: Any) -> None:
    """Copies a `.keras` file with another configuration of `compile`."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config["compile_config"])
                content = json.dumps(config).encode()
            copy.writestr(name, content)


def test_load_model_resumes_training_from_pytorch_file(tmp_path: Path) -> None:
    """The file names PyTorch's optimizer class."""
    model = make("adam")
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")

    def name_optimizer_of_pytorch(config: dict) -> None:
        module = "keras.src.backend.torch.optimizers.torch_adam"
        config["optimizer"] |= {"module": module, "registered_name": "Adam"}

    path = tmp_path / "from-pytorch.keras"
    edit_config(tmp_path / "model.keras", path, name_optimizer_of_pytorch)
    loaded = load_model(path)
    expected, loss = (float(m.train_on_batch(X, Y)) for m in (model, loaded))
    assert loss == pytest.approx(expected, rel=1e-6)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-5)


@pytest.mark.parametrize("saved", [True, False])
def test_load_model_compiles_steps_as_the_backend_does(tmp_path: Path, saved: bool) -> None:
    """The file holds another backend's choice."""
    model = make(Adam())
    model.train_on_batch(X, Y)
    expected = model.jit_compile
    model.save(tmp_path / "model.keras")
    path = tmp_path / "other.keras"
    edit_config(tmp_path / "model.keras", path, lambda config: config.update(jit_compile=saved))
    loaded = load_model(path)
    assert loaded.jit_compile is expected
    loaded.save(tmp_path / "again.keras")
    assert keras.saving.load_model(tmp_path / "again.keras").jit_compile is expected
    assert load_model(path, jit_compile=saved).jit_compile is saved
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    network.save(tmp_path / "network.keras")
    assert not load_model(tmp_path / "network.keras").compiled


def next_losses(model: keras.Model) -> list[float]:
    return [float(model.train_on_batch(X, Y)) for _ in range(2)]


def test_load_model_goes_on_with_the_next_dropout_masks(tmp_path: Path) -> None:
    model = make(Adam(0.1))
    for _ in range(3):
        model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = load_model(tmp_path / "model.keras")
    other = load_model(tmp_path / "model.keras")
    other.get_layer("dropout").counter.state.assign([0, 0])
    expected = next_losses(model)
    assert next_losses(loaded) == expected
    assert next_losses(other) != expected  # the masks matter
    network = make()
    network.load_weights(tmp_path / "model.weights.h5")
    assert np.array(network.get_layer("dropout").counter.state)[1] == 3


def test_load_weights_without_counter_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    make("sgd").save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/dropout/vars/draws"]
    model = make("sgd")
    model.train_on_batch(X, Y)
    model.load_weights(path)
    assert np.array(model.get_layer("dropout").counter.state)[1] == 1


@pytest.mark.parametrize(
    ("draws", "received"),
    [
        (np.array(-1), "Received: -1"),
        (np.array(2**31), "Received: 2147483648"),
        (np.array(1.5), r"Received: float64 of shape \(\)"),
        (np.array([1, 2]), r"Received: int64 of shape \(2,\)"),
    ],
)
def test_load_weights_rejects_an_invalid_counter(
    tmp_path: Path, draws: np.ndarray, received: str
) -> None:
    path = tmp_path / "model.weights.h5"
    model = make("sgd")
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/dropout/vars/draws"]
        file["layers/dropout/vars/draws"] = draws
    text = r"draws of the layer dropout must be an integer in \[0, 2\*\*31\)"
    with pytest.raises(ValueError, match=f"{text}. {received}"):
        model.load_weights(path)


def test_trainer_file_holds_preprocessing_and_its_counter(
    tmp_path: Path, images: np.ndarray
) -> None:
    augmentation = ImageAugmentation((0.5,), (0.5,), shape=(48, 48, 1))
    trainer = zoo.Trainer(zoo.mlp((48, 48, 1), 3, (4,)), augmentation)
    trainer.compile(Adam(0.01), zoo.training.CrossEntropy())
    labels = np.arange(8) % 3
    trainer.train_on_batch(images, labels)
    trainer.save(tmp_path / "trainer.keras")
    loaded = load_model(tmp_path / "trainer.keras")
    expected, loss = (float(each.train_on_batch(images, labels)) for each in (trainer, loaded))
    assert loss == expected
    assert np.array(loaded.preprocessing.counter.state)[1] == 2
