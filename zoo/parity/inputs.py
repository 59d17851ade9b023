"""Inputs of the model under test: specifications, from the model or the user, and random arrays."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import keras
import numpy as np
from keras import tree

from zoo import random
from zoo.validation import Number, Size, each, validated, whole

_FORM = re.compile(
    r"((?P<name>[^:\[\]]+):)?(?P<dtype>[a-z]+[0-9]*)"
    r"(\[(?P<low>-?[0-9.]+),(?P<high>-?[0-9.]+)\))?:(?P<shape>[0-9,]*)"
)


@validated
@dataclass(frozen=True)
class InputSpec:
    """Shape, dtype and range of a model's input, from which random inputs are drawn.

    Attributes:
        shape: Shape of one example. A size of None is that of `Case.length`.
        dtype: Name of the dtype, such as "float32" or "int32".
        low: Smallest number, or None.
        high: Number that all numbers are below, or None. Without `low` and `high`, floats are
            drawn from the normal distribution, integers are 0 or 1.
        batch: Batch size that the model prescribes, or None.
    """

    shape: Annotated[tuple[int | None, ...], each(whole().or_none())]
    dtype: str = "float32"
    low: Number | None = None
    high: Number | None = None
    batch: Size | None = None

    def __post_init__(self) -> None:
        try:
            keras.backend.standardize_dtype(self.dtype)
        except ValueError:
            raise ValueError(
                "`dtype` must be one that Keras knows, such as float32 or int32. "
                f"Received: dtype={self.dtype!r}"
            ) from None
        without_limits = self.low is None and self.high is None
        if not without_limits and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError(
                "`low` must be below `high`, or neither is given. "
                f"Received: low={self.low}, high={self.high}"
            )

    @staticmethod
    def parse(text: str) -> "tuple[str, InputSpec]":
        """Parses "name:dtype[low,high):sizes", of which name and range may be missing.

        Returns:
            The name, or an empty text, and the specification.

        Raises:
            ValueError: If the text has another form or its dtype is unknown.
        """
        match = _FORM.fullmatch(text)
        if not match:
            raise ValueError(
                "`input` must be dtype:sizes, name:dtype:sizes or name:dtype[low,high):sizes, such "
                f"as ids:int32[0,1000):16. Received: input={text}"
            )
        shape = tuple(int(size) for size in match["shape"].split(",") if size)
        low, high = (None if match[key] is None else float(match[key]) for key in ("low", "high"))
        return match["name"] or "", InputSpec(shape, match["dtype"], low, high)

    @property
    def is_integer(self) -> bool:
        return self.dtype == "bool" or "int" in self.dtype

    @property
    def is_image(self) -> bool:
        """Whether an example is (H, W, 1) or (H, W, 3) in floats."""
        channels = self.shape[-1] if len(self.shape) == 3 else None
        return "float" in self.dtype and self.low is None and channels in (1, 3)

    def full_shape(self, examples: int, length: int) -> tuple[int, ...]:
        """Shape of a batch."""
        return self.batch or examples, *(length if size is None else size for size in self.shape)

    def draw(self, key: random.Key, shape: tuple[int, ...]) -> np.ndarray:
        """Random numbers, the same on every backend."""
        if self.is_integer:
            low, high = (0, 2) if self.low is None or self.high is None else (self.low, self.high)
            integers = low + np.floor(random.uniform(key, shape) * (high - low))
            if (low, high) == (0, 2) and len(shape) > 1:
                integers[:, 0] = 1  # a padding mask never hides everything
            return np.asarray(integers.astype(np.int32).astype(self.dtype))
        if self.low is None or self.high is None:
            return np.asarray(random.normal(key, shape))
        return np.asarray(random.uniform(key, shape, self.low, self.high))


def input_specs(model: keras.Model, given: Any, input_shape: Sequence[int] | None) -> Any:
    """Specifications of a model's inputs, nested as the model takes them.

    Args:
        model: Model, which may define its inputs.
        given: Specifications of the user: one, a list in the order of the model's inputs, or a
            dict by their names; None for those that the model defines.
        input_shape: Shape of one example, for a model that does not define its inputs.

    Raises:
        ValueError: If the specifications do not fit the model's inputs, or there are none.
    """
    declared = _declared(model)
    if declared is None:
        if given is not None:
            return given
        if input_shape is not None:
            return InputSpec(tuple(input_shape))
        raise ValueError(
            "The model does not define its inputs. Give `input_shape`, the shape of one example, "
            "or `inputs`; on the command line `--input-shape 32,32,3`, or `--input "
            f"int32[0,1000):16` for tokens. Received: {model.name} without either"
        )
    tensors = tree.flatten(declared)
    specs = [_of_tensor(model, tensor) for tensor in tensors]
    if given is None:
        return tree.pack_sequence_as(declared, specs)
    names = [tensor.name for tensor in tensors]
    chosen = given if isinstance(given, Mapping) else dict(zip(names, tree.flatten(given)))
    fits = isinstance(given, Mapping) or len(tree.flatten(given)) == len(names)
    if not fits or not set(chosen) <= set(names):
        received = ", ".join(given) if isinstance(given, Mapping) else len(tree.flatten(given))
        raise ValueError(
            f"`inputs` must be those of the model: {', '.join(names)}. Received: {received}"
        )
    specs = [
        _merged(name, spec, chosen.get(name, spec)) for name, spec in zip(names, specs, strict=True)
    ]
    return tree.pack_sequence_as(declared, specs)


def _declared(model: keras.Model) -> Any:
    if isinstance(model, keras.Sequential):
        return model.inputs[0] if model.built else None
    return getattr(model, "input", None)


def _of_tensor(model: keras.Model, tensor: keras.KerasTensor) -> InputSpec:
    batch, *shape = tensor.shape
    spec = InputSpec(tuple(shape), keras.backend.standardize_dtype(tensor.dtype), batch=batch)
    size = _vocabulary_size(model, tensor)
    if size is None:
        return dataclasses.replace(spec, low=0, high=2) if spec.is_integer else spec
    return dataclasses.replace(spec, low=0, high=size)  # floats, too, which the layer casts


def _merged(name: str, declared: InputSpec, given: InputSpec) -> InputSpec:
    """The user's specification of an input that the model defines."""
    if len(given.shape) != len(declared.shape) or any(
        size not in (None, wanted) for size, wanted in zip(declared.shape, given.shape)
    ):
        raise ValueError(
            f"The shape of the input {name} must be {declared.shape}. Received: {given.shape}"
        )
    if given.dtype != "float32" and given.is_integer != declared.is_integer:  # the default
        raise ValueError(
            f"The dtype of the input {name} must be {declared.dtype}, as the model defines it. "
            f"Received: {given.dtype}"
        )
    limits = declared if given.low is None else given
    return InputSpec(given.shape, declared.dtype, limits.low, limits.high, declared.batch)


def _vocabulary_size(model: keras.Model, tensor: keras.KerasTensor) -> int | None:
    """The rows of the smallest embedding that the input goes straight into, else None."""
    sizes = [
        layer.input_dim
        for operation in getattr(getattr(model, "_functional", model), "operations", [])
        for node in operation._inbound_nodes
        if any(x is tensor for x in node.input_tensors)
        and isinstance(operation, keras.layers.Layer)
        for layer in operation._flatten_layers(include_self=True)
        if isinstance(layer, keras.layers.Embedding)
    ]
    return min(sizes, default=None)
