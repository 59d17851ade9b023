"""Conversions of the weights of each kind of layer."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from zoo.interop.pytorch.graph import Call
from zoo.interop.pytorch.layout import CONVOLUTIONS, RECURRENT
from zoo.layers.attention import Attention, Positions
from zoo.layers.transformer_block import TransformerBlock

Arrays = dict[str, np.ndarray]
ArrayFunction = Callable[[np.ndarray], np.ndarray]

_layers = keras.layers
_RECURRENT_CELLS = _layers.SimpleRNN, _layers.LSTM, _layers.GRU


@dataclass(frozen=True)
class Conversion:
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


def conversions(call: Call, name: str) -> Iterator[Conversion]:
    """Yields the conversions of a layer.

    Args:
        call: Call of the layer.
        name: Name of the PyTorch module. For a recurrent layer, the name of the layer: `rnn2` is
            layer 1 of the PyTorch module `rnn`.

    Raises:
        ValueError: If the layer has no counterpart in PyTorch, or the order of the features that it
            reads cannot be told.
    """
    layer = call.layer
    changed = _changed_methods(type(layer))
    if changed:
        raise call.error(
            f"its class replaces {', '.join(changed)}, so that PyTorch's module may compute "
            "something else"
        )
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise call.error("it holds low-rank or quantized weights, which must be merged first")
    for kinds, function in _CONVERSIONS:
        if isinstance(layer, kinds):
            yield from function(call, name)
            return
    raise call.error(
        "there is no conversion for layers of its kind. docs/guides/weights-from-elsewhere.md "
        "lists those that there are"
    )


def _changed_methods(kind: type) -> list[str]:
    """Methods of Keras' or the zoo's class that a class outside of these packages replaces."""
    classes = [c for c in kind.__mro__ if c.__module__.split(".")[0] in ("keras", "zoo")]
    names = {name for c in kind.__mro__[: kind.__mro__.index(classes[0])] for name in vars(c)}
    harmless = {"from_config", "get_config"}
    return sorted(
        name
        for name in names - harmless
        if not name.startswith("__") and any(callable(vars(c).get(name)) for c in classes)
    )


def _identity(array: np.ndarray) -> np.ndarray:
    return array


def _single(
    variable: Any,
    name: str,
    to_torch: ArrayFunction = _identity,
    from_torch: ArrayFunction = _identity,
) -> Conversion:
    return Conversion((variable,), lambda a: {name: to_torch(a)}, lambda a: (from_torch(a),))


def _transposed(variable: Any, name: str, axes: tuple[int, ...]) -> Conversion:
    """Conversion of a kernel whose axes PyTorch has in another order."""
    inverse = np.argsort(axes)
    return _single(variable, name, lambda a: a.transpose(axes), lambda a: a.transpose(inverse))


def _permuted(variable: Any, name: str, positions: np.ndarray | None) -> Conversion:
    """Conversion of a vector with one element for each feature."""
    if positions is None:
        return _single(variable, name)
    inverse = np.argsort(positions)
    return _single(variable, name, lambda a: a[inverse], lambda a: a[positions])


def _bias(call: Call, name: str) -> Iterator[Conversion]:
    if call.layer.use_bias:
        yield _single(call.layer.bias, f"{name}.bias")


# ------------------------------------------------------------------ dense layers and convolutions


def _dense(call: Call, name: str) -> Iterator[Conversion]:
    positions = call.permutation()
    if positions is None:
        yield _transposed(call.layer.kernel, f"{name}.weight", (1, 0))
    else:
        inverse = np.argsort(positions)
        yield _single(
            call.layer.kernel, f"{name}.weight", lambda a: a[inverse].T, lambda a: a.T[positions]
        )
    yield from _bias(call, name)


def _convolution(call: Call, name: str) -> Iterator[Conversion]:
    """(..., in, out) in Keras is (out, in, ...) in PyTorch, where `in` is that of one group.

    A transposed convolution has `in` and `out` exchanged in both frameworks.
    """
    axes = range(len(call.layer.kernel.shape))
    yield _transposed(call.layer.kernel, f"{name}.weight", (*axes[:-3:-1], *axes[:-2]))
    yield from _bias(call, name)


def _depthwise_convolution(call: Call, name: str) -> Iterator[Conversion]:
    """(..., in, multiplier) in Keras is (in·multiplier, 1, ...) in PyTorch, with `in` groups."""
    *sizes, channels, multiplier = call.layer.kernel.shape
    rank = len(sizes)

    def to_torch(array: np.ndarray) -> np.ndarray:
        array = np.moveaxis(array, (rank, rank + 1), (0, 1))
        return array.reshape(channels * multiplier, 1, *sizes)

    def from_torch(array: np.ndarray) -> np.ndarray:
        array = array.reshape(channels, multiplier, *sizes)
        return np.moveaxis(array, (0, 1), (rank, rank + 1))

    yield _single(call.layer.kernel, f"{name}.weight", to_torch, from_torch)
    yield from _bias(call, name)


def _embedding(call: Call, name: str) -> Iterator[Conversion]:
    if hasattr(call.layer, "reverse_embeddings"):
        raise call.error("its output has weights of its own. `tie_weights=True` shares them")
    call.expect_same_order()
    yield _single(call.layer.embeddings, f"{name}.weight")


def _positions(call: Call, name: str) -> Iterator[Conversion]:
    yield _single(call.layer.table, f"{name}.weight")


# ------------------------------------------------------------------ normalizations


def _batch_norm(call: Call, name: str) -> Iterator[Conversion]:
    layer = call.layer
    if layer.scale != layer.center or getattr(layer, "renorm", False):
        raise call.error("PyTorch's has `scale` and `center` or neither, and no `renorm`")
    positions = _channel_positions(call, layer.axis)
    variables = {"running_mean": layer.moving_mean, "running_var": layer.moving_variance}
    if layer.scale:
        variables = {"weight": layer.gamma, "bias": layer.beta, **variables}
    for tensor, variable in variables.items():
        yield _permuted(variable, f"{name}.{tensor}", positions)


def _group_norm(call: Call, name: str) -> Iterator[Conversion]:
    layer = call.layer
    if not (layer.scale and layer.center):
        raise call.error("PyTorch's has both `scale` and `center`")
    if _channel_positions(call, layer.axis) is not None:
        raise call.error("its groups hold other features of the flattened image than PyTorch's")
    call.expect_same_order()
    yield _single(layer.gamma, f"{name}.weight")
    yield _single(layer.beta, f"{name}.bias")


def _layer_norm(call: Call, name: str) -> Iterator[Conversion]:
    """Normalization over the features or, as `nn.LayerNorm([C, H, W])`, over all axes."""
    layer = call.layer
    rms = isinstance(layer, _layers.RMSNormalization)
    if not rms and layer.rms_scaling:
        raise call.error("its `rms_scaling` divides by the variance, as no module of PyTorch does")
    if not rms and layer.center and not layer.scale:
        raise call.error("PyTorch's has no `center` without `scale`")
    tensors = {"weight": layer.scale} if rms else {}
    if not rms and layer.scale:
        tensors = {"weight": layer.gamma, **({"bias": layer.beta} if layer.center else {})}
    rank = len(call.inputs[0].shape)
    axes = [axis % (rank + 1) - 1 for axis in np.atleast_1d(layer.axis).tolist()]
    order = call.inputs[0].layout.order
    if len(axes) == 1:
        positions = _channel_positions(call, layer.axis, last=True)
        for tensor, variable in tensors.items():
            yield _permuted(variable, f"{name}.{tensor}", positions)
    elif axes == list(range(rank)) and order is not None:
        for tensor, variable in tensors.items():
            yield _transposed(variable, f"{name}.{tensor}", order)
    else:
        raise call.error("PyTorch may have the axes of the normalization in another order")


def _channel_positions(call: Call, axis: Any, last: bool = False) -> np.ndarray | None:
    """Positions in PyTorch of the features that are normalized; None if their order is the same.

    Args:
        call: Call of the normalization.
        axis: Axis of the features, with the batch axis counted, alone or in a list.
        last: Whether the features may also be in the last axis of an image that has the channels
            first.

    Raises:
        ValueError: If the axis is not that of the channels in PyTorch. Features of a sequence can
            be in either axis.
    """
    rank, layout = len(call.inputs[0].shape), call.inputs[0].layout
    axis = int(np.squeeze(axis))
    position = axis % (rank + 1) - 1
    channels = {rank - 1}
    if layout.order is not None and (rank > 2 or not layout.is_same):
        channels = {layout.order[0]} | ({rank - 1} if last else set())
    elif layout.is_same:
        channels = set(range(rank))
    if position not in channels:
        raise call.error(
            f"the axis of the normalization, {axis}, is not that of the channels, "
            f"{' or '.join(str(channel + 1) for channel in sorted(channels))}"
        )
    return call.permutation() if position == rank - 1 else None


# ------------------------------------------------------------------ recurrent layers


def _recurrent(call: Call, name: str) -> Iterator[Conversion]:
    layer = call.layer
    call.expect_same_order()
    if not isinstance(layer, _layers.Bidirectional):
        yield _one_direction(call, name, layer, "")
        return
    if layer.merge_mode != "concat":
        raise call.error("PyTorch concatenates both directions, as `merge_mode='concat'` does")
    forward, backward = layer.forward_layer, layer.backward_layer
    if type(forward) is not type(backward) or forward.units != backward.units:
        raise call.error("PyTorch's directions are layers of one kind with as many units")
    if forward.activation != backward.activation:
        raise call.error("PyTorch's directions have one activation")
    yield _one_direction(call, name, forward, "")
    yield _one_direction(call, name, backward, "_reverse")


def _one_direction(call: Call, name: str, layer: Any, direction: str) -> Conversion:
    """Conversion of one layer of a stack in one direction.

    Args:
        call: Call of the layer or of the `Bidirectional` around it.
        name: Name of the layer: `rnn2` is layer 1 of the PyTorch module `rnn`.
        layer: Recurrent layer of Keras.
        direction: Suffix of PyTorch's names, "" or "_reverse".
    """
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
    if not isinstance(layer, _RECURRENT_CELLS):
        raise call.error("it must be a SimpleRNN, an LSTM or a GRU")
    simple = isinstance(layer, _layers.SimpleRNN)
    settings = {"activation": ("tanh", "relu") if simple else ("tanh",)}
    if not simple:
        settings["recurrent_activation"] = ("sigmoid",)
    for setting, allowed in settings.items():
        function = getattr(layer, setting)
        if function not in [keras.activations.get(name) for name in allowed]:
            name = getattr(function, "__name__", type(function).__name__)
            raise call.error(
                f"PyTorch's has the {setting} {' or '.join(allowed)}. Its {setting} is {name}"
            )
    if layer.go_backwards != bool(direction):
        raise call.error(
            "its `go_backwards` gives the outputs from the last step to the first, as PyTorch's "
            "does not. `keras.layers.Bidirectional` has a layer of each direction"
        )
    if match is None or not layer.use_bias or not getattr(layer, "reset_after", True):
        raise call.error(
            "its name must hold its number in the stack, such as rnn1, and it must have biases "
            "and, as a GRU, `reset_after`"
        )
    module, level = match[1], int(match[2]) - 1
    tensors = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    names = [f"{module}.{tensor}_l{level}{direction}" for tensor in tensors]
    gru = isinstance(layer, _layers.GRU)

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
    return Conversion((cell.kernel, cell.recurrent_kernel, cell.bias), to_torch, from_torch)


# ------------------------------------------------------------------ transformer blocks


def _transformer_block(call: Call, name: str) -> Iterator[Conversion]:
    """`nn.TransformerEncoderLayer`, or `nn.TransformerDecoderLayer` with cross-attention."""
    layer = call.layer
    config = layer.get_config()
    if (
        config["norm"] != "layer_norm"
        or config["activation"] == "swiglu"
        or config["rotary_base"] is not None
        or config["num_kv_heads"] not in (None, config["num_heads"])
        or not config["use_bias"]
        or config["attention_bias"] not in (None, True)
        or len(set(layer.attention.output_projection.kernel.shape)) > 1  # heads of another width
    ):
        raise call.error(
            "PyTorch's has layer normalization, two dense layers, biases, no rotary positions, no "
            "grouped queries and no `head_dim` of its own"
        )
    call.expect_same_order()
    yield from _attention(layer.attention, f"{name}.self_attn")
    norms = [layer.attention_norm, layer.feed_forward_norm]
    if layer.cross_attention is not None:
        yield from _attention(layer.cross_attention, f"{name}.multihead_attn")
        norms.insert(1, layer.cross_attention_norm)
    for number, dense in enumerate((layer.feed_forward.up, layer.feed_forward.down), 1):
        yield _transposed(dense.kernel, f"{name}.linear{number}.weight", (1, 0))
        yield _single(dense.bias, f"{name}.linear{number}.bias")
    for number, norm in enumerate(norms, 1):
        yield _single(norm.gamma, f"{name}.norm{number}.weight")
        yield _single(norm.beta, f"{name}.norm{number}.bias")


def _attention(layer: Attention, name: str) -> Iterator[Conversion]:
    """`nn.MultiheadAttention`, which joins the kernels of query, key and value."""
    projections = layer.query_projection, layer.key_projection, layer.value_projection

    def joined(variables: list[Any], name: str, transpose: ArrayFunction) -> Conversion:
        return Conversion(
            tuple(variables),
            lambda *arrays: {name: np.concatenate([transpose(array) for array in arrays])},
            lambda array: tuple(transpose(part) for part in np.split(array, 3)),
        )

    yield joined([p.kernel for p in projections], f"{name}.in_proj_weight", np.transpose)
    yield joined([p.bias for p in projections], f"{name}.in_proj_bias", _identity)
    yield _transposed(layer.output_projection.kernel, f"{name}.out_proj.weight", (1, 0))
    yield _single(layer.output_projection.bias, f"{name}.out_proj.bias")


_CONVERSIONS: tuple[tuple[Any, Callable[[Call, str], Iterator[Conversion]]], ...] = (
    (_layers.Dense, _dense),
    ((_layers.DepthwiseConv1D, _layers.DepthwiseConv2D), _depthwise_convolution),
    (CONVOLUTIONS, _convolution),
    (_layers.Embedding, _embedding),
    (Positions, _positions),
    (_layers.BatchNormalization, _batch_norm),
    (_layers.GroupNormalization, _group_norm),
    ((_layers.LayerNormalization, _layers.RMSNormalization), _layer_norm),
    (RECURRENT, _recurrent),
    (TransformerBlock, _transformer_block),
)
