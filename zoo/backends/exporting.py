"""Export of models to files: the switch that fast paths ask, and the description of a file."""

import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

_EXAMPLE = 20  # size of the first dynamic axis while a model is traced

_exporting = contextvars.ContextVar("_exporting", default=False)


def is_exporting() -> bool:
    """Whether a model is being traced for a file.

    Sizes are then symbolic, so that code must not compare them, and all operations must exist in
    the file's format: fast paths, checks of values and captured graphs are left out.
    """
    return _exporting.get()


@contextmanager
def exporting() -> Iterator[None]:
    """Context manager in which a model is traced for a file."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


@dataclass(frozen=True)
class Axes:
    """Dtype and axes of an input.

    Attributes:
        dtype: Name of the dtype, such as "float32".
        shape: Sizes; the name of a dynamic axis in place of its size, "batch" first.
    """

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Stored:
    """Weight as a file stores it.

    Attributes:
        values: Numbers of the weight's shape, in the type of the file.
        scale: float32 factors, one for each index of an axis, of 8-bit numbers.
    """

    values: np.ndarray
    scale: np.ndarray | None = None

    def unpacked(self) -> np.ndarray:
        """The weight that a file computes."""
        if self.values.dtype.kind == "f":
            return self.values.astype(np.float32)
        return self.values if self.scale is None else self.values.astype(np.float32) * self.scale


@dataclass(frozen=True)
class Graph:
    """A model as one function, with what a file says about it.

    Attributes:
        model: Built model.
        function: Function from the tensors of the inputs, in order, to a list of outputs.
        inputs: Dtype and axes of each input by its name, in order.
        outputs: Names of the outputs, in order.
        limits: Largest size of a dynamic axis by its name, where the model has one.
        metadata: Texts by key that the file holds, where its format has a place.
        dtype: Type in which the file stores the weights: "float32", "float16" or "int8".
        stored: The model's weights as the file stores them; empty for float32.
    """

    model: Any
    function: Callable[..., list[Any]]
    inputs: Mapping[str, Axes]
    outputs: tuple[str, ...]
    limits: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    stored: Sequence[Stored] = ()

    @property
    def axes(self) -> list[str]:
        """Names of the dynamic axes, in order."""
        shapes = [spec.shape for spec in self.inputs.values()]
        return list(dict.fromkeys(s for shape in shapes for s in shape if isinstance(s, str)))

    def example(self) -> list[np.ndarray]:
        """Inputs to trace with: zeros, whose dynamic axes have different sizes.

        A size of 1, also behind a convolution, would be taken for one that broadcasts.
        """
        sizes = {
            axis: min(_EXAMPLE + number, self.limits.get(axis, _EXAMPLE + number))
            for number, axis in enumerate(self.axes)
        }
        return [
            np.zeros([sizes[s] if isinstance(s, str) else s for s in spec.shape], spec.dtype)
            for spec in self.inputs.values()
        ]

    def stored_arrays(self) -> list[np.ndarray]:
        """Arrays that a file holds in place of the weights: the values, each before its scale."""
        pairs = ((stored.values, stored.scale) for stored in self.stored)
        return [array for pair in pairs for array in pair if array is not None]

    def weights_scope(self, tensors: Sequence[Any]) -> AbstractContextManager[Any]:
        """Context in which the model's weights are computed from tensors of `stored_arrays`."""
        if not self.stored:
            return nullcontext()
        remaining = iter(tensors)
        mapping = []
        for variable, stored in zip(self.model.weights, self.stored, strict=True):
            value = ops.cast(next(remaining), variable.dtype)
            mapping.append((variable, value if stored.scale is None else value * next(remaining)))
        scope: AbstractContextManager[Any] = keras.StatelessScope(state_mapping=mapping)
        return scope
