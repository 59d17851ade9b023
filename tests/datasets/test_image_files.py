import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import pictures
from tests.datasets.pictures import save
from zoo.datasets.augmentation import resize
from zoo.datasets.image_files import ImageDecoder, ImageFile

pytestmark = pytest.mark.once


def decode(*paths: Path, size: int | None = None, **options: object) -> np.ndarray:
    """The pixels of files, all of one part and one class."""
    decoder = ImageDecoder("drawn", size, verbose=False, **options)  # type: ignore[arg-type]
    files = [ImageFile(str(path)) for path in paths]
    return decoder.decode({"train": (files, np.zeros(len(files), int))}, ["only"])["train"][0]


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, 255),
        ("L", 100, 100),
        ("LA", (100, 255), 100),
        ("LA", (100, 0), 255),
        ("LA", (0, 51), 204),  # a fifth of black over white
        ("P", 7, (7, 8, 9)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("I;16", 65535, 255),
        ("I;16", 257 * 100, 100),
        ("I;16", 257 * 100 + 128, 100),
        ("I;16", 257 * 100 + 129, 101),
    ],
)
def test_decode_turns_each_mode_into_grey_or_rgb(
    tmp_path: Path, mode: str, pixel: object, expected: object
) -> None:
    image = Image.new(mode, (3, 2), pixel)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([value for i in range(256) for value in (i, (i + 1) % 256, (i + 2) % 256)])
    path = save(image, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    pixels = decode(path)
    channels = 1 if isinstance(expected, int) else 3
    assert pixels.shape == (1, 2, 3, channels)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_decode_shows_white_where_one_colour_is_transparent(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), {"P": 1, "RGB": (9, 9, 9), "L": 9}[mode])
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    path = save(image, tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert decode(path)[0, 0, :, 0].tolist() == [255, 9]


def test_decode_reads_big_endian_and_32_bit_storage_of_16_bits(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 65535]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + levels.tobytes())  # mode I of Pillow
    save(Image.fromarray(levels.astype(np.int32)), tmp_path / "b.tif")
    Image.frombytes("I;16B", (3, 1), levels.tobytes()).save(tmp_path / "c.tif")
    pixels = decode(*(tmp_path / name for name in ("a.pgm", "b.tif", "c.tif")))
    assert pixels[:, 0, :, 0].tolist() == [[0, 1, 255]] * 3


