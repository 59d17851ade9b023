"""Convolution and max pooling for JAX on a CPU.

XLA's own convolution takes twice as long on a CPU as a product of patches and the kernel, mostly in
its gradients. The gradient of XLA's window reduction takes fifty times as long as the pooling
itself. For kernels of 3×3 pixels the Winograd convolution in jax_winograd.py is faster still,
except with few channels.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.custom_derivatives import SymbolicZero

from zoo.backends import common
from zoo.backends.exporting import is_exporting
from zoo.backends.jax_winograd import chunks, winograd_conv

Tensor = Any

_FEW_CHANNELS = 16


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    kernel = jnp.asarray(layer.kernel)
    is_supported = (
        jax.default_backend() == "cpu"
        and not is_exporting()
        and layer.data_format == "channels_last"
        and layer.padding == "same"
        and tuple(layer.strides) == (1, 1)
        and tuple(layer.dilation_rate) == (1, 1)
        and inputs.shape[-1] == kernel.shape[2]  # one group
        and kernel.shape[0] % 2 == 1
        and kernel.shape[1] % 2 == 1
    )
    if not is_supported:
        return common.conv2d(layer, inputs)
    bias = jnp.asarray(layer.bias) if layer.use_bias else jnp.zeros(kernel.shape[-1], kernel.dtype)
    relu = layer.activation is keras.activations.relu
    use_winograd = (
        kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _FEW_CHANNELS
        and kernel.dtype in (jnp.float32, jnp.float64)  # 16 bits are too few for differences
    )
    outputs = _convolution(inputs, kernel, bias, relu, use_winograd)
    return outputs if relu else layer.activation(outputs)


def _pad(x: Tensor, kh: int, kw: int) -> Tensor:
    return jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))


def _patches(x: Tensor, kh: int, kw: int) -> Tensor:
    """Extracts the patch around each pixel: (B, H, W, C) -> (B·H·W, kh·kw·C)."""
    _, height, width, channels = x.shape
    x = _pad(x, kh, kw)
    parts = [x[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(parts, axis=-1).reshape(-1, kh * kw * channels)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    kh, kw, channels, filters = kernel.shape
    _, height, width, _ = x.shape

    def by_patches(images: Tensor) -> Tensor:
        return _patches(images, kh, kw) @ kernel.reshape(-1, filters)

    def by_kernel_rows(images: Tensor) -> Tensor:
        # One product for each row of a 3×3 kernel copies a third of the memory of whole patches.
        images = _pad(images, kh, kw)
        rows = jnp.concatenate([images[:, :, j : j + width] for j in range(kw)], axis=-1)
        matrices = kernel.reshape(kh, kw * channels, filters)
        parts = [rows[:, i : i + height].reshape(-1, kw * channels) for i in range(kh)]
        return sum(part @ matrix for part, matrix in zip(parts, matrices))

    def one_chunk(images: Tensor) -> Tensor:
        outputs = (by_patches if channels < _FEW_CHANNELS else by_kernel_rows)(images) + bias
        return jnp.maximum(outputs, 0) if relu else outputs

    return lax.map(one_chunk, chunks(x, math.prod(kernel.shape[:3]))).reshape(*x.shape[:3], filters)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul_conv(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Convolution with stride 1 and padding "same": patches times the kernel as a matrix.

    A few images at a time are computed, to stay in the cache.
    """
    return _convolve(x, kernel, bias, relu)


def _matmul_conv_forward(x: Any, kernel: Any, bias: Any, relu: bool) -> Any:
    outputs = _convolve(x.value, kernel.value, bias.value, relu)
    # A first layer needs no input gradient. Residuals must be arrays, but a dictionary's keys are
    # part of their structure.
    required = {"input gradient": None} if x.perturbed else {}
    return outputs, (x.value, kernel.value, outputs, required)


