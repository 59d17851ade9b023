"""Conversion of weights from and to PyTorch's `state_dict`: NumPy arrays or a safetensors file.

    model = zoo.cnn_48x48(num_classes=10)
    zoo.interop.pytorch.load(model, "my_net.safetensors")
    zoo.interop.pytorch.save(model, "my_net.safetensors")

Supported models are sequences of convolutional, dense, embedding and recurrent layers, and layers
without weights. Each layer has the name of its PyTorch counterpart. A stack of recurrent layers
`rnn1`, `rnn2` corresponds to one `nn.RNN`, `nn.LSTM` or `nn.GRU` named `rnn` with as many layers,
bidirectional if the layers are. The frameworks differ as follows:

- The kernel of a convolution is (out, in, height, width) in PyTorch and (height, width, in, out) in
  Keras. The kernel of a dense layer and both kernels of a recurrent layer are transposed.
- PyTorch flattens features as (channels, height, width), Keras as (height, width, channels). The
  rows of the first dense layer are permuted accordingly.
- A recurrent layer has two biases in PyTorch, which are added. Keras has one, except for the GRU,
  whose second bias is inside the reset gate.
- The gates of a GRU are ordered reset, update, new in PyTorch and update, reset, new in Keras.
  (Those of an LSTM are input, forget, cell, output in both.)
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
class _Conversion:
    """Conversion between variables of a Keras layer and tensors of a `state_dict`.

    Attributes:
        variables: Variables of the Keras layer.
        to_torch: Function from the arrays of the variables to the tensors by name.
        from_torch: Function from the arrays of the tensors, in the order of the names, to the
            arrays of the variables.
    """

    variables: tuple[Any, ...]
    to_torch: Callable[..., Arrays]
    from_torch: Callable[..., tuple[np.ndarray, ...]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, by name."""
        arrays = self.to_torch(*(np.empty(v.shape, np.bool_) for v in self.variables))
        return {name: array.shape for name, array in arrays.items()}


