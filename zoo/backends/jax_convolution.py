"""Convolution and pooling on JAX, on a CPU.

XLA's own convolution takes twice as long there as patches times a matrix, mostly in its gradients,
and the gradient of its window reduction takes fifty times as long as the pooling itself. Kernels of
3×3 pixels are faster yet in jax_winograd.py, but where there are few channels to multiply.
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
from zoo.backends.jax_winograd import chunks, winograd_conv

Tensor = Any

_FEW_CHANNELS = 16


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    kernel = jnp.asarray(layer.kernel)
    rewritten = (
        jax.default_backend() == "cpu"
        and layer.data_format == "channels_last"
        and layer.padding == "same"
        and tuple(layer.strides) == (1, 1)
        and tuple(layer.dilation_rate) == (1, 1)
        and inputs.shape[-1] == kernel.shape[2]  # one group
        and kernel.shape[0] % 2 == 1
        and kernel.shape[1] % 2 == 1
    )
    if not rewritten:
        return common.conv2d(layer, inputs)
    bias = jnp.asarray(layer.bias) if layer.use_bias else jnp.zeros(kernel.shape[-1], kernel.dtype)
    relu = layer.activation is keras.activations.relu
    minimal = (
        kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _FEW_CHANNELS
        and kernel.dtype in (jnp.float32, jnp.float64)  # differences lose too many of 16 bits
    )
    outputs = _convolution(inputs, kernel, bias, relu, minimal)
    return outputs if relu else layer.activation(outputs)


def _pad(x: Tensor, kh: int, kw: int) -> Tensor:
    return jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))


def _patches(x: Tensor, kh: int, kw: int) -> Tensor:
    """Each pixel's neighbourhood as a row: (B, H, W, C) -> (B·H·W, kh·kw·C)."""
    _, height, width, channels = x.shape
    x = _pad(x, kh, kw)
    parts = [x[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(parts, axis=-1).reshape(-1, kh * kw * channels)


def _forward(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    kh, kw, channels, filters = kernel.shape
    _, height, width, _ = x.shape

    def narrow(images: Tensor) -> Tensor:
        return _patches(images, kh, kw) @ kernel.reshape(-1, filters)

    def wide(images: Tensor) -> Tensor:
        # A product for each row of the kernel copies a third of what whole patches would.
        images = _pad(images, kh, kw)
        rows = jnp.concatenate([images[:, :, j : j + width] for j in range(kw)], axis=-1)
        matrices = kernel.reshape(kh, kw * channels, filters)
        parts = [rows[:, i : i + height].reshape(-1, kw * channels) for i in range(kh)]
        return sum(part @ matrix for part, matrix in zip(parts, matrices))

    def one_chunk(images: Tensor) -> Tensor:
        outputs = (narrow if channels < _FEW_CHANNELS else wide)(images) + bias
        return jnp.maximum(outputs, 0) if relu else outputs

    return lax.map(one_chunk, chunks(x, math.prod(kernel.shape[:3]))).reshape(*x.shape[:3], filters)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul_conv(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Stride 1, `same`: patches times the kernel as a matrix, a few images at a time."""
    return _forward(x, kernel, bias, relu)


def _matmul_conv_forward(x: Any, kernel: Any, bias: Any, relu: bool) -> Any:
    outputs = _forward(x.value, kernel.value, bias.value, relu)
    # A first layer's input gradient is not wanted. (Residuals are arrays; a key is structure.)
    wanted = {"input gradient": None} if x.perturbed else {}
    return outputs, (x.value, kernel.value, outputs, wanted)


def _matmul_conv_backward(relu: bool, residuals: Any, gradient: Any) -> Any:
    x, kernel, outputs, wanted = residuals
    kh, kw, channels, filters = kernel.shape
    _, height, width, _ = x.shape
    if isinstance(gradient, SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)

    def kernel_gradient(images: Tensor, gradients: Tensor) -> Tensor:
        return gradients.T @ _patches(images, kh, kw)

    def input_gradient(gradients: Tensor) -> Tensor:
        patches = gradients @ kernel.reshape(-1, filters).T
        patches = patches.reshape(-1, height, width, kh, kw, channels)
        # Each of a patch's pixels goes back to the place it came from.
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
        return totals, input_gradient(gradients) if "input gradient" in wanted else None

    zeros = jnp.zeros((filters, kh * kw * channels), kernel.dtype), jnp.zeros(filters, kernel.dtype)
    pieces = tuple(chunks(array, kh * kw * channels) for array in (x, outputs, gradient))
    (kernel_total, bias_total), inputs = lax.scan(one_chunk, zeros, pieces)
    inputs = jnp.zeros_like(x) if inputs is None else inputs.reshape(x.shape)
    return inputs, kernel_total.T.reshape(kernel.shape), bias_total


def _shift(count: int) -> tuple[int, int, int]:
    """`lax.pad`'s argument that moves an axis by `count`, with zeros behind it."""
    return count, -count, 0


_matmul_conv.defvjp(_matmul_conv_forward, _matmul_conv_backward, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(3, 4), inline=True)  # where nothing else compiles it
def _convolution(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool, minimal: bool) -> Tensor:
    return (winograd_conv if minimal else _matmul_conv)(x, kernel, bias, relu)


# ------------------------------------------------------------------ pooling


def max_pool2d(layer: Any, inputs: Tensor) -> Tensor:
    rewritten = (
        jax.default_backend() == "cpu"
        and layer.data_format == "channels_last"
        and tuple(layer.pool_size) == tuple(layer.strides) == (2, 2)
        and inputs.shape[1] % 2 == 0
        and inputs.shape[2] % 2 == 0
    )
    if rewritten:
        return _max_of_four(inputs)
    return common.max_pool2d(layer, inputs)


def _quarters(x: Tensor) -> list[Tensor]:
    return [x[:, i::2, j::2] for i in range(2) for j in range(2)]


@jax.custom_vjp  # type: ignore[untyped-decorator]
def _max_of_four(x: Tensor) -> Tensor:
    a, b, c, d = _quarters(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_of_four_forward(x: Tensor) -> Any:
    maximum = _max_of_four(x)
    return maximum, (x, maximum)


def _max_of_four_backward(residuals: Any, gradient: Tensor) -> Any:
    """The first maximum of a window takes the whole gradient, as in the other backends."""
    x, maximum = residuals
    left = jnp.ones(maximum.shape, bool)
    parts = []
    for quarter in _quarters(x):
        hit = (quarter == maximum) & left
        left &= ~hit
        parts.append(jnp.where(hit, gradient, 0))
    a, b, c, d = parts
    # (B, H/2, W/2, C) four times -> (B, H/2, 2, W/2, 2, C)
    windows = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2)
    return (windows.reshape(x.shape),)


_max_of_four.defvjp(_max_of_four_forward, _max_of_four_backward)
