"""Conversion of weights from and to PyTorch's `state_dict`: arrays, safetensors or PyTorch files.

    model = zoo.cnn_48x48(num_classes=10)
    zoo.interop.pytorch.load(model, "my_net.safetensors")       # or "my_net.pt"
    zoo.interop.pytorch.save(model, "my_net.safetensors")

A layer of the model corresponds to the PyTorch module of its name; `rename` gives other names.
Layers of a model in the model have its name as a prefix: `encoder.conv1`. Two kinds of layers form
one module:

- Recurrent layers `rnn1`, `rnn2` are one `nn.RNN`, `nn.LSTM` or `nn.GRU` named `rnn` with as many
  layers, bidirectional if the layers are.
- Transformer blocks `encoder_block1`, `encoder_block2` and a normalization `encoder_norm` behind
  them are one `nn.TransformerEncoder` named `encoder`, or an `nn.TransformerDecoder` if they have
  cross-attention. A block with another name is a layer of these.

The frameworks differ as follows:

- The kernel of a convolution is (out, in, height, width) in PyTorch and (height, width, in, out) in
  Keras. The kernel of a dense layer and both kernels of a recurrent layer are transposed.
- PyTorch flattens features as (channels, height, width), Keras as (height, width, channels). The
  rows of a dense layer that reads such features are permuted. The graph of the model tells which
  layers do; where it does not, the model is refused.
- A recurrent layer has two biases in PyTorch, which are added. Keras has one, except for the GRU,
  whose second bias is inside the reset gate.
- The gates of a GRU are ordered reset, update, new in PyTorch and update, reset, new in Keras.
  (Those of an LSTM are input, forget, cell, output in both.)
- `nn.MultiheadAttention` joins the kernels of query, key and value.

A `state_dict` does not hold the settings of layers. The epsilon of a normalization is 1e-5 in
PyTorch and 1e-3 in Keras by default (`keras.layers.BatchNormalization(epsilon=1e-5)`), and its
momentum 0.1 in PyTorch is 0.9 in Keras, whose default is 0.99. The mask of padded tokens
(`mask_zero=True`) is passed at each call in PyTorch: a `key_padding_mask` or packed sequences.
A setting that no PyTorch module has, such as another activation of an LSTM, is refused.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import safetensors.numpy

from zoo.files.arrays import cast_array
from zoo.interop.pytorch import state as states
from zoo.interop.pytorch.graph import Call, trace
from zoo.interop.pytorch.layers import Conversion, conversions
from zoo.interop.pytorch.names import Rename, module_name, renamed
from zoo.training.checkpoints import atomic_write
from zoo.validation import AnyPath, Rule, validated


def _check_state(value: Any) -> Any:
    if not isinstance(value, Mapping | str | os.PathLike):
        raise TypeError
    return value


State = Annotated[
    Mapping[str, Any] | str | os.PathLike[str], Rule("a mapping or a path", _check_state)
]


@validated
def state_dict(model: keras.Model, rename: Rename | None = None) -> dict[str, np.ndarray]:
    """Converts the weights of a model to a PyTorch `state_dict`.

    Args:
        model: Built model whose layers are named as the PyTorch modules.
        rename: PyTorch's name of each module that has another name than the layer, by the name of
            the layer, such as {"conv1": "features.0"}; or a function from the name of a tensor,
            such as "conv1.weight", to PyTorch's name.

    Returns:
        float32 arrays with PyTorch's names, shapes and order. The counters `num_batches_tracked` of
        batch normalizations are not among them; PyTorch does not miss them.

    Raises:
        ValueError: If a layer has no counterpart in PyTorch, the order of the features that it
            reads cannot be told, or `rename` does not fit the model.
    """
    state: dict[str, np.ndarray] = {}
    for conversion in _conversions(model):
        arrays = [np.asarray(keras.ops.convert_to_numpy(v.value)) for v in conversion.variables]
        state |= conversion.to_torch(*(array.astype(np.float32) for array in arrays))
    names = renamed(state, rename)
    return {names[name]: np.ascontiguousarray(array) for name, array in state.items()}


@validated
def save(model: keras.Model, path: AnyPath, rename: Rename | None = None) -> None:
    """Saves the PyTorch `state_dict` of a model as a safetensors file.

    Args:
        model: Built model whose layers are named as the PyTorch modules.
        path: Path of the file.
        rename: Other names of PyTorch's modules, as for `state_dict`.

    Raises:
        ValueError: If `state_dict` raises it.
    """
    content = safetensors.numpy.save(state_dict(model, rename))
    with atomic_write(Path(path)) as file:
        file.write(content)


@validated
def load(
    model: keras.Model,
    state: State,
    rename: Rename | None = None,
) -> None:
    """Loads a PyTorch `state_dict` into a model. An error leaves all weights unchanged.

    Args:
        model: Built model whose layers are named as the PyTorch modules.
        state: Arrays or tensors by name, or the path of a safetensors file or of a file of PyTorch.
            It may be a checkpoint that holds the `state_dict` beside other entries. A prefix of the
            model's names, such as `module.`, `_orig_mod.` or `model.`, is removed, and the counters
            `num_batches_tracked` are ignored.
        rename: Other names of PyTorch's modules, as for `state_dict`.

    Raises:
        ValueError: If an entry is missing, unknown, of another shape, not floating-point or not
            finite in the dtype of the model; the text names each. Also if the file is of another
            kind or damaged, or `state_dict` raises it.
        ImportError: If the file is PyTorch's own and PyTorch is not installed. The text has a
            command that converts the file.
        OSError: If the file cannot be read.
    """
    parts = _conversions(model)
    shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
    names = renamed(shapes, rename)
    tensors = states.read(state, names.values())
    arrays = states.checked_arrays(tensors, {names[name]: shape for name, shape in shapes.items()})
    values = []
    for part in parts:
        converted = part.from_torch(*(arrays[names[name]] for name in part.shapes))
        for variable, array in zip(part.variables, converted):
            try:
                value = cast_array(array, variable.dtype)
            except ValueError as error:
                raise ValueError(
                    f"`state` does not fit the model: its array for {variable.path} {error}"
                ) from error
            values.append((variable, np.array(value, order="C")))  # not the caller's array
    for variable, value in values:
        variable.assign(value)


def _conversions(model: keras.Model) -> list[Conversion]:
    """Conversions of all weights of a model."""
    if not model.built:
        raise ValueError(
            "`model` must be built, so that it has weights: call it once, or give it an "
            f"`keras.Input`. Received: {model.name}"
        )
    all_conversions: list[Conversion] = []
    calls: dict[int, Call] = {}
    for call in trace(model):
        parts = list(conversions(call, module_name(call)))
        first = calls.setdefault(id(call.layer), call)
        if first is call:
            all_conversions += parts
        elif not np.array_equal(first.permutation(), call.permutation()):  # type: ignore[arg-type]
            raise call.error("it is called twice, with features in different orders")
    converted = {id(variable) for part in all_conversions for variable in part.variables}
    for variable in model.weights:
        if id(variable) not in converted:
            raise ValueError(
                "`model` must have a counterpart in PyTorch for each weight. Received: "
                f"{variable.path}, for which there is no conversion"
            )
    for name, number in Counter(name for part in all_conversions for name in part.shapes).items():
        if number > 1:
            raise ValueError(
                "`model` must have layers with different names. Received: "
                f"{number} tensors of the name {name}"
            )
    return all_conversions
