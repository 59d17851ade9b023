"""Keras' losses of a batch whose rows are spread over the workers of a cluster."""

from collections.abc import Callable
from typing import Any

from keras import ops
from keras.src.losses import loss as keras_losses

Tensor = Any


def use_global_divisors(
    sum_over_workers: Callable[[Tensor], Tensor], counts: Callable[[], Any] = lambda: 1.0
) -> None:
    """Makes every loss of Keras divide by what one process would divide the whole batch by.

    A loss of Keras is a sum over its values, divided by their number or by the sum of their
    weights. Each worker then has its share of the loss of the whole batch: the shares add up to
    that loss, and their gradients to its gradient.

    Args:
        sum_over_workers: Function that adds a scalar tensor over the workers. It needs no
            gradient.
        counts: Function that returns 0 where this worker's rows only stand in for missing ones,
            else 1.
    """
    reduce = keras_losses.reduce_weighted_values
    if hasattr(reduce, "of_one_process"):
        reduce = reduce.of_one_process

    def reduce_share(
        values: Tensor,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> Tensor:
        values = ops.convert_to_tensor(values, dtype=dtype)
        if not values.shape:
            raise ValueError(
                "A loss must return a value for each example where several workers train. "
                "Received: a scalar. Return the values, and let `reduction` reduce them"
            )
        if reduction in (None, "none"):
            return reduce(values, sample_weight, mask, reduction, dtype) * counts()
        total = reduce(values, sample_weight, mask, "sum", dtype) * counts()
        if reduction == "sum":
            return total
        if reduction == "mean_with_sample_weight" and (sample_weight, mask) != (None, None):
            weights = keras_losses.apply_mask(sample_weight, mask, values.dtype, "sum")
            divisor = ops.sum(weights)
        elif mask is None:
            divisor = ops.size(values)
        else:  # Keras divides by the number of values that the mask keeps
            divisor = ops.sum(ops.cast(mask, total.dtype))
            divisor = divisor * (ops.size(values) / ops.size(mask))
        divisor = ops.stop_gradient(ops.cast(divisor, total.dtype)) * counts()
        return ops.divide_no_nan(total, sum_over_workers(divisor))

    reduce_share.of_one_process = reduce  # type: ignore[attr-defined]
    keras_losses.reduce_weighted_values = reduce_share


def use_own_divisors() -> None:
    """Makes the losses of Keras again those of one process."""
    reduce = keras_losses.reduce_weighted_values
    keras_losses.reduce_weighted_values = getattr(reduce, "of_one_process", reduce)
