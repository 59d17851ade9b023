"""Winograd convolution with kernels of 3×3 pixels, for JAX on a CPU.

Winograd's minimal filtering computes 2×2 outputs y from a tile d of 4×4 inputs and a kernel g:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

This takes 16 products instead of 36. Over all tiles and channels there are 16 matrix products. The
rows of their matrices hold four times the inputs, where patches hold nine times the inputs. The
gradients use the same transforms.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, F(2×2, 3×3).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tensor = Any
Grid = Sequence[Sequence[Tensor]]  # elements of all tiles, by row and column within a tile

_CHUNK_BYTES = 16 << 20  # working memory of a chunk, which fits in the cache


def chunks(x: Tensor, pixel_floats: int) -> Tensor:
    """Splits images into chunks: (B, H, W, C) -> (B / n, n, H, W, C).

    Args:
        x: Images, (B, H, W, C).
        pixel_floats: Intermediate numbers for each pixel. A chunk's n images and all their
            intermediate numbers take at most 16 MiB, if n is above 1.
    """
    batch, height, width, _ = x.shape
    limit = max(1, _CHUNK_BYTES // (height * width * pixel_floats * x.dtype.itemsize))
    size = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= limit)
    return x.reshape(batch // size, size, *x.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def winograd_conv(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Winograd convolution with stride 1, padding "same" and an optional ReLU.

    Args:
        x: Images, (B, H, W, C).
        kernel: Kernel, (3, 3, C, F).
        bias: Bias, (F,).
        relu: Whether a ReLU is applied to the outputs.

    Returns:
        Outputs, (B, H, W, F).
    """
    _, height, width, channels = x.shape
    filters = kernel.shape[-1]
    matrices = _on_both_axes(_g, kernel)

    def one_chunk(images: Tensor) -> Tensor:
        products = [
            [tile @ matrix for tile, matrix in zip(*rows)]
            for rows in zip(_input_tiles(images), matrices)
        ]
        outputs = _pixels(_on_both_axes(_at, products), len(images), height, width) + bias
        return jnp.maximum(outputs, 0) if relu else outputs

    chunked = chunks(x, 4 * (channels + filters))
    return lax.map(one_chunk, chunked).reshape(*x.shape[:3], filters)


def _winograd_forward(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Any:
    outputs = winograd_conv(x, kernel, bias, relu)
    return outputs, (x, kernel, outputs if relu else None)


def _winograd_backward(relu: bool, residuals: Any, gradient: Tensor) -> Any:
    x, kernel, outputs = residuals
    channels, filters = kernel.shape[2:]
    if relu:
        gradient = jnp.where(outputs > 0, gradient, 0)
    rotated_kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    zero_bias = jnp.zeros(channels, kernel.dtype)
    x_gradient = winograd_conv(gradient, rotated_kernel, zero_bias, False)

    def one_chunk(total: Tensor, chunk: Any) -> Any:
        images, gradients = chunk
        products = [
            [tile.T @ output for tile, output in zip(*rows)]
            for rows in zip(_input_tiles(images), _output_tiles(gradients))
        ]
        return jax.tree.map(jnp.add, total, products), None

    chunked = tuple(chunks(array, 4 * (channels + filters)) for array in (x, gradient))
    zeros = [[jnp.zeros((channels, filters), kernel.dtype)] * 4] * 4
    total, _ = lax.scan(one_chunk, zeros, chunked)
    return x_gradient, jnp.array(_on_both_axes(_gt, total)), gradient.sum((0, 1, 2))


winograd_conv.defvjp(_winograd_forward, _winograd_backward)


# The transforms Bᵀ, G, Gᵀ, Aᵀ and A along one axis.


def _bt(d: Sequence[Tensor]) -> list[Tensor]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _g(k: Sequence[Tensor]) -> list[Tensor]:
    even = 0.5 * (k[0] + k[2])
    return [k[0], even + 0.5 * k[1], even - 0.5 * k[1], k[2]]


def _gt(u: Sequence[Tensor]) -> list[Tensor]:
    even = 0.5 * (u[1] + u[2])
    return [u[0] + even, 0.5 * (u[1] - u[2]), even + u[3]]


def _at(m: Sequence[Tensor]) -> list[Tensor]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _a(y: Sequence[Tensor]) -> list[Tensor]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _on_both_axes(matrix: Callable[[Sequence[Tensor]], list[Tensor]], grid: Grid) -> Grid:
    rows = [matrix(row) for row in grid]
    columns = [matrix(column) for column in zip(*rows)]
    return list(zip(*columns))


def _input_tiles(x: Tensor) -> Grid:
    """Input transform Bᵀ d B: (n, H, W, C) -> 4×4 matrices (n·⌈H/2⌉·⌈W/2⌉, C).

    Neighbouring tiles overlap by two pixels.
    """
    n, height, width, channels = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    x = x.reshape(n, rows + 1, 2, columns + 1, 2, channels)

    def tile_elements(row: int, column: int) -> Tensor:
        (down, i), (right, j) = divmod(row, 2), divmod(column, 2)
        return x[:, down : down + rows, i, right : right + columns, j].reshape(-1, channels)

    return _on_both_axes(_bt, [[tile_elements(i, j) for j in range(4)] for i in range(4)])


def _output_tiles(y: Tensor) -> Grid:
    """Transposed output transform A y Aᵀ: (n, H, W, F) -> 4×4 matrices (n·⌈H/2⌉·⌈W/2⌉, F)."""
    n, height, width, filters = y.shape
    y = jnp.pad(y, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    y = y.reshape(n, (height + 1) // 2, 2, (width + 1) // 2, 2, filters)
    elements = [[y[:, :, i, :, j].reshape(-1, filters) for j in range(2)] for i in range(2)]
    return _on_both_axes(_a, elements)


def _pixels(grid: Grid, n: int, height: int, width: int) -> Tensor:
    """Joins the tiles of outputs: 2×2 matrices (n·⌈H/2⌉·⌈W/2⌉, F) -> (n, H, W, F)."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    grid = [[elements.reshape(n, rows, columns, -1) for elements in row] for row in grid]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in grid], axis=2)
    return pixels.reshape(n, 2 * rows, 2 * columns, -1)[:, :height, :width]
