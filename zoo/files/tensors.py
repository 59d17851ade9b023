"""Safetensors files of a model's weights: their header is checked before an array is allocated.

A file holds each weight by its path in the model, in float32 or float16. The format is plain data,
and the library checks that the arrays fill the file without gaps.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

StorageDType = Literal["float32", "float16"]

_MAX_HEADER = 1 << 20  # bytes; some 10,000 arrays
_DTYPES = ("F32", "F16")


def weight_shapes(path: Path) -> list[tuple[int, ...]]:
    """Returns the shapes of the arrays in a file, which are not read.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If the file is damaged, or holds arrays of other types.
        OSError: If the file cannot be read.
    """
    with _open(path) as file:
        return [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118


def save_weights(
    model: keras.Model, dtype: StorageDType, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Returns the content of a file with the weights of a model.

    Args:
        model: Model whose weights have different paths.
        dtype: Type of the stored numbers.
        metadata: Texts by key for the header.

    Raises:
        ValueError: If two weights have one path, or a weight is not finite in this type.
    """
    arrays: dict[str, np.ndarray] = {}
    for weight in model.weights:
        if weight.path in arrays:
            raise ValueError(
                "`model` must have weights with different paths. Received: two weights with the "
                f"path {weight.path}. Give the layers names"
            )
        values = keras.ops.convert_to_numpy(keras.ops.cast(weight.value, "float32"))
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"`model` must have weights that are finite in {dtype}. Received: {weight.path} "
                f"with values up to {np.abs(values).max():g}"
            )
        arrays[weight.path] = stored
    return save(arrays, None if metadata is None else dict(metadata))


def load_weights(model: keras.Model, path: Path) -> None:
    """Loads a file of weights into a model, wholly or not at all.

    Args:
        model: Model that the weights belong to.
        path: Path of the file.

    Raises:
        ValueError: If the file is damaged, does not hold the weights of the model, or one of them
            is not finite. The model is as it was.
        OSError: If the file cannot be read.
    """
    weights = {weight.path: weight for weight in model.weights}
    with _open(path) as file:
        stored = set(file.keys())
        if stored != set(weights):
            name = min(stored ^ set(weights))
            kind = "an unknown array" if name in stored else "no array"
            raise ValueError(
                f"{path} must hold the weights of {model.name}. Received: {kind} {name}"
            )
        for name, weight in weights.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(weight.shape):
                raise ValueError(
                    f"{path} must hold {name} of shape {tuple(weight.shape)}. Received: {shape}"
                )
        for name in weights:
            if not np.isfinite(file.get_tensor(name)).all():
                raise ValueError(
                    f"{path} must hold finite numbers. Received: a NaN or an infinity in {name}"
                )
        for name, weight in weights.items():
            weight.assign(file.get_tensor(name).astype(np.float32))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ValueError(f"{path} must be a safetensors file. Received: no file")
    with open(path, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > _MAX_HEADER:
        raise ValueError(
            f"{path} must be a safetensors file with a header of at most {_MAX_HEADER:,} bytes. "
            f"Received: {header:,}"
        )
    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be an undamaged safetensors file. Received: {error}"
        ) from error
    with opened as file:
        for name in file.keys():  # noqa: SIM118
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(
                    f"{path} must hold arrays of float32 or float16. Received: {dtype} at {name}"
                )
        yield file
