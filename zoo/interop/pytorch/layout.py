"""Layouts of tensors, compared with PyTorch's, and the rules by which layers change them.

A convolution of Keras has the channels in the last axis and one of PyTorch in the first, so that a
flattened image has another order of features. Reshaping layers are applied to the positions that
the features have in PyTorch's tensor, which gives the order of the features behind them.

The counterpart in PyTorch is assumed to have the same layers in PyTorch's manner: images are
(channels, height, width), sequences are (steps, features), and `torch.flatten` stands where the
Keras model flattens features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from zoo import random
from zoo.layers import image
from zoo.layers.attention import Positions
from zoo.layers.transformer_block import TransformerBlock

Shape = tuple[int | None, ...]

_MAX_FEATURES = 2**24  # of a tensor whose positions are followed: 64 MB
RESHAPED_IMAGE = (
    "a reshape makes the image {}, and `Tensor.view` in PyTorch makes one with the channels first. "
    "`keras.layers.Reshape((channels, height, width))` and "
    "`keras.layers.Permute((2, 3, 1))` do the same in Keras"
)


@dataclass(frozen=True)
class Layout:
    """Layout of a tensor, without the batch axis, compared with its counterpart in PyTorch.

    Attributes:
        order: Axes of the Keras tensor in PyTorch's order, such as (2, 0, 1) for an image (height,
            width, channels) in Keras; None if the tensors do not differ by the order of axes alone.
        whole: Whether each axis is one axis in PyTorch, too. A reshape cuts and joins axes.
        positions: Position of each element in PyTorch's flattened tensor, if `order` is None and
            the positions are known.
        reason: Why neither `order` nor `positions` is known.
    """

    order: tuple[int, ...] | None
    whole: bool = True
    positions: np.ndarray | None = None
    reason: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the order of the features is known."""
        return self.order is not None or self.positions is not None

    @property
    def is_same(self) -> bool:
        """Whether the tensor has one shape and order in both frameworks."""
        return self.order is not None and self.order == tuple(range(len(self.order)))

    @property
    def has_whole_features(self) -> bool:
        """Whether the last axis is one axis in PyTorch: the channels of an image or its last axis.

        Only the other axes are cut, moved or joined then, such as by a division into patches.
        """
        if self.positions is None:
            return False
        number = self.positions.shape[-1]
        features = np.arange(number)
        as_channels = self.positions // (self.positions.size // number)
        return bool((as_channels == features).all() or (self.positions % number == features).all())

    def has_known_axes(self, shape: Shape) -> bool:
        """Whether PyTorch has the elements of each axis in one axis, in the same order.

        In PyTorch the channels come before the pixels, whatever a reshape has made of each.
        """
        if self.whole or self.has_whole_features:
            return True
        if self.order is None:
            return False
        rank, first = len(shape), self.order[0]
        moves_channels = first > 0 and self.order == (*range(first, rank), *range(first))
        return rank < 3 or moves_channels or self.is_image(shape, "channels_last")

    def positions_in(self, shape: Shape) -> np.ndarray | None:
        """Positions of the elements in PyTorch's flattened tensor; None if they are unknown."""
        if self.positions is not None or self.order is None:
            return self.positions
        sizes = [size for size in shape if size is not None]
        if len(sizes) < len(shape) or math.prod(sizes) > _MAX_FEATURES:
            return None
        positions = np.arange(math.prod(sizes), dtype=np.int32)
        positions = positions.reshape([sizes[axis] for axis in self.order])
        return positions.transpose(np.argsort(self.order))

    def is_image(self, shape: Shape, data_format: str) -> bool:
        """Whether a convolution reads the pixels and channels that PyTorch's convolution reads."""
        expected = by_format(data_format, len(shape))
        if self.whole or self.order == expected.order:
            return True
        return _equal(self.positions_in(shape), expected.positions_in(shape))


