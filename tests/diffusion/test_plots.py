"""Images side by side."""

import io

import numpy as np
from PIL import Image

from zoo.diffusion import plots


def images(count: int, channels: int = 1) -> np.ndarray:
    return np.arange(count * 4 * 5 * channels).reshape(count, 4, 5, channels).astype(np.uint8)


def test_a_grid_goes_row_by_row() -> None:
    drawn = images(5)
    grid = np.asarray(plots.grid(drawn, 3, scale=1))
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2)
    np.testing.assert_array_equal(grid[2:6, 9:14], drawn[1, :, :, 0])
    np.testing.assert_array_equal(grid[8:12, 2:7], drawn[3, :, :, 0])
    assert len(np.unique(grid[8:, 16:])) == 1  # the place that is left
    colour = plots.grid(images(2, 3), 2, scale=3)
    assert colour.mode == "RGB"
    assert colour.size == (3 * 16, 3 * 8)


def test_an_animation_plays_its_frames_and_stays_at_the_last() -> None:
    frames = [plots.grid(images(2) // (n + 1), 2) for n in range(3)]
    with Image.open(io.BytesIO(plots.animation(frames, 50))) as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 50
        film.seek(2)
        assert film.info["duration"] == 2000
        np.testing.assert_array_equal(np.asarray(film.convert("L")), np.asarray(frames[2]))


def test_a_picture_is_kept_whole() -> None:
    frame = plots.grid(images(2), 2)
    with Image.open(io.BytesIO(plots.png(frame))) as again:
        np.testing.assert_array_equal(np.asarray(again), np.asarray(frame))
