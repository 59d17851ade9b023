"""Images of any size and mode, as a classifier reads them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.tasks.photos import read_image

pytestmark = pytest.mark.once

GREY = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10


def test_read_image_returns_grey_levels_and_colours() -> None:
    np.testing.assert_array_equal(read_image(GREY, 1), GREY[..., None])
    np.testing.assert_array_equal(read_image(GREY[..., None], 3), np.stack([GREY] * 3, -1))
    colours = np.stack([GREY, GREY // 2, GREY * 0], -1)
    np.testing.assert_array_equal(read_image(colours, 3), colours)
    np.testing.assert_array_equal(read_image(Image.fromarray(colours), 3), colours)
    luma = np.asarray(Image.fromarray(colours).convert("L"))
    np.testing.assert_array_equal(read_image(colours, 1), luma[..., None])


def test_read_image_lays_transparent_pixels_on_white() -> None:
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 1] = (10, 20, 30, 255)
    np.testing.assert_array_equal(read_image(pixels, 3), [[[255, 255, 255], [10, 20, 30]]])


def test_read_image_keeps_the_upper_bits_of_deep_images(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(path)
    np.testing.assert_array_equal(read_image(path, 1), [[[0], [1], [255]]])


def test_read_image_reads_palettes_and_bits(tmp_path: Path) -> None:
    path = tmp_path / "some name ü.gif"
    Image.fromarray(GREY).convert("P").save(path)
    np.testing.assert_array_equal(read_image(str(path), 1), GREY[..., None])
    bits = np.array([[True, False]])
    np.testing.assert_array_equal(read_image(Image.fromarray(bits), 1), [[[255], [0]]])


def test_read_image_turns_a_photo_upright(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    Image.fromarray(GREY).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], np.rot90(GREY, -1))


@pytest.mark.parametrize(
    "image",
    [3, None, [[1, 2]], GREY.astype(float), GREY[0], np.zeros((2, 2, 2), np.uint8), GREY[:0]],
)
def test_read_image_rejects_what_is_no_image(image: Any) -> None:
    with pytest.raises(ValueError, match=r"`image` must be the path of an image file, .* Received"):
        read_image(image, 1)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_read_image_names_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    text = f"`image` must be an image file that Pillow reads, .*Received: {re.escape(str(path))}: "
    with pytest.raises(ValueError, match=text):
        read_image(path, 3)


def test_read_image_names_a_truncated_file_and_one_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(GREY).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"photo\.png: Image size \(24 pixels\) exceeds limit"):
        read_image(path, 1)
    monkeypatch.undo()
    noise = np.random.default_rng(0).integers(256, size=(50, 50), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"`image` must be an image file .*photo\.png: "):
        read_image(path, 1)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png", 1)
