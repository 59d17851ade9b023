"""Image grids and GIF animations of sampled images."""

import io
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from PIL import Image

from zoo.datasets.images import check_images
from zoo.validation import Images, Size, each, instance, validated, whole

Columns = Annotated[int, whole(1, 256)]
Frames = Annotated[Sequence[Image.Image], each(instance(Image.Image), 1)]

_GAP = 2  # pixels between images
_BACKGROUND = 96


@validated
def grid(images: Images, columns: Columns, scale: Annotated[int, whole(1, 16)] = 2) -> Image.Image:
    """Arranges images in a grid, row by row.

    Args:
        images: Grey (C = 1) or RGB (C = 3) images, (N, H, W, C) uint8.
        columns: Number of columns of the grid.
        scale: Factor by which the grid is enlarged, with nearest-neighbour resampling.

    Raises:
        ValueError: if `images` are of another shape or dtype.
    """
    check_images(images)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    shape = rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels
    canvas = np.full(shape, _BACKGROUND, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        canvas[top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas)
    size = picture.width * scale, picture.height * scale
    return picture.resize(size, Image.Resampling.NEAREST)


@validated
def animation(
    frames: Frames,
    milliseconds: Size = 80,
) -> bytes:
    """Encodes frames as a looping GIF that shows the last frame for two seconds.

    Args:
        frames: Frames of the animation, at least one.
        milliseconds: Duration of each frame but the last.
    """
    first, *others = (frame.convert("P") for frame in frames)
    durations = [milliseconds] * len(others) + [2000]
    file = io.BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True
    )
    return file.getvalue()


@validated
def png(image: Image.Image) -> bytes:
    """Encodes an image as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
