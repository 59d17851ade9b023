"""What the three backends share."""

import ctypes
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops
from keras.src.backend.common import dtypes

Tensor = Any


def keep_malloc_pages(one_arena: bool = True) -> None:
    """Lets the C library keep large freed blocks instead of handing them back to the system.

    A training step frees and takes some hundred MB of activations. By default glibc maps each
    large block anew and the kernel clears it page by page, up to a third of a step's time on a
    CPU. Elsewhere than on glibc this does nothing.

    Args:
        one_arena: what one thread has freed, another takes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(m_mmap_threshold, 2**31 - 1)
    mallopt(m_trim_threshold, 2**31 - 1)
    if one_arena:
        mallopt(m_arena_max, 1)


def keep_float64() -> None:
    """Lets two float64 tensors give a float64 one.

    On PyTorch and JAX Keras gives float32: https://github.com/keras-team/keras/issues/23704.
    """
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"


@contextmanager
def float64() -> Iterator[None]:
    """As `keep_float64`, and float64 by default, until it ends."""
    kept, default = dtypes.BIT64_TO_BIT32_DTYPE["float64"], keras.config.floatx()
    keep_float64()
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = kept
        keras.config.set_floatx(default)


def check_range(low: int, high: int, size: int, layer: str) -> None:
    """Raises ValueError unless ids between `low` and `high` lie in [0, size)."""
    low, high = int(low), int(high)
    if low < 0 or high >= size:
        raise ValueError(
            f"Ids must lie in [0, {size}), the vocabulary of the layer {layer}. "
            f"Received: id {low if low < 0 else high}"
        )


def dense(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.Dense.call(layer, inputs)


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.Conv2D.call(layer, inputs)


def max_pool2d(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.MaxPooling2D.call(layer, inputs)


def _repeat(numbers: Tensor, size: int) -> Tensor:
    return ops.repeat(numbers, size, axis=1)


def group_norm(layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
    return grouped_norm(inputs, layer.gamma, layer.beta, scale_shift, layer.groups, layer.epsilon)


def grouped_norm(
    inputs: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale_shift: Tensor | None,
    groups: int,
    epsilon: float,
    spread: Callable[[Tensor, int], Tensor] = _repeat,
) -> Tensor:
    """By the moments of each channel, whose sums take rows of numbers; a group's follow from them.

    A group's variance is the mean of its channels' variances and the variance of their means.
    `spread(numbers, size)` gives each of a group's channels its number: (B, G) -> (B, G·size).
    """
    dtype = keras.backend.result_type(inputs.dtype, "float32")  # 16 bits are too few for sums
    x, scale, shift = (ops.cast(array, dtype) for array in (inputs, gamma, beta))
    size = x.shape[-1] // groups

    def over_group(numbers: Tensor) -> Tensor:
        return ops.mean(ops.reshape(numbers, (-1, groups, size)), axis=-1)

    means, variances = ops.moments(x, axes=(1, 2))
    mean = spread(over_group(means), size)
    variance = over_group(variances + ops.square(means - mean))
    scale = spread(ops.rsqrt(variance + epsilon), size) * scale
    shift = shift - mean * scale
    if scale_shift is not None:
        more, added = ops.split(ops.cast(scale_shift, dtype), 2, axis=-1)
        scale, shift = scale * (1 + more), shift * (1 + more) + added
    return ops.cast(x * scale[:, None, None] + shift[:, None, None], inputs.dtype)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    if keys.shape[2] == 1:  # Keras gives each to its queries, but not a single one to all
        keys, values = (ops.repeat(x, query.shape[2], axis=2) for x in (keys, values))
    return ops.dot_product_attention(
        query, keys, values, mask=attention_mask, scale=scale, is_causal=causal
    )


def cached_attention(
    query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor, scale: float
) -> Tensor:
    batch, length, heads, head_dim = query.shape
    shared = heads // keys.shape[1]
    query = ops.reshape(query * scale, (batch, length, keys.shape[1], shared, head_dim))
    # The queries that share keys are rows of one product: (B, kv_heads, shared·T, head_dim).
    query = ops.reshape(ops.transpose(query, (0, 2, 3, 1, 4)), (batch, keys.shape[1], -1, head_dim))
    scores = ops.matmul(query, ops.swapaxes(keys, 2, 3))
    scores = ops.reshape(scores, (batch, keys.shape[1], shared, length, keys.shape[2]))
    if "16" in str(scores.dtype):
        scores = ops.cast(scores, "float32")
    weights = ops.softmax(ops.where(attention_mask[:, :, None], scores, -1e30), axis=-1)
    weights = ops.reshape(weights, (batch, keys.shape[1], shared * length, keys.shape[2]))
    mixed = ops.matmul(ops.cast(weights, values.dtype), values)
    mixed = ops.reshape(mixed, (batch, keys.shape[1], shared, length, head_dim))
    return ops.reshape(ops.transpose(mixed, (0, 3, 1, 2, 4)), (batch, length, heads, head_dim))


class ForeachMixin:
    """For an optimizer: what is compiled needs no help."""


def corrected(optimizer: Any, learning_rate: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Adam's step size and epsilon, with the moments' bias corrected, for the coming step."""
    # Sixteen bits are too few for it.
    precise = "float64" if dtype == "float64" else "float32"
    step = ops.cast(optimizer.iterations + 1, precise)
    # 1 - beta**step; the subtraction itself would leave four digits of 1 - 0.999 in float32.
    correction_1 = -ops.expm1(math.log(optimizer.beta_1) * step)
    correction_2 = ops.sqrt(-ops.expm1(math.log(optimizer.beta_2) * step))
    alpha = ops.cast(learning_rate, precise) * correction_2 / correction_1
    return ops.cast(alpha, dtype), ops.cast(optimizer.epsilon * correction_2, dtype)


def adam_update(
    optimizer: Any,
    gradient: Tensor,
    variable: Any,
    momentum: Any,
    velocity: Any,
    learning_rate: Tensor,
) -> None:
    """Adam of Kingma and Ba with the penalty in the gradient, in plain Keras operations."""
    alpha, epsilon = corrected(optimizer, learning_rate, variable.dtype)
    gradient = gradient + optimizer.l2 * variable
    m = momentum + (1 - optimizer.beta_1) * (gradient - momentum)
    v = velocity + (1 - optimizer.beta_2) * (gradient * gradient - velocity)
    optimizer.assign(momentum, m)
    optimizer.assign(velocity, v)
    optimizer.assign_sub(variable, alpha * m / (ops.sqrt(v) + epsilon))
