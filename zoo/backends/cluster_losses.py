"""Keras' losses of a batch whose rows are spread over the workers of a cluster."""

from collections.abc import Callable
from typing import Any

from keras import ops
from keras.src.losses import loss as keras_losses

from zoo.backends import cluster_parts

Tensor = Any


def use_global_divisors(sum_over_workers: Callable[[Tensor], Tensor]) -> None:
    """Makes every loss of Keras divide by what one process would divide the whole batch by.

    A loss of Keras is a sum over its values, divided by their number or by the sum of their
    weights. Each worker then has its share of the loss of the whole batch: the shares add up to
    that loss, and their gradients to its gradient. Losses that are computed outside of
    `cluster_parts.computing` stay as they are.

    Args:
        sum_over_workers: Function that adds a scalar tensor over the workers. It needs no
            gradient.
    """
    use_own_divisors()
    reduce = keras_losses.reduce_weighted_values

    def reduce_share(
        values: Tensor,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> Tensor:
        part = cluster_parts.current()
        if part is None:
            return reduce(values, sample_weight, mask, reduction, dtype)
        values = ops.convert_to_tensor(values, dtype=dtype)
        if len(values.shape) == 0:
            raise ValueError(
                "A loss must return a value for each example where several workers train. "
                "Received: a scalar. Return the values, and let `reduction` reduce them"
            )
        if reduction in (None, "none"):
            return part.counted(reduce(values, sample_weight, mask, reduction, dtype))
        total = part.counted(reduce(values, sample_weight, mask, "sum", dtype))
        if reduction == "sum":
            return total

        def whole(divisor: Tensor) -> Tensor:
            return sum_over_workers(part.counted(ops.stop_gradient(ops.cast(divisor, total.dtype))))

        is_weighted = sample_weight is not None or mask is not None
        if reduction == "mean_with_sample_weight" and is_weighted:
            weights = keras_losses.apply_mask(sample_weight, mask, values.dtype, "sum")
            divisor = whole(ops.sum(weights))
        elif mask is None:
            divisor = ops.cast(ops.size(values) // part.rows * part.total, total.dtype)
        else:  # Keras divides by the number of values that the mask keeps
            divisor = whole(ops.sum(ops.cast(mask, total.dtype)))
            divisor = divisor * (ops.size(values) / ops.size(mask))
        return ops.divide_no_nan(total, divisor)

    reduce_share.of_one_process = reduce  # type: ignore[attr-defined]
    keras_losses.reduce_weighted_values = reduce_share


def use_own_divisors() -> None:
    """Makes the losses of Keras again those of one process."""
    reduce = keras_losses.reduce_weighted_values
    keras_losses.reduce_weighted_values = getattr(reduce, "of_one_process", reduce)
