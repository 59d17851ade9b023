"""Layers with weights of a model, with the layouts of what they read.

`trace` follows every tensor through the graph of the model, from the inputs to the layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from zoo.interop.pytorch.layout import (
    CONVOLUTIONS,
    KEEPING,
    RESHAPED_IMAGE,
    RESHAPING,
    Layout,
    Tensor,
    data_format,
    input_layout,
    is_image_layer,
    layout_after,
)

NO_GRAPH = (
    "`model` is subclassed, so that no graph tells {}. A functional model of the same layers, "
    "`keras.Model(inputs, outputs)`, can be converted"
)
_CUT_AXES = (
    "cuts or joins axes that PyTorch has in another order. A `keras.layers.Permute` before the "
    "reshape can give them PyTorch's order"
)
_PIXEL_SHUFFLE = (
    ". `nn.PixelShuffle(r)` is Reshape((h, w, c, r, r)), Permute((1, 4, 2, 5, 3)) and "
    "Reshape((r * h, r * w, c))"
)
_SHORTER_MODEL = (
    "The weights can be loaded into a model that ends before it, `keras.Model(inputs, x)`, since "
    "both models share the layers"
)


@dataclass(frozen=True)
class Call:
    """Call of a layer with weights in the graph of a model.

    Attributes:
        layer: The layer.
        path: Names of the nested models that hold the layer, and its own name.
        inputs: Tensors that the layer reads.
        has_graph: Whether the model has a graph, which tells the layers that made the inputs.
    """

    layer: Any
    path: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    has_graph: bool = True

    @property
    def name(self) -> str:
        """Path of the layer as PyTorch writes it, such as "encoder.conv1"."""
        return ".".join(self.path)

    def permutation(self, number: int = 0) -> np.ndarray | None:
        """Returns the position in PyTorch of each feature in the last axis of an input.

        Args:
            number: Number of the input.

        Returns:
            The positions; None if the features have the same order in both frameworks.

        Raises:
            ValueError: If the order cannot be told.
        """
        layout, shape = self.inputs[number].layout, self.inputs[number].shape
        if layout.order is not None or layout.whole:
            return None
        if layout.positions is None:
            raise self.error(layout.reason)
        if len(shape) == 1:
            return layout.positions
        if layout.has_whole_features:
            return None
        raise self.error(f"the last axis of what it reads, {shape}, {_CUT_AXES}")

    def expect_same_order(self) -> None:
        """Raises ValueError unless the features of all inputs have PyTorch's order."""
        for number in range(len(self.inputs)):
            if self.permutation(number) is not None:
                raise self.error(
                    "it reads a flattened image, whose features PyTorch has in another order"
                )

    def error(self, reason: str) -> ValueError:
        """Returns the error for a layer whose weights cannot be converted."""
        return ValueError(
            "`model` must have a counterpart in PyTorch for each layer with weights. Received: "
            f"{'/'.join(self.path)}, a {type(self.layer).__name__}, which cannot be converted: "
            f"{reason}"
        )


def trace(model: keras.Model) -> Iterator[Call]:
    """Yields the calls of all layers with weights, in the order of the computation.

    Args:
        model: Built model. A subclassed model has no graph. It is accepted if it has no images.

    Raises:
        ValueError: If a convolution reads an image that a reshape has made, or if a subclassed
            model has images. Behind the last call, if an output may have its elements in another
            order than PyTorch's.
    """
    model = _functional(model)
    if not _has_graph(model):
        yield from _calls_without_graph(model)
        return
    formats = list(_data_formats(model))
    inputs = []
    for tensor in model.inputs:
        shape = tuple(tensor.shape[1:])
        data_formats = {name for rank, name in formats if rank == len(shape)}
        inputs.append(Tensor(input_layout(shape, data_formats), shape))
    calls: list[Call] = []
    outputs = _trace(model, inputs, (), calls)
    yield from calls
    channels_first = any(name == "channels_first" for _, name in formats)
    for tensor, output in zip(model.outputs, outputs):
        reason = _output_fault(output, channels_first)
        if reason and calls:
            raise ValueError(
                "`model` must have outputs in PyTorch's order. Received: the output "
                f"{output.shape} of {tensor._keras_history.operation.name} in {model.name}, which "
                f"cannot be converted: {reason}"
            )


def _output_fault(output: Tensor, channels_first: bool) -> str:
    """Why an output may differ from PyTorch's by more than the order of axes; "" if it does not."""
    layout = output.layout
    if layout.has_known_axes(output.shape) or (layout.is_same and channels_first):
        return ""
    if layout.order is not None:
        return RESHAPED_IMAGE.format("that is the output")
    reason = layout.reason or f"it {_CUT_AXES}" + (_PIXEL_SHUFFLE if len(output.shape) == 3 else "")
    return f"{reason}. {_SHORTER_MODEL}"


def _functional(model: Any) -> Any:
    """The functional model inside a `keras.Sequential`; another layer as it is."""
    return getattr(model, "_functional", None) or model