@dataclass(frozen=True)
class Tensor:
    """Tensor of the graph: its layout, its shape without the batch axis, and its origin.

    Attributes:
        layout: Layout of the tensor.
        shape: Shape of the tensor.
        layer: Layer that computed the tensor, past dropout and other layers without weights that
            keep the layout; None for an input.
    """

    layout: Layout
    shape: Shape
    layer: Any = None


def same(rank: int, whole: bool = True) -> Layout:
    """Returns the layout of a tensor that is the same in both frameworks."""
    return Layout(tuple(range(rank)), whole)


def by_format(data_format: str, rank: int) -> Layout:
    """Returns the layout of an image in a data format, "channels_last" or "channels_first"."""
    if data_format == "channels_first":
        return same(rank)
    return Layout((rank - 1, *range(rank - 1)))


def input_layout(shape: Shape, data_formats: set[str]) -> Layout:
    """Returns the layout of an input: images are (channels, height, width) in PyTorch.

    Args:
        shape: Shape of the input.
        data_formats: Data formats of the model's layers for images of this rank.
    """
    rank = len(shape)
    if data_formats == {"channels_first"} or rank < 2 or (rank == 2 and not data_formats):
        return same(rank)
    if rank > 2 and len(data_formats) < 2:
        return by_format("channels_last", rank)
    reason = f"the axes of the input {shape} may have either order in PyTorch"
    return Layout(None, reason=reason)


# ------------------------------------------------------------------ layers

_layers = keras.layers
CONVOLUTIONS = (
    _layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Conv1DTranspose,
    _layers.Conv2DTranspose, _layers.Conv3DTranspose, _layers.DepthwiseConv1D,
    _layers.DepthwiseConv2D,
)  # fmt: skip
NORMALIZATIONS = (
    _layers.BatchNormalization, _layers.LayerNormalization, _layers.GroupNormalization,
    _layers.RMSNormalization,
)  # fmt: skip
RECURRENT = _layers.SimpleRNN, _layers.LSTM, _layers.GRU, _layers.Bidirectional
_GLOBAL_POOLING = (
    _layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D, _layers.GlobalAveragePooling3D,
    _layers.GlobalMaxPooling1D, _layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling3D,
)  # fmt: skip
# Image layers without a `data_format`: the channels are last.
_CHANNELS_LAST = (
    _layers.UpSampling1D, _layers.ZeroPadding1D, _layers.Cropping1D, image.Downsample,
    image.Upsample,
)  # fmt: skip
RESHAPING = _layers.Flatten, _layers.Reshape, _layers.Permute, image.Flatten
_MERGING = (
    _layers.Add, _layers.Subtract, _layers.Multiply, _layers.Average, _layers.Maximum,
    _layers.Minimum,
)  # fmt: skip
# Layers whose output has the layout of their first input. The residual connections of a
# transformer block keep the layout, too.
KEEPING = (
    *NORMALIZATIONS, TransformerBlock, Positions, random.Dropout, _layers.Activation, _layers.ReLU,
    _layers.LeakyReLU, _layers.ELU, _layers.Softmax, _layers.Dropout, _layers.SpatialDropout1D,
    _layers.SpatialDropout2D, _layers.SpatialDropout3D, _layers.AlphaDropout,
    _layers.GaussianDropout, _layers.GaussianNoise, _layers.ActivityRegularization,
    _layers.Rescaling, _layers.Identity, _layers.Masking,
)  # fmt: skip
# Operations of `keras.ops`, which have no public classes.
_KEEPING_OPERATIONS = {
    "Abs", "Cast", "Celu", "Clip", "Elu", "Exp", "Gelu", "HardSigmoid", "HardSilu", "HardTanh",
    "LeakyRelu", "LogSigmoid", "Negative", "Relu", "Relu6", "Selu", "Sigmoid", "Silu", "Softplus",
    "Softsign", "Sqrt", "Square", "Tanh",
}  # fmt: skip
_MERGING_OPERATIONS = {"Add", "Divide", "Maximum", "Minimum", "Multiply", "Subtract", "TrueDivide"}
# Operations that shorten, lengthen or remove axes.
_AXIS_OPERATIONS = {"Argmax", "Flip", "GetItem", "Max", "Mean", "Min", "Pad", "Split", "Sum"}
_RESHAPING_OPERATIONS = {"ExpandDims", "Reshape", "Squeeze", "Transpose"}


