"""What the three backends share."""

import ctypes
import math
import platform
from typing import Any

import keras
from keras import ops

Tensor = Any


def keep_freed_memory() -> None:
    """Lets the C library keep large freed blocks instead of handing them back to the system.

    A training step frees and takes some hundred MB of activations. By default glibc maps each
    large block anew and the kernel clears it page by page, up to a third of a step's time on a
    CPU. Elsewhere than on glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(m_mmap_threshold, 2**31 - 1)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_arena_max, 1)


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.Conv2D.call(layer, inputs)


def max_pool2d(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.MaxPooling2D.call(layer, inputs)


def adam_update(
    optimizer: Any,
    gradient: Tensor,
    variable: Any,
    momentum: Any,
    velocity: Any,
    learning_rate: Tensor,
) -> None:
    """Adam of Kingma and Ba with the penalty in the gradient, in plain Keras operations."""
    step = ops.cast(optimizer.iterations + 1, "float32")
    # 1 - beta**step; the subtraction itself would leave four digits of 1 - 0.999 in float32.
    correction_1 = -ops.expm1(math.log(optimizer.beta_1) * step)
    correction_2 = ops.sqrt(-ops.expm1(math.log(optimizer.beta_2) * step))
    dtype = variable.dtype
    alpha = ops.cast(learning_rate * correction_2 / correction_1, dtype)
    epsilon = ops.cast(optimizer.epsilon * correction_2, dtype)

    gradient = gradient + optimizer.l2 * variable
    m = momentum + (1 - optimizer.beta_1) * (gradient - momentum)
    v = velocity + (1 - optimizer.beta_2) * (gradient * gradient - velocity)
    optimizer.assign(momentum, m)
    optimizer.assign(velocity, v)
    optimizer.assign_sub(variable, alpha * m / (ops.sqrt(v) + epsilon))
