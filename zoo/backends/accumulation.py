"""Gradient accumulation: a batch in parts, whose losses and gradients add up to those of the whole.

A loss of Keras is a sum over the examples, divided by their number or by the sum of their weights.
The loss of a batch is therefore the mean of the losses of its parts, each weighted by its divisor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops
from keras.src.losses import loss as keras_losses

Tensor = Any


def part_size(examples: Any, parts: int) -> Any:
    """Number of examples of each part of a batch; the last part may have fewer.

    Args:
        examples: Number of examples of the batch, an integer or integer scalar tensor.
        parts: Largest number of parts.
    """
    return -(-examples // parts)


def loss_dtype() -> str:
    """Dtype of a sum of losses: Keras' `floatx`, but at least float32."""
    return str(keras.backend.result_type(keras.config.floatx(), "float32"))


class Divisors:
    """What the losses of a part of a batch divide their sums by."""

    def __init__(self) -> None:
        self._sums_of_weights: list[Tensor | None] = []

    def add(self, sample_weight: Tensor, mask: Tensor, dtype: Any, reduction: str | None) -> None:
        """Adds the divisor of a loss, given the arguments of its reduction.

        Raises:
            ValueError: If the loss is no mean.
        """
        if reduction in ("sum", "none", None):
            raise ValueError(
                "A loss must be a mean over the examples where gradients are accumulated. "
                f"Received: reduction={reduction!r}. Use 'sum_over_batch_size' or "
                "'mean_with_sample_weight'"
            )
        weights = None if mask is None else ops.cast(mask, dtype)
        if reduction == "mean_with_sample_weight" and sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype)
            weights = keras_losses.apply_mask(sample_weight, weights, dtype, reduction)
        self._sums_of_weights.append(None if weights is None else ops.sum(weights))

    def weight(self, examples: Any) -> Tensor:
        """Weight of the part's loss in that of the batch, a scalar.

        Args:
            examples: Number of examples of the part.

        Raises:
            ValueError: If there are several losses and they divide by different numbers.
        """
        weighted = [divisor for divisor in self._sums_of_weights if divisor is not None]
        if not weighted:
            return ops.cast(examples, loss_dtype())
        if len(self._sums_of_weights) > 1:
            raise ValueError(
                "A model with several losses must divide each by the number of examples where "
                "gradients are accumulated. Received: a loss that divides by the sum of weights "
                "or by the number of unmasked values. Use reduction='sum_over_batch_size' without "
                "masks"
            )
        return ops.stop_gradient(ops.cast(weighted[0], loss_dtype()))


@contextmanager
def recorded_divisors() -> Iterator[Divisors]:
    """Context manager that records the divisors of all losses of Keras that are computed in it."""
    divisors = Divisors()
    reduce = keras_losses.reduce_weighted_values

    def recording(
        values: Tensor,
        sample_weight: Tensor = None,
        mask: Tensor = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> Tensor:
        divisors.add(sample_weight, mask, dtype or values.dtype, reduction)
        return reduce(values, sample_weight, mask, reduction, dtype)

    keras_losses.reduce_weighted_values = recording
    try:
        yield divisors
    finally:
        keras_losses.reduce_weighted_values = reduce