def _has_graph(layer: Any) -> bool:
    """Whether a model computes what its graph says, with no `call` of its own."""
    is_subclassed = not type(layer).call.__module__.startswith("keras.")
    return hasattr(layer, "_nodes_by_depth") and not is_subclassed


def _nodes(model: Any) -> Iterator[Any]:
    """Calls of layers and operations in the graph, in the order of the computation."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def _data_formats(model: Any) -> Iterator[tuple[int, str]]:
    """Ranks of the images in a model, without the batch axis, and their data formats."""
    for node in _nodes(model):
        layer = _functional(node.operation)
        if _has_graph(layer):
            yield from _data_formats(layer)
        elif is_image_layer(layer) or (
            # The default of `Flatten` does not say how the image is laid out.
            isinstance(layer, keras.layers.Flatten) and layer.data_format == "channels_first"
        ):
            yield len(node.input_tensors[0].shape) - 1, data_format(layer)


def _trace(
    model: Any, inputs: Sequence[Tensor], path: tuple[str, ...], calls: list[Call]
) -> list[Tensor]:
    """Adds the calls of a functional model to `calls`, and returns the model's outputs."""
    tensors = {id(tensor): value for tensor, value in zip(model.inputs, inputs)}
    for node in _nodes(model):
        layer = _functional(node.operation)
        inner_path = (*path, node.operation.name)
        if _has_graph(layer):
            passed = [tensors[id(tensor)] for tensor in _passed_inputs(layer, node)]
            outputs = _trace(layer, passed, inner_path, calls)
        else:
            read = tuple(tensors[id(tensor)] for tensor in node.input_tensors)
            outputs = _outputs(layer, read, node.output_tensors)
            if getattr(layer, "weights", None):
                calls.append(Call(layer, inner_path, read))
                _check_image(calls[-1])
        tensors |= {id(tensor): value for tensor, value in zip(node.output_tensors, outputs)}
    return [tensors[id(tensor)] for tensor in model.outputs]


def _passed_inputs(model: Any, node: Any) -> list[Any]:
    """Tensors that a node passes to a nested model, in the order of the model's inputs."""
    first = node.arguments.args[0] if node.arguments.args else None
    if isinstance(first, dict):
        return [first[tensor.name] for tensor in model.inputs]
    return list(node.input_tensors)


def _outputs(layer: Any, read: Sequence[Tensor], outputs: Sequence[Any]) -> list[Tensor]:
    """Tensors that a layer or an operation computes."""
    is_transparent = isinstance(layer, KEEPING) and not layer.weights
    origin = read[0].layer if is_transparent else layer
    shapes = [tuple(tensor.shape[1:]) for tensor in outputs]
    return [Tensor(layout_after(layer, read, shape), shape, origin) for shape in shapes]


def _check_image(call: Call) -> None:
    """Raises ValueError if a convolution reads other pixels or channels than PyTorch's."""
    if isinstance(call.layer, CONVOLUTIONS):
        image = call.inputs[0]
        if not image.layout.is_image(image.shape, data_format(call.layer)):
            raise call.error(image.layout.reason or RESHAPED_IMAGE.format("that the layer reads"))


# ------------------------------------------------------------------ subclassed models


def _calls_without_graph(model: Any) -> Iterator[Call]:
    """Calls of a subclassed model, whose layers are assumed to read features in PyTorch's order.

    The assumption holds where there are no images.
    """
    leaves = list(_leaves(model, ()))
    ranks = _built_ranks(model)
    has_images = not ranks or max(ranks) > 3
    has_images = has_images or any(
        is_image_layer(layer) or isinstance(layer, RESHAPING) for layer, _ in leaves
    )
    for layer, path in leaves:
        ranks = _built_ranks(layer)
        inputs = [Tensor(Layout(None), (None,) * (rank - 1)) for rank in ranks or [2]]
        call = Call(layer, path, tuple(inputs), has_graph=False)
        if not layer.built:
            raise call.error("it has no weights yet. Call the model once")
        if not layer.weights:
            continue
        if has_images:
            raise call.error(
                NO_GRAPH.format(
                    "whether an image is flattened or reshaped, whose features have another order "
                    "in PyTorch"
                )
            )
        yield call


def _leaves(model: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Layers of a model and of the models in it, with their paths."""
    for layer in model.layers:
        inner_path = (*path, layer.name)
        if isinstance(layer, keras.Model):
            yield from _leaves(layer, inner_path)
        else:
            yield layer, inner_path


def _built_ranks(layer: Any) -> list[int]:
    """Ranks of the inputs for which a layer was built, with the batch axis."""

    def ranks(shapes: Any) -> Iterable[int]:
        if isinstance(shapes, dict):
            shapes = list(shapes.values())
        if isinstance(shapes, list | tuple):
            if all(size is None or isinstance(size, int) for size in shapes):
                yield len(shapes)
            else:
                for shape in shapes:
                    yield from ranks(shape)

    return list(ranks(getattr(layer, "_build_shapes_dict", None) or ()))
