"""Images side by side, and how they come out of the noise."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from zoo.datasets.images import check_images

_GAP = 2  # pixels between images
_BACKGROUND = 96


def grid(images: np.ndarray, columns: int, scale: int = 2) -> Image.Image:
    """Images, (N, H, W, C) uint8, row by row.

    Args:
        images: grey (C = 1) or RGB.
        columns: of the grid.
        scale: how many pixels wide a pixel is drawn.
    """
    check_images(images)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    shape = rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels
    canvas = np.full(shape, _BACKGROUND, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        canvas[top : top + height, left : left + width] = image
    drawn = Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas)
    return drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)


def animation(frames: Sequence[Image.Image], milliseconds: int = 80) -> bytes:
    """A GIF that plays the frames, and stays at the last for two seconds."""
    first, *others = (frame.convert("P") for frame in frames)
    durations = [milliseconds] * len(others) + [2000]
    file = io.BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True
    )
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