def test_decode_makes_all_images_rgb_if_one_is(tmp_path: Path) -> None:
    grey = save(Image.new("L", (2, 2), 50), tmp_path / "grey.png")
    colour = save(Image.new("RGB", (2, 2), (1, 2, 3)), tmp_path / "colour.png")
    assert decode(grey).shape == (1, 2, 2, 1)
    np.testing.assert_array_equal(decode(grey, colour)[:, 0, 0], [[50, 50, 50], [1, 2, 3]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_respects_the_orientation_of_exif(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # What a camera stores so that a viewer who follows EXIF 2.32, section 4.6.4, sees `upright`.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(path)[0, ..., 0], upright)


def test_decode_resizes_as_resize_does(tmp_path: Path) -> None:
    images = [pictures.draw("circle", "RGB", 31, 17), pictures.draw("square", "RGB", 9, 60)]
    paths = [save(image, tmp_path / f"{i}.png") for i, image in enumerate(images)]
    expected = resize([np.asarray(image) for image in images], 13)
    np.testing.assert_array_equal(decode(*paths, size=13), expected)


def test_decode_rejects_different_sizes_without_a_size(tmp_path: Path) -> None:
    paths = [save(Image.new("L", (5, height)), tmp_path / f"{height}.png") for height in (4, 6)]
    with pytest.raises(ValueError, match=r"differ in size: .*4\.png has 5 x 4 pixels, .*6\.png ha"):
        decode(*paths)


# ------------------------------------------------------------------ unreadable files


def bomb() -> bytes:
    """A PNG of a few bytes whose header says 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def large_bomb_warning() -> bytes:
    """As `bomb`, but of a size for which Pillow has a warning and no error."""
    small = bytearray(bomb())
    small[16:24] = struct.pack(">II", 10_000, 10_000)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)


def truncated() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()[:900]


def floats() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def beyond_16_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 65536, np.int32)).save(buffer, "TIFF")
    return buffer.getvalue()


UNREADABLE = {
    "empty": (b"", "cannot identify image file"),
    "text": (b"This is no image.", "cannot identify image file"),
    # EPS is read by another program, Ghostscript.
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "cannot identify image file"),
    "bomb": (bomb(), "decompression bomb"),
    "smaller bomb": (large_bomb_warning(), "decompression bomb"),
    "truncated": (truncated(), "truncated"),
    "floats": (floats(), "floating-point numbers"),
    "beyond": (beyond_16_bits(), "do not fit in 16 bits"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_decode_names_an_unreadable_file_or_leaves_it_out(tmp_path: Path, name: str) -> None:
    content, reason = UNREADABLE[name]
    good, bad = tmp_path / "good.png", tmp_path / f"{name}.png"
    save(Image.new("L", (2, 2), 7), good)
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        decode(good, bad)
    text = str(error.value)
    assert f"Received: {bad}: " in text
    assert "`--skip-unreadable`" in text
    assert "\n" not in text
    with pytest.warns(UserWarning, match=rf"drawn is used without 1 unreadable file: {name}\.png$"):
        pixels = decode(bad, good, bad.with_name("good.png"), skip_unreadable=True)
    assert pixels[:, 0, 0, 0].tolist() == [7, 7]


def test_decode_warns_with_the_number_and_first_names(tmp_path: Path) -> None:
    good = save(Image.new("L", (2, 2)), tmp_path / "good.png")
    missing = [tmp_path / f"{i}.png" for i in range(7)]
    text = r"7 unreadable files: 0\.png, 1\.png, 2\.png, 3\.png, 4\.png and 2 more$"
    with pytest.warns(UserWarning, match=text):
        assert len(decode(*missing, good, skip_unreadable=True)) == 1
    with pytest.raises(ValueError, match=r"0\.png: No such file or directory\. Remove"):
        decode(missing[0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_decode_waits_for_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(ValueError, match=f"{path}: it is no regular file"):
            decode(path)


def test_decode_rejects_a_class_of_unreadable_files(tmp_path: Path) -> None:
    good = save(Image.new("L", (2, 2)), tmp_path / "good.png")
    decoder = ImageDecoder("drawn", skip_unreadable=True, verbose=False)
    files = [ImageFile(str(good)), ImageFile(str(tmp_path / "missing.png"))]
    with pytest.raises(
        ValueError,
        match=r"a readable test image of each class.* those of dog are all unr.*missing\.png",
    ):
        decoder.decode({"test": (files, np.array([0, 1]))}, ["cat", "dog"])


def test_decode_keeps_no_second_copy(tmp_path: Path) -> None:
    """Files are decoded into the array that is returned, one at a time."""
    path = save(pictures.draw("circle", "RGB", 30, 30), tmp_path / "a.png")
    decode(path, size=48)  # imports what Pillow needs
    files = [ImageFile(str(path))] * 2000
    labels = np.zeros(len(files), np.int32)
    tracemalloc.start()
    decoder = ImageDecoder("drawn", 48, verbose=False)
    images, _ = decoder.decode({"train": (files, labels)}, ["only"])["train"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert images.nbytes == 2000 * 48 * 48 * 3
    assert peak < 1.05 * images.nbytes


def test_decode_shows_progress_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zoo.progress.INTERVAL", 0)
    path = save(Image.new("L", (2, 2)), tmp_path / "a.png")
    decode(path)
    assert capsys.readouterr().out == ""
    decoder = ImageDecoder("drawn")
    decoder.decode({"train": ([ImageFile(str(path))], np.zeros(1, int))}, ["only"])
    assert capsys.readouterr().out.splitlines() == [
        "images: 1 of 2 steps", "images: 2 of 2 steps",
    ]  # fmt: skip
