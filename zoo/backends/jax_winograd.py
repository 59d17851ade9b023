"""Convolution of 3×3 pixels on JAX, on a CPU, by Winograd's minimal filtering.

Each 2×2 outputs y see a tile d of 4×4 inputs, and with a kernel g they are

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

which takes 16 products instead of 36. Over all tiles and channels that is 16 products of matrices,
whose rows together hold four times the inputs, where patches hold nine times. The gradients are
made of the same pieces.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, F(2×2, 3×3).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tensor = Any
Grid = Sequence[Sequence[Tensor]]  # of a tile's places, by row and column

_CHUNK_BYTES = 16 << 20  # what is at hand at once stays in the cache


def chunks(x: Tensor, pixel_floats: int) -> Tensor:
    """(B, H, W, C) -> (B / n, n, H, W, C), n images that fit with all that is made of them."""
    batch, height, width, _ = x.shape
    limit = max(1, _CHUNK_BYTES // (height * width * pixel_floats * x.dtype.itemsize))
    size = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= limit)
    return x.reshape(batch // size, size, *x.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def winograd_conv(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Stride 1, `same`: (B, H, W, C), (3, 3, C, F), (F,) -> (B, H, W, F)."""
    _, height, width, channels = x.shape
    filters = kernel.shape[-1]
    matrices = _on_both_axes(_g, kernel)

    def one_chunk(images: Tensor) -> Tensor:
        products = [
            [tile @ matrix for tile, matrix in zip(*both)]
            for both in zip(_input_tiles(images), matrices)
        ]
        outputs = _pixels(_on_both_axes(_at, products), len(images), height, width) + bias
        return jnp.maximum(outputs, 0) if relu else outputs

    pieces = chunks(x, 4 * (channels + filters))
    return lax.map(one_chunk, pieces).reshape(*x.shape[:3], filters)


def _winograd_forward(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Any:
    outputs = winograd_conv(x, kernel, bias, relu)
    return outputs, (x, kernel, outputs if relu else None)


def _winograd_backward(relu: bool, residuals: Any, gradient: Tensor) -> Any:
    x, kernel, outputs = residuals
    channels, filters = kernel.shape[2:]
    if relu:
        gradient = jnp.where(outputs > 0, gradient, 0)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    inputs = winograd_conv(gradient, turned, jnp.zeros(channels, kernel.dtype), False)

    def one_chunk(total: Tensor, chunk: Any) -> Any:
        images, gradients = chunk
        products = [
            [tile.T @ output for tile, output in zip(*both)]
            for both in zip(_input_tiles(images), _output_tiles(gradients))
        ]
        return jax.tree.map(jnp.add, total, products), None

    pieces = tuple(chunks(array, 4 * (channels + filters)) for array in (x, gradient))
    nothing = [[jnp.zeros((channels, filters), kernel.dtype)] * 4] * 4
    total, _ = lax.scan(one_chunk, nothing, pieces)
    return inputs, jnp.array(_on_both_axes(_gt, total)), gradient.sum((0, 1, 2))


winograd_conv.defvjp(_winograd_forward, _winograd_backward)


# The formula's matrices, along one axis: Bᵀ, G, Gᵀ, Aᵀ and A.


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
    """(n, H, W, C) -> 4×4 matrices (n·⌈H/2⌉·⌈W/2⌉, C), Bᵀ d B; a tile overlaps the next by two."""
    n, height, width, channels = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    x = x.reshape(n, rows + 1, 2, columns + 1, 2, channels)

    def place(row: int, column: int) -> Tensor:
        (down, i), (right, j) = divmod(row, 2), divmod(column, 2)
        return x[:, down : down + rows, i, right : right + columns, j].reshape(-1, channels)

    return _on_both_axes(_bt, [[place(i, j) for j in range(4)] for i in range(4)])


def _output_tiles(y: Tensor) -> Grid:
    """(n, H, W, F) -> 4×4 matrices (n·⌈H/2⌉·⌈W/2⌉, F), A y Aᵀ."""
    n, height, width, filters = y.shape
    y = jnp.pad(y, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    y = y.reshape(n, (height + 1) // 2, 2, (width + 1) // 2, 2, filters)
    places = [[y[:, :, i, :, j].reshape(-1, filters) for j in range(2)] for i in range(2)]
    return _on_both_axes(_a, places)


def _pixels(grid: Grid, n: int, height: int, width: int) -> Tensor:
    """2×2 matrices (n·⌈H/2⌉·⌈W/2⌉, F) -> (n, H, W, F)."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    grid = [[place.reshape(n, rows, columns, -1) for place in row] for row in grid]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in grid], axis=2)
    return pixels.reshape(n, 2 * rows, 2 * columns, -1)[:, :height, :width]
