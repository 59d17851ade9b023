"""Labelled images in archives: an `.npz` file of NumPy, and the IDX files of MNIST.

Sizes are taken from the headers and checked before an array is allocated: what is decompressed is
at most 100 times as large as its file.
"""

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets.classes import check_classes
from zoo.files.arrays import read_npz
from zoo.validation import AnyPath, validated

MAX_RATIO = 100  # of the images to their file; MNIST's is 5

Parts = dict[str, tuple[np.ndarray, np.ndarray]]

_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_UNSIGNED_BYTE = 8  # IDX's code of the type
_IDX_NAMES = {"train": "train", "test": "t10k"}


@validated
def load_npz(path: AnyPath) -> tuple[Parts, tuple[str, ...]]:
    """Reads labelled images from an `.npz` file.

    Args:
        path: Path of a file with the arrays `x_train` and `x_test`, uint8 of shape (N, H, W),
            (N, H, W, 1) or (N, H, W, 3); `y_train` and `y_test`, whole numbers from 0 on of shape
            (N,); and, if wanted, `class_names`, strings of shape (classes,).

    Returns:
        Images and labels of "train" and "test", and the name of each class, by default its number.

    Raises:
        ValueError: If the file is damaged, lacks an array, needs pickle, or an array is not as
            described.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    remedy = "Write it with `np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)`"
    try:
        arrays = read_npz(path, (*_NPZ_ARRAYS, "class_names"), "fiubU", MAX_RATIO)
    except (EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            "`dataset` must be an undamaged .npz file of arrays that need no pickle. "
            f"Received: {path}: {error}. {remedy}"
        ) from error
    for name in _NPZ_ARRAYS:
        if name not in arrays:
            raise ValueError(
                f"`dataset` must have the arrays {', '.join(_NPZ_ARRAYS)}. Received: {path} "
                f"without {name}. {remedy}"
            )
    parts = {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}
    for part, (images, labels) in parts.items():
        _check_images(images, f"x_{part}", path)
        _check_labels(labels, len(images), f"y_{part}", path)
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise ValueError(
            f"`class_names` must be strings of shape (classes,). Received: shape={names.shape}, "
            f"dtype={names.dtype} in {path}"
        )
    class_names = _class_names(parts, None if names is None else names.tolist(), path)
    return parts, class_names


def _check_images(images: np.ndarray, name: str, path: Path) -> None:
    is_grey = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 1)
    is_colour = images.ndim == 4 and images.shape[-1] == 3
    if not (is_grey or is_colour) or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"`{name}` must be uint8 of shape (N, height, width), (N, height, width, 1) or "
            f"(N, height, width, 3). Received: shape={images.shape}, dtype={images.dtype} in {path}"
        )


def _check_labels(labels: np.ndarray, count: int, name: str, path: Path) -> None:
    if labels.shape != (count,):
        raise ValueError(
            f"`{name}` must have a label for each of {count} images, shape ({count},). "
            f"Received: shape={labels.shape} in {path}"
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be whole numbers from 0 on. Received: dtype={labels.dtype} in {path}"
        )
    if labels.min() < 0:
        raise ValueError(
            f"`{name}` must be whole numbers from 0 on. Received: {labels.min()} at index "
            f"{labels.argmin()} in {path}"
        )


def _class_names(parts: Parts, names: list[str] | None, path: Path) -> tuple[str, ...]:
    """Checks labels against the names of the classes, which by default are their numbers."""
    y_train = parts["train"][1]
    # There are no more classes than training images, however large a label is.
    count = min(int(y_train.max()) + 1, len(y_train)) if names is None else len(names)
    for part, (_, labels) in parts.items():
        if labels.max() >= count:
            index = labels.argmax()
            raise ValueError(
                f"`y_{part}` must lie in [0, {count}), the classes of "
                f"{'the training images' if names is None else '`class_names`'}. Received: "
                f"{labels[index]} at index {index} in {path}"
            )
    class_names = [str(number) for number in range(count)] if names is None else names
    remedy = "Number the classes from 0 on without a gap"
    check_classes({part: labels for part, (_, labels) in parts.items()}, class_names, str(path),
                  remedy)  # fmt: skip
    return tuple(class_names)


@validated
def load_idx(folder: AnyPath) -> tuple[Parts, tuple[str, ...]]:
    """Reads labelled images from the four files of MNIST's format, IDX.

    Args:
        folder: Path of the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
            t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is or with gzip (.gz).

    Returns:
        Images and labels of "train" and "test", and the number of each class as its name.

    Raises:
        ValueError: If a file is missing or damaged, or has another magic number or size than its
            format says.
        OSError: If a file cannot be read.

    Source: http://yann.lecun.com/exdb/mnist ("File formats").
    """
    folder = Path(folder)
    parts = {}
    for part, name in _IDX_NAMES.items():
        images = _read_idx(_idx_file(folder, f"{name}-images-idx3-ubyte"), 3)
        labels = _read_idx(_idx_file(folder, f"{name}-labels-idx1-ubyte"), 1, len(images))
        parts[part] = images, labels
    return parts, _class_names(parts, None, folder)


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(
        f"`data_dir` must be a folder of MNIST's IDX files. Received: {folder} without {name} or "
        f"{name}.gz"
    )


def _read_idx(path: Path, ndim: int, count: int | None = None) -> np.ndarray:
    """Reads an IDX file of unsigned bytes; `count` is the length that it must have."""
    try:
        with open(path, "rb") as raw:
            compressed = path.suffix == ".gz"
            file: Any = gzip.GzipFile(fileobj=raw) if compressed else raw
            shape = _idx_shape(file.read(4 + 4 * ndim), ndim)
            if count not in (None, shape[0]):
                raise ValueError(f"it has {shape[0]} labels for {count} images")
            size = math.prod(shape)
            # Labels in the order of the classes compress better, but there is one for each image.
            ratio = MAX_RATIO if compressed else 1
            if not size or (count is None and size > ratio * path.stat().st_size):
                raise ValueError(f"its shape {shape} does not fit the size of the file")
            content = file.read(size + 1)  # the end of a file of gzip has a checksum
    except (EOFError, gzip.BadGzipFile, ValueError, zlib.error) as error:
        raise _idx_fault(path, str(error)) from error
    if len(content) != size:
        more = "more" if len(content) > size else f"{len(content)}"
        raise _idx_fault(path, f"its shape {shape} needs {size} bytes, and it has {more}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _idx_shape(header: bytes, ndim: int) -> tuple[int, ...]:
    magic = bytes((0, 0, _UNSIGNED_BYTE, ndim))
    if header[:4] != magic:
        raise ValueError(f"its magic number is 0x{header[:4].hex()}, and not 0x{magic.hex()}")
    if len(header) < 4 + 4 * ndim:
        raise ValueError("it ends within its header")
    return struct.unpack(f">{ndim}I", header[4:])


def _idx_fault(path: Path, text: str) -> ValueError:
    return ValueError(
        f"`data_dir` must hold undamaged IDX files of images and labels. Received: {path}: {text}. "
        "Get the file again"
    )