def is_image_layer(layer: Any) -> bool:
    """Whether a layer reads images: a convolution, pooling, padding, resizing."""
    if isinstance(layer, (*KEEPING, *RESHAPING)):
        return False
    kind = next(c for c in type(layer).__mro__ if c.__module__.startswith("keras."))
    has_format = hasattr(layer, "data_format") and kind is not _layers.Layer  # of unknown meaning
    return has_format or isinstance(layer, _CHANNELS_LAST)


def data_format(layer: Any) -> str:
    """Returns the data format of an image layer, "channels_last" or "channels_first"."""
    return getattr(layer, "data_format", "channels_last")


def layout_after(operation: Any, inputs: Sequence[Tensor], shape: Shape) -> Layout:
    """Returns the layout of an output of a layer or an operation of `keras.ops`.

    Args:
        operation: The layer or operation.
        inputs: Its input tensors.
        shape: Shape of the output.
    """
    kind = type(operation).__name__
    function = "" if isinstance(operation, _layers.Layer) else kind  # of `keras.ops`
    rank = len(shape)
    layouts = [tensor.layout for tensor in inputs]
    if isinstance(operation, KEEPING) or (function in _KEEPING_OPERATIONS and len(inputs) == 1):
        return layouts[0]
    keeps_rank = rank == len(inputs[0].shape)
    if is_image_layer(operation) and (keeps_rank or isinstance(operation, _GLOBAL_POOLING)):
        if layouts[0].is_image(inputs[0].shape, data_format(operation)):
            return same(1) if rank == 1 else by_format(data_format(operation), rank)
        reason = layouts[0].reason or RESHAPED_IMAGE.format(f"that {operation.name} reads")
        return Layout(None, whole=False, reason=reason)
    if function in _AXIS_OPERATIONS and layouts[0].whole:
        if rank == 1 or layouts[0].is_same:
            return same(rank)
        if keeps_rank and function != "GetItem":
            return layouts[0]
        return Layout(None, reason=f"{operation.name} may give either order in PyTorch")
    if isinstance(operation, RECURRENT):
        return same(rank)
    if isinstance(operation, _layers.Permute) and layouts[0].order is not None:
        axes = [axis - 1 for axis in operation.dims]
        return Layout(tuple(axes.index(axis) for axis in layouts[0].order), layouts[0].whole)
    if isinstance(operation, RESHAPING) or function in _RESHAPING_OPERATIONS:
        return _reshaped(operation, inputs[0], rank)
    if isinstance(operation, _MERGING) or function in _MERGING_OPERATIONS:
        return _merged(operation, inputs, shape)
    if isinstance(operation, _layers.Concatenate) or function == "Concatenate":
        return _concatenated(operation, inputs, rank)
    reads_features = isinstance(operation, _layers.Dense | _layers.Embedding)  # in the last axis
    if rank == 1 and reads_features:
        return same(1)
    if all(layout.is_same for layout in layouts):  # PyTorch computes the same from the same tensors
        keeps_shape = shape == inputs[0].shape and layouts[0].whole
        return same(rank, rank == 1 or keeps_shape or reads_features)
    reason = f"the layer {operation.name}, a {kind}, may give either order in PyTorch"
    keeps_axes = reads_features or shape == inputs[0].shape
    return Layout(
        None, keeps_axes and all(t.layout.has_known_axes(t.shape) for t in inputs), reason=reason
    )


