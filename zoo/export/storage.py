"""Types in which a file stores weights: float32, float16, or int8 with scales.

The arithmetic stays float32: a file computes each weight from what it stores. An int8 weight is
rounded to 255 levels of each row or column, with the scale of its largest magnitude.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from zoo.backends.exporting import Stored

WeightDType = Literal["float32", "float16", "int8"]

DTYPES: tuple[WeightDType, ...] = get_args(WeightDType)
# Largest relative change of outputs and metrics by the rounding. Measured over models of the zoo in
# float16: outputs by 5e-4. In int8: outputs by 2e-2, with LiteRT's own by 3.4e-2, and metrics by
# 6e-3, with LiteRT's own by 1.8e-2, the loss of a classifier that is nearly always right.
TOLERANCES: dict[str, float] = {"float16": 2e-3, "int8": 0.1}
METRIC_TOLERANCE = 1e-3  # without rounding; on another processor, a sum may round otherwise

_LEVELS = 127
_SMALLEST = 256  # numbers of a weight in int8; below, a scale for each row saves nothing


def store(weights: Iterable[np.ndarray], paths: Sequence[str], dtype: WeightDType) -> list[Stored]:
    """Rounds weights to the type in which a file stores them.

    Args:
        weights: Weights of a model. Integers stay as they are, with int8 also vectors and small
            matrices.
        paths: Path of each weight, for error messages.
        dtype: Type of the stored numbers.

    Raises:
        ValueError: If a weight is not finite in float16.
    """
    return [_store(weight, path, dtype) for weight, path in zip(weights, paths, strict=True)]


def _store(weight: np.ndarray, path: str, dtype: WeightDType) -> Stored:
    if weight.dtype.kind != "f" or dtype == "float32":
        return Stored(weight)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            values = weight.astype(np.float16)
        if not np.isfinite(values).all():
            raise ValueError(
                "`dtype` must be one in which all weights are finite. Received: dtype='float16', "
                f"but {path} has values up to {np.abs(weight).max():g}. Choose float32"
            )
        return Stored(values)
    if weight.ndim < 2 or weight.size < _SMALLEST:
        return Stored(weight)
    candidates = [_quantized(weight, axis) for axis in (0, weight.ndim - 1)]
    return min(candidates, key=lambda s: float(np.square(s.unpacked() - weight).sum()))


def _quantized(weight: np.ndarray, axis: int) -> Stored:
    """8-bit integers, with a scale for each index of an axis."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / _LEVELS
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return Stored(np.round(weight / scale).astype(np.int8), scale)
