"""Models of every builder, saved on one backend and loaded on another."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tests.test_contract import build, example_input, example_target, loss_of
from zoo import registry
from zoo.backends import NAMES as BACKENDS
from zoo.parity import Workers
from zoo.random import DrawCounter
from zoo.training import Adam, load_model

# An example of every builder.
NAMES = ["rnn_classifier/lstm", "rnn_language_model/gru"]
NAMES += [name for name in registry.models if name not in ("rnn_classifier", "rnn_language_model")]

# Trained by Keras' own Adam, which on TensorFlow does not sum the gradients of an id that occurs
# twice, so not models with embeddings; the others by the zoo's.
STOCK = ("mlp", "rnn_classifier/lstm", "unet")

# With dropout, where the default has none.
OPTIONS = {"mlp": {"hidden_units": (16,), "dropout": 0.5}}


class Compiled(NamedTuple):
    """How the steps of a model are made: whether compiled, and with an optimizer of which class."""

    jit_compile: bool
    optimizer: str


def _compiled(model: keras.Model) -> Compiled:
    optimizer = type(model.optimizer)
    return Compiled(model.jit_compile, f"{optimizer.__module__}.{optimizer.__name__}")


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '-')}.keras"


def _state(model: keras.Model) -> list[Any]:
    """Variables of the model and its optimizer, and counters of draws."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, DrawCounter)]
    counters = [layer.counter.state for layer in layers]
    return [*model.weights, *counters, *model.optimizer.variables]


def _numbers(number: int, variable: Any) -> np.ndarray:
    """Numbers that a variable has in the files, the same on every backend."""
    if "float" not in variable.dtype:
        return np.array([0, number] if variable.shape == (2,) else number, variable.dtype)
    # Above 0, as a learning rate must be.
    return np.random.default_rng(number).uniform(0.1, 1, variable.shape).astype(variable.dtype)


def save_all(folder: Path) -> dict[str, Compiled]:
    """Saves a compiled model of every builder, with zoo's Adam and Keras' in turn."""
    results = {}
    for index, name in enumerate(NAMES):
        model = build(name)
        model.compile(Adam(1e-3) if index % 2 else "adam", loss_of(name))
        model.optimizer.build(model.trainable_variables)
        for number, variable in enumerate(_state(model)):
            variable.assign(_numbers(number, variable))
        model.save(_path(folder, name))
        results[name] = _compiled(model)
    return results


def load_all(folder: Path) -> dict[str, Compiled]:
    """Loads the models and checks their states."""
    results = {}
    for name in NAMES:
        model = load_model(_path(folder, name))
        state = _state(model)
        for number, variable in enumerate(state):
            values = ops.convert_to_numpy(variable.value)
            np.testing.assert_array_equal(values, _numbers(number, variable), f"{name}, {number}")
        assert len(state) > 2 * len(model.trainable_variables)
        results[name] = _compiled(model)
    return results


def _next_losses(model: keras.Model, name: str) -> list[float]:
    x, y = example_input(model), example_target(model, name)
    return [float(model.train_on_batch(x, y)) for _ in range(2)]


def train_and_save(folder: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """Saves models after two steps, and returns the losses of two more steps."""
    results = {}
    for name in names:
        model = build(name, **OPTIONS.get(name, {}))
        model.compile("adam" if name in STOCK else Adam(1e-2), loss_of(name))
        _next_losses(model, name)
        model.save(_path(folder, name))
        results[name] = _next_losses(model, name)
    return results


def load_and_train(folder: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """Loads the models, and returns the losses of two steps."""
    return {name: _next_losses(load_model(_path(folder, name)), name) for name in names}


def exchange(
    workers: Workers,
    folder: Path,
    save: Callable[..., Any],
    load: Callable[..., Any],
    *arguments: Any,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Saves on every backend, then loads every backend's files on every backend, in float64.

    Returns:
        Results of `save` by backend, and of `load` by the backends that loaded and saved.
    """
    for name in BACKENDS:
        (folder / name).mkdir()

    def save_on(target: str) -> Any:
        return workers[target](save, folder / target, *arguments, floatx="float64")

    def load_from_all(target: str) -> dict[str, Any]:
        worker = functools.partial(workers[target], floatx="float64")
        return {source: worker(load, folder / source, *arguments) for source in BACKENDS}

    with ThreadPoolExecutor(len(BACKENDS)) as pool:
        saved = dict(zip(BACKENDS, pool.map(save_on, BACKENDS)))
        return saved, dict(zip(BACKENDS, pool.map(load_from_all, BACKENDS)))


def differences(saved: dict[str, Any], loaded: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Relative distances of the losses after loading from those of going on, by pair and model."""
    return {
        f"{name} from {source} to {target}": float(np.abs(np.divide(losses, going_on) - 1).max())
        for target, by_source in loaded.items()
        for source in by_source
        for name, losses in by_source[source].items()
        for going_on in [saved[source][name]]
    }
