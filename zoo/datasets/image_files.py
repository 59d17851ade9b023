"""Image files, decoded one at a time into one array.

The headers of all files are read first. They tell whether all images are grey, so that the array
can be allocated at once, and they reveal most of the unreadable files.

Each image becomes 8-bit grey or RGB:

- An image with an EXIF orientation is turned as it says.
- Transparent pixels are blended with a white background.
- Grey levels of 16 bits are scaled to 8.
- All images become grey if all files are (modes 1, L, LA and 16 bits of Pillow), else RGB.
- Of an animation, the first image is used.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from zoo.datasets.augmentation import FILTER
from zoo.progress import Progress
from zoo.validation import validated

T = TypeVar("T")

# Pillow's formats for pictures. Some of its others start programs: EPS starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


class ImageFile(NamedTuple):
    """An image file.

    Attributes:
        path: Path of the file.
        box: Part of the image to use: the columns from the first number up to the third, and the
            rows from the second up to the fourth, both without the last, as in Pillow's `crop`. By
            default the whole image.
    """

    path: str
    box: tuple[int, int, int, int] | None = None


FileParts = dict[str, tuple[list[ImageFile], np.ndarray]]


@dataclass
class ImageDecoder:
    """Decoder of the image files of a data set.

    Attributes:
        name: Name of the data set, for messages.
        size: Height and width of the resized images; None if they keep their size.
        skip_unreadable: Leave unreadable files out, with a warning, instead of an error.
        verbose: Show the progress.
        skipped: Paths of the files that were left out.
    """

    name: str
    size: int | None = None
    skip_unreadable: bool = False
    verbose: bool = True
    skipped: list[str] = field(default_factory=list, init=False)

    def decode(
        self, parts: FileParts, class_names: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Decodes the files of all parts.

        Args:
            parts: Files and labels (N,) of each part, such as "train" and "test".
            class_names: Name of each class, for messages.

        Returns:
            Images (N, H, W, 1 or 3) uint8 and labels (N,) int32 of each part.

        Raises:
            ValueError: If a file is unreadable, a class has unreadable files only, a box lies
                outside its image, or the images differ in size and `size` is None.
        """
        total = sum(len(files) for files, _ in parts.values())
        self._progress = Progress("images", 2 * total, quiet=not self.verbose)
        grey = True
        readable: FileParts = {}
        for part, (files, labels) in parts.items():
            headers = dict(self._read(files, _is_grey))
            grey = grey and all(headers.values())
            readable[part] = [files[index] for index in headers], labels[list(headers)]
        arrays = {}
        for part, (files, labels) in readable.items():
            arrays[part] = self._decode_part(files, labels, "L" if grey else "RGB")
            all_files, all_labels = parts[part]
            lost = np.flatnonzero(~np.isin(all_labels, arrays[part][1]))
            if len(lost):
                raise ValueError(
                    f"`dataset` must have a readable {part} image of each class. Received: "
                    f"{self.name}, where those of {class_names[all_labels[lost[0]]]} are all "
                    f"unreadable, such as {all_files[lost[0]].path}"
                )
        self._warn()
        return arrays

    def _decode_part(
        self, files: list[ImageFile], labels: np.ndarray, mode: Literal["L", "RGB"]
    ) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((0, 1, 1, 1), np.uint8)
        decoded: list[int] = []
        for index, image in self._read(files, lambda image: convert_image(image, mode)):
            image = _crop(image, files[index])
            if self.size is not None:
                image = image.resize((self.size, self.size), FILTER)
            pixels = np.asarray(image).reshape(image.height, image.width, -1)
            if not decoded:  # the first shows the shape of all
                images = np.empty((len(files), *pixels.shape), np.uint8)
            if pixels.shape != images.shape[1:]:
                first, other = (f"{w} x {h} pixels" for h, w, _ in (images.shape[1:], pixels.shape))
                raise ValueError(
                    f"The images differ in size: {files[decoded[0]].path} has {first}, "
                    f"{files[index].path} has {other}. Give `image_size`. Received: image_size=None"
                )
            images[len(decoded)] = pixels
            decoded.append(index)
        return images[: len(decoded)], labels[decoded].astype(np.int32)

    def _read(
        self, files: list[ImageFile], function: Callable[[Image.Image], T]
    ) -> Iterator[tuple[int, T]]:
        """Yields the index of each readable file with what a function makes of its image."""
        for index, file in enumerate(files):
            self._progress.advance()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", Image.DecompressionBombWarning)
                    _check_regular(file.path)
                    with Image.open(file.path, formats=FORMATS) as image:
                        result = function(image)
            except Exception as error:  # the exception depends on the format and the damage
                if not self.skip_unreadable:
                    raise ValueError(
                        f"`dataset` must hold images that Pillow can read. Received: {file.path}: "
                        f"{_reason(error)}. Remove the file, or leave unreadable files out with "
                        "`--skip-unreadable` (in Python `skip_unreadable=True`)"
                    ) from error
                self.skipped.append(file.path)
            else:
                yield index, result

    def _warn(self) -> None:
        """Warns of the files that were left out."""
        if self.skipped:
            count = len(self.skipped)
            names = ", ".join(os.path.basename(path) for path in self.skipped[:5])
            more = f" and {count - 5} more" if count > 5 else ""
            files = "1 unreadable file" if count == 1 else f"{count} unreadable files"
            warnings.warn(f"{self.name} is used without {files}: {names}{more}", stacklevel=4)


def _check_regular(path: str) -> None:
    """Raises OSError for a folder, and for a pipe, of which the end may never come."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no regular file")


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")


@validated
def convert_image(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Converts an image of any mode to 8-bit grey or RGB, upright, without transparency.

    Args:
        image: Image of Pillow.
        mode: "L" for grey, or "RGB".

    Raises:
        ValueError: If the grey levels are floating-point numbers, or do not fit in 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its grey levels are floating-point numbers, whose range is unknown")
    if image.mode.startswith("I"):
        image = _scale_16_bits(image)
    elif image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(mode)


def _scale_16_bits(image: Image.Image) -> Image.Image:
    """Grey levels in [0, 65535], which Pillow may hold as 32-bit integers, to [0, 255]."""
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its grey levels do not fit in 16 bits")
    return Image.fromarray(((levels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _crop(image: Image.Image, file: ImageFile) -> Image.Image:
    if file.box is None:
        return image
    left, top, right, bottom = file.box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise ValueError(
            f"`data_dir` must have boxes that lie within their images. Received: {file.box} for "
            f"{file.path}, which has {image.width} x {image.height} pixels. Correct the table"
        )
    return image.crop(file.box)