def state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """Converts the weights of a model to a PyTorch `state_dict`.

    Args:
        model: Model whose layers are named as the PyTorch modules.

    Returns:
        float32 arrays with PyTorch's names, shapes and order.

    Raises:
        ValueError: If the model has a layer that is not supported.
    """
    state: Arrays = {}
    for conversion in _conversions(model):
        arrays = [np.asarray(keras.ops.convert_to_numpy(v.value)) for v in conversion.variables]
        state |= conversion.to_torch(*(array.astype(np.float32) for array in arrays))
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def save(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves the PyTorch `state_dict` of a model as a safetensors file.

    Args:
        model: Model whose layers are named as the PyTorch modules.
        path: Path of the file.

    Raises:
        ValueError: If the model has a layer that is not supported.
    """
    content = safetensors.numpy.save(state_dict(model))
    with atomic_write(Path(path)) as file:
        file.write(content)


def load(model: keras.Model, state: Mapping[str, np.ndarray] | str | os.PathLike[str]) -> None:
    """Loads a PyTorch `state_dict` into a model. An error leaves all weights unchanged.

    Args:
        model: Model whose layers are named as the PyTorch modules.
        state: Arrays by name, or the path of a safetensors file.

    Raises:
        ValueError: If an entry is missing, unknown, of another shape or not numeric; the text names
            each. Also if the file is not a safetensors file, or a layer is not supported.
        OSError: If the file cannot be read.
    """
    if isinstance(state, str | os.PathLike):
        try:
            state = safetensors.numpy.load_file(state)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"`state` must be a safetensors file. Received: {state} ({error})"
            ) from error
    conversions = list(_conversions(model))
    arrays = {name: np.asarray(array) for name, array in state.items()}
    shapes = {name: shape for c in conversions for name, shape in c.shapes.items()}
    mismatches = find_mismatches(arrays, shapes)
    if mismatches:
        raise ValueError(f"`state` does not fit {model.name}: {'; '.join(mismatches)}")
    for conversion in conversions:
        converted = conversion.from_torch(*(arrays[name] for name in conversion.shapes))
        for variable, array in zip(conversion.variables, converted):
            variable.assign(np.ascontiguousarray(array))


def _conversions(model: keras.Model) -> Iterator[_Conversion]:
    flattened = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten) and len(layer.input.shape) == 4:
            flattened = tuple(layer.input.shape[1:])
        elif isinstance(layer, keras.layers.Conv2D):
            yield from _weight_and_bias(layer, _kernel_to_torch, _kernel_from_torch)
        elif isinstance(layer, keras.layers.Dense):
            yield from _weight_and_bias(layer, *_dense_functions(flattened))
            flattened = None
        elif isinstance(layer, keras.layers.Embedding):
            yield _single(layer.embeddings, f"{layer.name}.weight")
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


ArrayFunction = Callable[[np.ndarray], np.ndarray]


def _identity(array: np.ndarray) -> np.ndarray:
    return array


def _single(
    variable: Any,
    name: str,
    to_torch: ArrayFunction = _identity,
    from_torch: ArrayFunction = _identity,
) -> _Conversion:
    return _Conversion((variable,), lambda a: {name: to_torch(a)}, lambda a: (from_torch(a),))


def _weight_and_bias(
    layer: Any, to_torch: ArrayFunction, from_torch: ArrayFunction
) -> Iterator[_Conversion]:
    yield _single(layer.kernel, f"{layer.name}.weight", to_torch, from_torch)
    if layer.use_bias:
        yield _single(layer.bias, f"{layer.name}.bias")


def _kernel_to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1)


def _kernel_from_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _dense_functions(flattened: tuple[int, ...] | None) -> tuple[ArrayFunction, ArrayFunction]:
    """Functions to and from PyTorch for the kernel of a dense layer.

    Args:
        flattened: Shape (H, W, C) of the features before they were flattened; None if the inputs
            are not flattened images.
    """
    if flattened is None:
        return np.transpose, np.transpose
    height, width, channels = flattened

    def to_torch(array: np.ndarray) -> np.ndarray:
        array = array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        return array.reshape(-1, array.shape[-1]).T

    def from_torch(array: np.ndarray) -> np.ndarray:
        array = array.T.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
        return array.reshape(-1, array.shape[-1])

    return to_torch, from_torch


_RECURRENT = keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU


def _recurrent(name: str, layer: Any, direction: str) -> _Conversion:
    """Conversion of one layer of a stack in one direction.

    Args:
        name: Name of the layer: `rnn2` is layer 1 of the PyTorch module `rnn`.
        layer: Recurrent layer of Keras.
        direction: Suffix of PyTorch's names, "" or "_reverse".
    """
    match = re.match(r"(.*?)(\d+)", name)
    if match is None or not layer.use_bias or not getattr(layer, "reset_after", True):
        raise ValueError(
            "The name of a recurrent layer must hold its number in the stack, such as rnn1. The "
            "layer must have biases and, as a GRU, `reset_after`. Received: "
            f"{name}, a {type(layer).__name__}"
        )
    module, level = match[1], int(match[2]) - 1
    tensors = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    names = [f"{module}.{tensor}_l{level}{direction}" for tensor in tensors]
    gru = isinstance(layer, keras.layers.GRU)

    def swap_gates(array: np.ndarray) -> np.ndarray:
        """Exchanges the first two of the three gates of a GRU; other arrays are unchanged."""
        if not gru:
            return array
        first, second, third = np.split(array, 3)
        return np.concatenate([second, first, third])

    def to_torch(kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> Arrays:
        biases = bias if gru else (bias, np.zeros_like(bias))
        arrays = kernel.T, recurrent_kernel.T, *biases
        return {name: swap_gates(array) for name, array in zip(names, arrays)}

    def from_torch(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        kernel, recurrent_kernel, *biases = map(swap_gates, arrays)
        bias = np.stack(biases) if gru else biases[0] + biases[1]
        return kernel.T, recurrent_kernel.T, bias

    cell = layer.cell
    return _Conversion((cell.kernel, cell.recurrent_kernel, cell.bias), to_torch, from_torch)
