"""Tests of the image grids and animations."""

import io

import numpy as np
import pytest
from PIL import Image

from zoo.diffusion import plots

pytestmark = pytest.mark.once


def make_images(count: int, channels: int = 1) -> np.ndarray:
    return np.arange(count * 4 * 5 * channels).reshape(count, 4, 5, channels).astype(np.uint8)


def test_grid_arranges_images_row_by_row() -> None:
    images = make_images(5)
    grid = np.asarray(plots.grid(images, 3, scale=1))
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2)
    np.testing.assert_array_equal(grid[2:6, 9:14], images[1, :, :, 0])
    np.testing.assert_array_equal(grid[8:12, 2:7], images[3, :, :, 0])
    assert len(np.unique(grid[8:, 16:])) == 1  # the empty cell of the last row
    colour = plots.grid(make_images(2, 3), 2, scale=3)
    assert colour.mode == "RGB"
    assert colour.size == (3 * 16, 3 * 8)


def test_animation_holds_last_frame() -> None:
    frames = [plots.grid(make_images(2) // (n + 1), 2) for n in range(3)]
    with Image.open(io.BytesIO(plots.animation(frames, 50))) as gif:
        assert gif.n_frames == 3
        assert gif.info["duration"] == 50
        gif.seek(2)
        assert gif.info["duration"] == 2000
        np.testing.assert_array_equal(np.asarray(gif.convert("L")), np.asarray(frames[2]))


def test_png_round_trip() -> None:
    picture = plots.grid(make_images(2), 2)
    with Image.open(io.BytesIO(plots.png(picture))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))
