"""Files of arrays, whose headers are checked before an array is allocated.

The memory of the arrays is at most the size of the file, in which every array must lie as it is,
or at most a given multiple of it, if the caller allows compression.
"""

import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from zoo.random import DrawCounter

_NUMERIC = "fiub"
_LARGEST_HEADER = 10_000  # bytes of an array's header
_CHUNK = 1 << 22  # numbers that are read at once
# Kinds of arrays that a variable of each kind takes.
_KINDS = {"f": "f", "i": "iu", "u": "iu", "b": "b"}

Shape = tuple[int, ...]


def cast_array(array: np.ndarray, dtype: str) -> np.ndarray:
    """Converts an array that was read to the dtype of a variable.

    Args:
        array: Floating-point numbers for a floating-point dtype, integers for an integer dtype,
            truth values for the dtype bool.
        dtype: Keras' name of the dtype.

    Returns:
        The array in the dtype, with finite numbers only; the same array if it has the dtype.
        float32 stands for bfloat16, which NumPy lacks.

    Raises:
        ValueError: If the array is of another kind, or a number is not finite in the dtype. The
            text is the fault alone, such as "is of type int64 instead of float32".
    """
    target = np.dtype("float32" if dtype == "bfloat16" else dtype)
    if array.dtype.kind not in _KINDS[target.kind]:
        raise ValueError(f"is of type {array.dtype} instead of {dtype}")
    if target.kind == "f":
        with np.errstate(over="ignore"):
            value = array.astype(target, copy=False)
            rounded = value.astype(dtype).astype(target) if dtype == "bfloat16" else value
        if np.isfinite(rounded).all():
            return value
        if not np.isfinite(array).all():
            raise ValueError("holds a NaN or an infinity")
    elif target.kind == "b" or not array.size:
        return array.astype(target, copy=False)
    else:
        limits = np.iinfo(target)
        if limits.min <= int(array.min()) and int(array.max()) <= limits.max:
            return array.astype(target, copy=False)
    raise ValueError(
        f"holds numbers from {array.min()} to {array.max()}, outside the range of {dtype}"
    )


def read_npz(
    path: Path,
    names: Collection[str] | None = None,
    kinds: str = _NUMERIC,
    max_ratio: int = 1,
) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file that `np.savez` wrote.

    Args:
        path: Path of the file.
        names: Names of the arrays to read, where the file has them; by default all.
        kinds: Kinds of types that the arrays may have, as in `np.dtype.kind`.
        max_ratio: Largest ratio of the arrays' size to the file's. Above 1, arrays may be
            compressed, as by `np.savez_compressed`.

    Returns:
        The arrays by name.

    Raises:
        ValueError: If an array is compressed, is of another kind, is not finite, or is not as
            large as its header says; then nothing is allocated.
        zipfile.BadZipFile: If the file is damaged; that of a compressed array may be `zlib.error`.
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if names is not None:
            members = [m for m in members if m.filename.removesuffix(".npy") in names]
        if sum(member.file_size for member in members) > max_ratio * path.stat().st_size:
            times = "" if max_ratio == 1 else f"more than {max_ratio} times "
            raise ValueError(f"its arrays are {times}larger than the file")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("it holds an array twice")
        for member in members:
            _check_npy(archive, member, kinds, may_be_compressed=max_ratio > 1)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            content = {m.filename.removesuffix(".npy"): arrays[m.filename] for m in members}
    for name, array in content.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds a NaN or an infinity")
    return content


