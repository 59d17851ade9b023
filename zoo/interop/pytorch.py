"""Weights from and to PyTorch's `state_dict`, as NumPy arrays or a safetensors file.

    model = zoo.cnn_48x48(num_classes=10)
    zoo.interop.pytorch.load(model, "my_net.safetensors")
    zoo.interop.pytorch.save(model, "my_net.safetensors")

It covers models that are one chain of layers, with each layer named as its PyTorch counterpart:
convolutions, dense, embedding and recurrent layers, and what has no weights. A stack of recurrent
layers `rnn1`, `rnn2` is one `nn.RNN`, `nn.LSTM` or `nn.GRU` named `rnn` there, of so many layers,
in both directions where ours reads in both. What differs between the frameworks:

- A convolution's kernel is (out, in, height, width) there and (height, width, in, out) here, a
  dense layer's is transposed, and so are a recurrent layer's two.
- Features are flattened as (channels, height, width) there and as (height, width, channels) here,
  which permutes the rows of the first dense layer.
- A recurrent layer has two biases there, which are added up; here that is one, but for the GRU,
  whose second one is inside the reset gate. A GRU's gates stand in the order reset, update, new
  there and update, reset, new here. (An LSTM's are input, forget, cell, output on both sides.)
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from zoo.training.checkpoints import atomic_write, find_mismatches

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Part:
    """Some variables here and some tensors there.

    Attributes:
        variables: of a layer.
        to_torch: from their arrays to the tensors by name.
        from_torch: from the tensors' arrays, in the order of the names, back.
    """

    variables: tuple[Any, ...]
    to_torch: Callable[..., Arrays]
    from_torch: Callable[..., tuple[np.ndarray, ...]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by name."""
        arrays = self.to_torch(*(np.empty(v.shape, np.bool_) for v in self.variables))
        return {name: array.shape for name, array in arrays.items()}


def state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """The model's weights under PyTorch's names, shapes and order; float32.

    Raises:
        ValueError: if the model has a layer that is not covered.
    """
    state: Arrays = {}
    for part in _parts(model):
        arrays = [np.asarray(keras.ops.convert_to_numpy(v.value)) for v in part.variables]
        state |= part.to_torch(*(array.astype(np.float32) for array in arrays))
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


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
    parts = list(_parts(model))
    arrays = {name: np.asarray(array) for name, array in state.items()}
    wrong = find_mismatches(
        arrays, {name: shape for part in parts for name, shape in part.shapes.items()}
    )
    if wrong:
        raise ValueError(f"`state` does not fit {model.name}: {'; '.join(wrong)}")
    for part in parts:
        found = part.from_torch(*(arrays[name] for name in part.shapes))
        for variable, array in zip(part.variables, found):
            variable.assign(np.ascontiguousarray(array))


def _parts(model: keras.Model) -> Iterator[_Part]:
    flattened = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten) and len(layer.input.shape) == 4:
            flattened = tuple(layer.input.shape[1:])
        elif isinstance(layer, keras.layers.Conv2D):
            yield from _weight_and_bias(layer, _convolution, _convolution_back)
        elif isinstance(layer, keras.layers.Dense):
            yield from _weight_and_bias(layer, *_dense(flattened))
            flattened = None
        elif isinstance(layer, keras.layers.Embedding):
            yield _one(layer.embeddings, f"{layer.name}.weight")
        elif isinstance(layer, keras.layers.Bidirectional):
            yield _recurrent(layer.name, layer.forward_layer, "")
            yield _recurrent(layer.name, layer.backward_layer, "_reverse")
        elif isinstance(layer, _RECURRENT):
            yield _recurrent(layer.name, layer, "")
        elif layer.weights:
            raise ValueError(
                "`model` must consist of convolutions, dense, embedding and recurrent layers, and "
                f"layers without weights. Received: {layer.name}, a {type(layer).__name__}"
            )


Conversion = Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _one(variable: Any, name: str, there: Conversion = _same, back: Conversion = _same) -> _Part:
    return _Part((variable,), lambda a: {name: there(a)}, lambda a: (back(a),))


def _weight_and_bias(layer: Any, there: Conversion, back: Conversion) -> Iterator[_Part]:
    yield _one(layer.kernel, f"{layer.name}.weight", there, back)
    if layer.use_bias:
        yield _one(layer.bias, f"{layer.name}.bias")


def _convolution(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1)


def _convolution_back(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _dense(flattened: tuple[int, ...] | None) -> tuple[Conversion, Conversion]:
    """For a layer that reads features flattened from (H, W, C), or others."""
    if flattened is None:
        return np.transpose, np.transpose
    height, width, channels = flattened

    def there(array: np.ndarray) -> np.ndarray:
        array = array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        return array.reshape(-1, array.shape[-1]).T

    def back(array: np.ndarray) -> np.ndarray:
        array = array.T.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
        return array.reshape(-1, array.shape[-1])

    return there, back


_RECURRENT = keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU


def _recurrent(name: str, layer: Any, direction: str) -> _Part:
    """One layer of a stack in one direction; `rnn2` is `rnn`'s layer 1."""
    found = re.match(r"(.*?)(\d+)", name)
    if found is None or not layer.use_bias or not getattr(layer, "reset_after", True):
        raise ValueError(
            "A recurrent layer must be named by its place in the stack, such as rnn1, and have "
            f"biases, a GRU with `reset_after`. Received: {name}, a {type(layer).__name__}"
        )
    module, level = found[1], int(found[2]) - 1
    kinds = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    names = [f"{module}.{kind}_l{level}{direction}" for kind in kinds]
    gru = isinstance(layer, keras.layers.GRU)

    def swapped(array: np.ndarray) -> np.ndarray:
        """The first two of a GRU's three gates change places."""
        if not gru:
            return array
        first, second, third = np.split(array, 3)
        return np.concatenate([second, first, third])

    def there(kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> Arrays:
        biases = bias if gru else (bias, np.zeros_like(bias))
        arrays = kernel.T, recurrent_kernel.T, *biases
        return {name: swapped(array) for name, array in zip(names, arrays)}

    def back(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        kernel, recurrent_kernel, *biases = map(swapped, arrays)
        bias = np.stack(biases) if gru else biases[0] + biases[1]
        return kernel.T, recurrent_kernel.T, bias

    cell = layer.cell
    return _Part((cell.kernel, cell.recurrent_kernel, cell.bias), there, back)