def _matmul_conv_backward(relu: bool, residuals: Any, gradient: Any) -> Any:
    x, kernel, outputs, required = residuals
    kh, kw, channels, filters = kernel.shape
    _, height, width, _ = x.shape
    if isinstance(gradient, SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)

    def kernel_gradient(images: Tensor, gradients: Tensor) -> Tensor:
        return gradients.T @ _patches(images, kh, kw)

    def input_gradient(gradients: Tensor) -> Tensor:
        patches = gradients @ kernel.reshape(-1, filters).T
        patches = patches.reshape(-1, height, width, kh, kw, channels)
        # Each pixel of a patch is added at its position in the image.
        return sum(
            lax.pad(
                patches[:, :, :, i, j],
                jnp.zeros((), x.dtype),
                ((0, 0, 0), _shift(i - kh // 2), _shift(j - kw // 2), (0, 0, 0)),
            )
            for i in range(kh)
            for j in range(kw)
        )

    def one_chunk(totals: Any, chunk: Any) -> Any:
        images, results, gradients = chunk
        if relu:
            gradients = jnp.where(results > 0, gradients, 0)
        gradients = gradients.reshape(-1, filters)
        kernel_total, bias_total = totals
        totals = kernel_total + kernel_gradient(images, gradients), bias_total + gradients.sum(0)
        return totals, input_gradient(gradients) if "input gradient" in required else None

    zeros = jnp.zeros((filters, kh * kw * channels), kernel.dtype), jnp.zeros(filters, kernel.dtype)
    chunked = tuple(chunks(array, kh * kw * channels) for array in (x, outputs, gradient))
    (kernel_total, bias_total), x_gradient = lax.scan(one_chunk, zeros, chunked)
    x_gradient = jnp.zeros_like(x) if x_gradient is None else x_gradient.reshape(x.shape)
    return x_gradient, kernel_total.T.reshape(kernel.shape), bias_total


def _shift(count: int) -> tuple[int, int, int]:
    """Padding of `lax.pad` that shifts an axis by `count` and fills with zeros."""
    return count, -count, 0


_matmul_conv.defvjp(_matmul_conv_forward, _matmul_conv_backward, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(3, 4), inline=True)  # for callers that are not compiled
def _convolution(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool, use_winograd: bool) -> Tensor:
    return (winograd_conv if use_winograd else _matmul_conv)(x, kernel, bias, relu)


# ------------------------------------------------------------------ pooling


def max_pool2d(layer: Any, inputs: Tensor) -> Tensor:
    is_supported = (
        jax.default_backend() == "cpu"
        and not is_exporting()
        and layer.data_format == "channels_last"
        and tuple(layer.pool_size) == tuple(layer.strides) == (2, 2)
        and inputs.shape[1] % 2 == 0
        and inputs.shape[2] % 2 == 0
    )
    if is_supported:
        return _max_pool_2x2(inputs)
    return common.max_pool2d(layer, inputs)


def _window_elements(x: Tensor) -> list[Tensor]:
    """The four elements of each 2×2 window: (B, H, W, C) -> four of (B, H/2, W/2, C)."""
    return [x[:, i::2, j::2] for i in range(2) for j in range(2)]


@jax.custom_vjp  # type: ignore[untyped-decorator]
def _max_pool_2x2(x: Tensor) -> Tensor:
    a, b, c, d = _window_elements(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_pool_2x2_forward(x: Tensor) -> Any:
    maximum = _max_pool_2x2(x)
    return maximum, (x, maximum)


def _max_pool_2x2_backward(residuals: Any, gradient: Tensor) -> Any:
    """Passes the gradient to the first maximum of each window, as the other backends do."""
    x, maximum = residuals
    unassigned = jnp.ones(maximum.shape, bool)
    parts = []
    for element in _window_elements(x):
        is_first_maximum = (element == maximum) & unassigned
        unassigned &= ~is_first_maximum
        parts.append(jnp.where(is_first_maximum, gradient, 0))
    a, b, c, d = parts
    # (B, H/2, W/2, C) four times -> (B, H/2, 2, W/2, 2, C)
    windows = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2)
    return (windows.reshape(x.shape),)


_max_pool_2x2.defvjp(_max_pool_2x2_forward, _max_pool_2x2_backward)
