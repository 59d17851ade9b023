"""Weights from and to PyTorch's `state_dict`, as NumPy arrays or a safetensors file.

    model = zoo.cnn_48x48(num_classes=10)
    zoo.interop.pytorch.load(model, "my_net.safetensors")
    zoo.interop.pytorch.save(model, "my_net.safetensors")

It covers models that are one chain of layers, with each layer named as its PyTorch counterpart:
convolutions, dense layers, and what has no weights. Three things differ between the frameworks: a
convolution's kernel is (out, in, height, width) there and (height, width, in, out) here, a dense
layer's is transposed, and features are flattened as (channels, height, width) there and as (height,
width, channels) here, which permutes the rows of the first dense layer.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from zoo.checkpoints import atomic_write, misfits


@dataclass(frozen=True)
class _Entry:
    """One variable here and one tensor there."""

    variable: Any
    flattened: tuple[int, ...] | None  # (H, W, C) if the layer reads flattened features

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch has it."""
        return self.to_torch(np.empty(self.variable.shape, np.bool_)).shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        if array.ndim == 4:
            return array.transpose(3, 2, 0, 1)
        if array.ndim == 2:
            if self.flattened:
                array = array.reshape(*self.flattened, -1).transpose(2, 0, 1, 3)
                array = array.reshape(-1, array.shape[-1])
            return array.T
        return array

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        if array.ndim == 4:
            return array.transpose(2, 3, 1, 0)
        if array.ndim == 2:
            array = array.T
            if self.flattened:
                height, width, channels = self.flattened
                array = array.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
                array = array.reshape(-1, array.shape[-1])
            return array
        return array


def state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """The model's weights under PyTorch's names, shapes and order; float32.

    Raises:
        ValueError: if the model has a layer that is not covered.
    """
    return {
        name: np.ascontiguousarray(
            entry.to_torch(np.asarray(keras.ops.convert_to_numpy(entry.variable.value), np.float32))
        )
        for name, entry in _entries(model).items()
    }


def save(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes `state_dict(model)` to a safetensors file."""
    content = safetensors.numpy.save(state_dict(model))
    with atomic_write(Path(path)) as file:
        file.write(content)


def load(model: keras.Model, state: Mapping[str, np.ndarray] | str | os.PathLike[str]) -> None:
    """Loads a PyTorch `state_dict` into the model, all of it or, in case of an error, nothing.

    Args:
        model: its layers named as the PyTorch modules.
        state: arrays by name, or the path of a safetensors file.

    Raises:
        ValueError: if an entry is missing, unknown, of another shape or not numeric; the text names
            each. Also if the file is no safetensors file, or a layer is not covered.
        OSError: if there is no such file.
    """
    if isinstance(state, str | os.PathLike):
        try:
            state = safetensors.numpy.load_file(state)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"`state` must be a safetensors file. Received: {state} ({error})"
            ) from error
    entries = _entries(model)
    arrays = {name: np.asarray(array) for name, array in state.items()}
    wrong = misfits(arrays, {name: entry.shape for name, entry in entries.items()})
    if wrong:
        raise ValueError(f"`state` does not fit {model.name}: {'; '.join(wrong)}")
    for name, entry in entries.items():
        entry.variable.assign(np.ascontiguousarray(entry.from_torch(arrays[name])))


def _entries(model: keras.Model) -> dict[str, _Entry]:
    entries = {}
    flattened = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten) and len(layer.input.shape) == 4:
            flattened = tuple(layer.input.shape[1:])
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            dense = isinstance(layer, keras.layers.Dense)
            shape = flattened if dense else None
            entries[f"{layer.name}.weight"] = _Entry(layer.kernel, shape)
            if layer.use_bias:
                entries[f"{layer.name}.bias"] = _Entry(layer.bias, None)
            flattened = None if dense else flattened
        elif layer.weights:
            raise ValueError(
                "`model` must consist of convolutions, dense layers and layers without weights. "
                f"Received: {layer.name}, a {type(layer).__name__}"
            )
    return entries