def _check_npy(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, kinds: str, may_be_compressed: bool
) -> None:
    if member.compress_type != zipfile.ZIP_STORED and not (
        may_be_compressed and member.compress_type == zipfile.ZIP_DEFLATED
    ):
        raise ValueError(f"{member.filename} is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # `np.savez` needs others for structured types only
            raise ValueError(f"{member.filename} has a header of version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, _LARGEST_HEADER)
        size = member.file_size - file.tell()
    if dtype.kind not in kinds:
        raise ValueError(f"{member.filename} is of type {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{member.filename} has shape {shape}, but {size} bytes")


def weight_shapes(path: Path) -> list[Shape]:
    """Returns the shapes of the arrays in a weights file, which are not read.

    Args:
        path: Path of a `.weights.h5` file of Keras.

    Raises:
        ValueError: If the file is damaged, or holds anything but plain arrays of numbers.
        OSError: If the file cannot be read.
    """
    with _open_weights(path) as file:
        return [dataset.shape for dataset in _datasets(file)]


def load_weights(model: keras.Model, path: Path) -> None:
    """Loads a weights file of Keras into a model, wholly or not at all.

    Args:
        model: Model that the weights belong to.
        path: Path of a `.weights.h5` file.

    Raises:
        ValueError: If the file is damaged, does not hold the arrays of the model, or one of them
            is not finite in the dtype of the model. The model is as it was.
        OSError: If the file cannot be read.
    """
    with _open_weights(path) as file:
        _check_kinds(model, file)
        for dataset in _datasets(file):
            if not all(map(_is_finite, _parts(dataset))):
                raise ValueError(
                    f"{path} must hold finite numbers. Received: a NaN or an infinity in "
                    f"{dataset.name}"
                )
            if _kind(dataset.dtype) == "integers":
                _check_range(model, dataset)
    original_values = [keras.ops.convert_to_numpy(variable.value) for variable in model.variables]
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("error", UserWarning)  # Keras skips what it does not find
            model.load_weights(path)
        overflowed = _not_finite(model)
        if overflowed is not None:
            raise ValueError(
                f"numbers outside the range of {overflowed.dtype} for {overflowed.path}"
            )
    except (KeyError, TypeError, UserWarning, ValueError) as error:  # arrays under other names
        for variable, value in zip(model.variables, original_values):
            variable.assign(value)
        text = " ".join(str(error).split())
        raise ValueError(
            f"{path} must hold the weights of {model.name}. Received: {text}"
        ) from error


def _check_kinds(model: keras.Model, file: h5py.File) -> None:
    """Raises ValueError unless a file holds arrays of the shapes and kinds of a model.

    The kinds are floating-point numbers, integers and truth values.
    """
    # Keras saves the weights and some of the other variables; `DrawCounter` saves a number.
    weights, variables = (
        Counter((tuple(variable.shape), _kind(np.dtype(variable.dtype))) for variable in group)
        for group in (model.weights, model.variables)
    )
    variables[(), "integers"] += sum(isinstance(x, DrawCounter) for x in model._flatten_layers())
    arrays = Counter((dataset.shape, _kind(dataset.dtype)) for dataset in _datasets(file))
    excess, lacking = arrays - variables, weights - arrays
    faults = []
    for counter, text in ((excess, "too many"), (lacking, "too few")):
        if counter:
            shape, kind = next(iter(counter))
            faults.append(
                f"{sum(counter.values())} arrays {text}, such as one of shape {shape} of {kind}"
            )
    if faults:
        raise ValueError(
            f"{file.filename} must hold the arrays of {model.name}. Received: {'; '.join(faults)}"
        )


def _check_range(model: keras.Model, dataset: h5py.Dataset) -> None:
    """Raises ValueError if integers are outside the range of the variables of their shape."""
    dtypes = {v.dtype for v in model.variables if tuple(v.shape) == dataset.shape}
    for dtype in dtypes:
        if _kind(np.dtype(dtype)) != "integers":
            continue
        for part in _parts(dataset):
            try:
                cast_array(part, dtype)
            except ValueError as error:
                raise ValueError(
                    f"{dataset.file.filename} must fit {model.name}. Received: an array that "
                    f"{error}: {dataset.name}"
                ) from error


def _kind(dtype: np.dtype) -> str:
    return {"i": "integers", "u": "integers", "b": "truth values"}.get(dtype.kind, "floats")


def check_finite(model: keras.Model) -> None:
    """Raises ValueError if a variable of a model holds a NaN or an infinity."""
    variable = _not_finite(model)
    if variable is not None:
        raise ValueError(
            f"`model` must have finite weights. Received: a NaN or an infinity in {variable.path}"
        )


def _not_finite(model: keras.Model) -> Any:
    """The first variable of a model with a NaN or an infinity, or None."""
    for variable in model.variables:
        if not np.isfinite(keras.ops.convert_to_numpy(variable.value)).all():
            return variable
    return None


def _open_weights(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} must be a weights file of Keras. Received: no file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(
            f"{path} must be an undamaged weights file of Keras. Received: {error}"
        ) from error


def _datasets(file: h5py.File) -> Iterator[h5py.Dataset]:
    """Yields the datasets of a weights file.

    Raises:
        ValueError: If it holds something that Keras does not write: a link, a compressed or an
            external dataset, one without its bytes in the file, or a type that is not numeric.
    """
    groups = [file]
    seen = {h5py.h5o.get_info(file.id).addr}
    while groups:
        group = groups.pop()
        for name in group:
            address = f"{group.name.rstrip('/')}/{name}"
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise _not_plain(file, address, "a link")
            item = group[name]
            identity = h5py.h5o.get_info(item.id).addr
            if identity in seen:
                raise _not_plain(file, address, "an object that occurs twice")
            seen.add(identity)
            if isinstance(item, h5py.Group):
                groups.append(item)
                continue
            if not isinstance(item, h5py.Dataset) or item.shape is None:
                raise _not_plain(file, address, "no array")
            if item.chunks or item.is_virtual or item.external:
                raise _not_plain(file, address, "an array that is compressed or elsewhere")
            if item.dtype.kind not in _NUMERIC and not _is_bfloat16(item):
                raise _not_plain(file, address, f"an array of type {item.dtype}")
            if item.id.get_storage_size() != math.prod(item.shape) * item.dtype.itemsize:
                raise _not_plain(file, address, "an array without its bytes")
            yield item


def _not_plain(file: h5py.File, address: str, received: str) -> ValueError:
    return ValueError(
        f"{file.filename} must hold plain arrays of numbers. Received: {received} at {address}"
    )


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is what Keras writes of a bfloat16 variable, which HDF5 does not know."""
    return bool(dataset.dtype == "V2" and dataset.attrs.get("dtype") == "bfloat16")


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind == "V":  # bfloat16: the exponent of a NaN or an infinity has all bits set
        return not ((array.view(np.uint16) & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(array).all())


def _parts(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """Yields a dataset in parts, so that a large one is not in memory twice."""
    if dataset.ndim == 0:
        yield np.asarray(dataset[()])
        return
    rows = max(1, _CHUNK // max(1, math.prod(dataset.shape[1:])))
    for first in range(0, len(dataset), rows):
        yield np.asarray(dataset[first : first + rows])
