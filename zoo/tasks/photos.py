"""Image files and arrays as a classifier reads them."""

import struct
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.datasets.image_files import FORMATS, convert_image
from zoo.validation import Size, show, validated


@validated
def read_image(image: Any, channels: Size) -> np.ndarray:
    """Reads an image of any size and mode as (H, W, channels) uint8.

    It is converted as `zoo.datasets.image_files` converts the images of a data set.

    Args:
        image: Path of an image file, a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3)
            or (H, W, 4).
        channels: Number of channels of the result, 1 (grey) or 3 (RGB).

    Raises:
        ValueError: If a file is no image that Pillow reads, or an array is of another shape or
            type.
        OSError: If there is no such file, or it cannot be read.
    """
    mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    if isinstance(image, str | Path):
        picture = _read_file(Path(image), mode)
    else:
        is_picture = isinstance(image, Image.Image)
        picture = convert_image(image if is_picture else _from_array(image), mode)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _read_file(path: Path, mode: Literal["L", "RGB"]) -> Image.Image:
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as picture:
                return convert_image(picture, mode)
        except (
            OSError, SyntaxError, ValueError, EOFError, struct.error,
            Image.DecompressionBombError, Image.DecompressionBombWarning,
        ) as error:  # fmt: skip
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "its format is unknown" if unknown else " ".join(str(error).split())
            raise ValueError(
                "`image` must be an image file that Pillow reads, such as a PNG or a JPEG. "
                f"Received: {path}: {reason}"
            ) from error


def _from_array(image: Any) -> Image.Image:
    array = np.asarray(image) if hasattr(image, "__array__") else None
    is_image = (
        array is not None
        and array.dtype == np.uint8
        and array.size > 0
        and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)))
    )
    if array is None or not is_image:
        raise ValueError(
            "`image` must be the path of an image file, a Pillow image, or a uint8 array (H, W), "
            f"(H, W, 1), (H, W, 3) or (H, W, 4). Received: image={show(image)}"
        )
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