def _reshaped(operation: Any, tensor: Tensor, rank: int) -> Layout:
    """Layout after a reshape or transposition, which is applied to the positions themselves."""
    layout = tensor.layout
    positions = layout.positions_in(tensor.shape)
    if positions is None:
        transposes = type(operation).__name__ == "Transpose" or (
            data_format(operation) == "channels_first" and len(tensor.shape) > 1
        )
        if layout.is_same and not transposes:
            return same(rank, whole=False)
        reason = layout.reason or f"the sizes of the inputs of {operation.name} are not all known"
        return Layout(None, whole=False, reason=reason)
    positions = np.asarray(keras.ops.convert_to_numpy(operation(positions[None])))[0]
    return _simplified(positions)


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)


def _simplified(positions: np.ndarray) -> Layout:
    """Layout of known positions. An image of one pixel or channel has either order."""
    rank = positions.ndim
    first = np.zeros((rank, rank), np.intp)
    np.fill_diagonal(first, [min(1, size - 1) for size in positions.shape])
    strides = positions[tuple(first.T)]  # of each axis, where it has more than one element
    orders = [same(rank, whole=False), by_format("channels_last", rank)]
    orders = orders[::-1] if rank > 2 else orders
    orders.append(Layout(tuple(int(axis) for axis in np.argsort(-strides, kind="stable"))))
    for layout in orders:
        if _equal(positions, layout.positions_in(positions.shape)):
            return Layout(layout.order, whole=False)
    for order in ((2, 0, 1), (0, 1, 2)) if rank == 3 else ():
        if _is_pixel_shuffle(positions.transpose(order)):
            return Layout(order, whole=False)
    return Layout(None, whole=False, positions=positions)


def _is_pixel_shuffle(positions: np.ndarray) -> bool:
    """Whether an image (channels, height, width) is what `nn.PixelShuffle` makes of an image."""
    channels, height, width = positions.shape
    for factor in range(2, min(height, width) + 1):
        if height % factor == width % factor == 0:
            shape = channels, factor, factor, height // factor, width // factor
            blocks = np.arange(positions.size).reshape(shape)
            if _equal(blocks.transpose(0, 3, 1, 4, 2).reshape(positions.shape), positions):
                return True
    return False


def _merged(operation: Any, inputs: Sequence[Tensor], shape: Shape) -> Layout:
    """Layout of an elementwise combination, whose inputs have one layout in PyTorch, too."""
    full = [t for t in inputs if t.shape == shape and t.layout.is_known]
    broadcast = [t.layout for t in inputs if t.shape != shape]
    whole = any(tensor.layout.whole for tensor in full)
    if full and all(layout.order is not None or layout.whole for layout in broadcast):
        first = full[0].layout
        arrays = [tensor.layout.positions_in(shape) for tensor in full]
        if all(tensor.layout.order == first.order is not None for tensor in full) or all(
            _equal(array, arrays[0]) for array in arrays
        ):
            return Layout(first.order, whole, first.positions)
    if all(tensor.layout.is_same for tensor in inputs):
        return same(len(shape), all(tensor.layout.whole for tensor in inputs))
    return _different(operation, inputs)


def _different(operation: Any, inputs: Sequence[Tensor]) -> Layout:
    reason = f"the inputs of {operation.name} have different or unknown orders of features"
    return Layout(None, all(tensor.layout.whole for tensor in inputs), reason=reason)


def _concatenated(operation: Any, inputs: Sequence[Tensor], rank: int) -> Layout:
    """Layout of joined tensors: images with joined axes, or features one behind the other."""
    layouts = [tensor.layout for tensor in inputs]
    if rank > 1:
        orders = {layout.order for layout in layouts if layout.is_known}
        whole = all(layout.whole for layout in layouts)
        is_clear = whole or all(layout.is_known for layout in layouts)
        if is_clear and len(orders) == 1 and None not in orders:
            return Layout(orders.pop(), whole)
        return _different(operation, inputs)
    if all(layout.is_same for layout in layouts):
        return same(1)
    parts = [tensor.layout.positions_in(tensor.shape) for tensor in inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return _different(operation, inputs)
    starts = np.cumsum([0, *map(len, known)])
    return _simplified(np.concatenate([part + start for part, start in zip(known, starts)]))
