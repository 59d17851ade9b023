"""Checkpoint files that every backend reads, and that a killed process leaves whole.

A checkpoint is one `.npz` file: every variable of the model and of the optimizer by its path, the
progress of the run, and its identity, by which the checkpoint of another run is refused. The file
is written under a temporary name and renamed when it is on the disk, so that a checkpoint's name
always holds a whole file. The archive's checksums reveal later damage. The last two checkpoints are
kept.
"""

import contextlib
import errno
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.files.arrays import cast_array, read_npz
from zoo.validation import show

_PROGRESS = "progress.json"
_IDENTITY = "identity.json"
_KEEP = 2
_UNFINISHED = ".unfinished-"  # begins the names of files that are being written
_NAME = r"step-\d{9}\.npz"  # other files of the folder, such as step-best.npz, are the user's


Identity = Mapping[str, Mapping[str, Any]]
"""What a training depends on, by name, as JSON can hold it: its `configuration`, SHA-256 digests of
its `inputs`, and the `order` of its examples."""

_REMEDIES = {
    "configuration": "Give the flags that it was saved with, without config.json if that was "
    "edited; or, if it comes from another run, move it out of the folder",
    "inputs": "Restore that file, or remove it, so that the same command makes it again",
    "order": "Give `fit` the same `Batches`, or `checkpoint` another folder",
}


class NotFinite(ValueError):
    """A variable holds a NaN or an infinity; nothing was written."""


def save(
    folder: Path,
    step: int,
    progress: dict[str, Any],
    identity: Identity | None = None,
    **parts: Any,
) -> Path:
    """Writes a checkpoint and removes all but the last two; other files are left alone.

    Args:
        folder: Folder of the checkpoints; created if it is not there.
        step: Number of the step, for the file's name.
        progress: Progress of the run, as JSON can hold it.
        identity: Identity of the training, by which `restore` knows its checkpoints.
        **parts: Objects with `variables`, by the names that `restore` uses.

    Raises:
        NotFinite: If a variable holds a NaN or an infinity.
        OSError: If the file cannot be written. The text names the last good checkpoint, which
            stays.
    """
    arrays = {}
    for path, variable in _variables(parts):
        array = np.asarray(keras.ops.convert_to_numpy(variable.value))
        if array.dtype.kind not in "fiub":  # bfloat16, which `.npz` does not know
            array = array.astype(np.float32)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(f"{path} holds a NaN or an infinity at step {step}")
        arrays[path] = array
    text = json.dumps({**progress, "step": step}).encode()
    arrays[_PROGRESS] = np.frombuffer(text, np.uint8)
    arrays[_IDENTITY] = np.frombuffer(json.dumps(identity or {}).encode(), np.uint8)
    target = folder / f"step-{step:09d}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise write_error(f"the checkpoint {target}", folder, error) from error
    for old in _newest_first(folder)[_KEEP:]:
        old.unlink()
    return target


def read_all(**parts: Any) -> None:
    """Reads the variables that `save` writes, of which another worker reads this one's parts."""
    for _, variable in _variables(parts):
        variable.value  # noqa: B018


def restore(
    folder: Path,
    progress_type: Any = dict[str, Any],
    identity: Identity | None = None,
    **parts: Any,
) -> Any:
    """Restores the newest whole checkpoint, and warns of damaged ones.

    Args:
        folder: Folder of the checkpoints.
        progress_type: Type of the progress. A checkpoint with something else counts as damaged.
        identity: Identity of the training. Each of its parts must be as it was saved; by default
            the checkpoint of any training is restored.
        **parts: Objects with `variables`, by the names they were saved under.

    Returns:
        The progress in the checkpoint, or None if there is no whole checkpoint.

    Raises:
        ValueError: If the checkpoint belongs to another training (the text names what differs),
            holds other variables, or numbers that are of another kind or not finite in the dtype of
            a variable; then nothing is restored.
    """
    remove_unfinished(folder, _NAME)
    for path in _newest_first(folder):
        try:
            arrays, progress, saved_identity = _read(path, progress_type)
        except PermissionError:
            raise  # the file itself may be whole
        except Exception as error:  # a damaged archive raises many kinds of errors
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            earlier = newest(folder)
            warnings.warn(
                f"The checkpoint {path} is damaged ({error}) and was set aside as {aside.name}; "
                + (f"{earlier.name} is tried next" if earlier else "the training begins anew"),
                stacklevel=2,
            )
            continue
        _check_identity(path, saved_identity, identity or {})
        _assign(path, arrays, dict(_variables(parts)))
        for part in parts.values():
            if isinstance(part, keras.Model):
                finalize_layer_state(part)
        return progress
    return None


def finalize_layer_state(model: keras.Model) -> None:
    """Calls `finalize_state()` on layers that cache constants.

    `keras.layers.Normalization` computes constants from its variables. After an assignment they
    are up to date on PyTorch only.
    """
    for layer in model._flatten_layers():
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def newest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, or None."""
    return next(iter(_newest_first(folder)), None)


def identities(folder: Path) -> Iterator[Identity]:
    """Yields the identities in the whole checkpoints of a folder, from the newest on."""
    for path in _newest_first(folder):
        with contextlib.suppress(Exception):  # a damaged archive raises many kinds of errors
            yield _read(path)[2]


def _check_identity(path: Path, saved: Identity, expected: Identity) -> None:
    for part, values in expected.items():
        earlier = saved.get(part, {})
        if differing := differences(earlier, values):
            raise ValueError(
                f"The checkpoint {path} belongs to another training: {', '.join(differing)}. "
                f"{_REMEDIES[part]}"
            )


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the entries in which two mappings differ, such as "seed was 0 and is 1"."""
    return [
        f"{name} was {show(earlier.get(name))} and is {show(now.get(name))}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    ]


def write_error(name: str, folder: Path, error: OSError) -> OSError:
    """The error of a file that could not be written, which says what is safe.

    Args:
        name: Name of the file, for the text.
        folder: Folder of the checkpoints of the same training.
        error: Error of the operating system.
    """
    last = newest(folder)
    safe = f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
    remedy = "make room" if error.errno in _NO_ROOM else "remove the cause"
    text = f"{error.strerror}. {safe}; {remedy} and run the same command again"
    return OSError(error.errno, f"Could not write {name}: {text}")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unfinished_path(path: Path) -> Path:
    """The temporary path of a file that is being written."""
    return path.with_name(f"{_UNFINISHED}{path.name}")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Any]:
    """Opens a file that gets its name only once the whole content is on the disk."""
    temporary = unfinished_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class NamedBuffer(io.BytesIO):
    """A file in memory with a name, whose suffix Keras checks."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def __str__(self) -> str:
        return self._name


def _sync_folder(folder: Path) -> None:
    """Waits until the names of a folder's files are on the disk, where a folder can be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # always on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_mismatches(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Describes arrays that are missing, unknown or of another shape."""
    wrong = [f"{name} is missing" for name in shapes if name not in arrays]
    for name, array in arrays.items():
        if name not in shapes:
            wrong.append(f"{name} is unknown")
        elif array.shape != shapes[name]:
            wrong.append(f"{name} has shape {array.shape} instead of {shapes[name]}")
    return wrong


def remove_unfinished(folder: Path, names: str) -> None:
    """Removes files that `atomic_write` left when its process was killed.

    Args:
        folder: Folder that no other process writes to.
        names: Regular expression of the names that the files were to get.
    """
    for path in folder.glob(f"{_UNFINISHED}*"):
        if re.fullmatch(names, path.name.removeprefix(_UNFINISHED), re.ASCII):
            path.unlink(missing_ok=True)


def _read(
    path: Path, progress_type: Any = dict[str, Any]
) -> tuple[dict[str, np.ndarray], Any, Identity]:
    """The variables, the progress and the identity in a checkpoint."""
    from zoo.files import documents  # loads pydantic, which `import zoo` must not wait for

    arrays = read_npz(path)
    text = arrays.pop(_PROGRESS).tobytes()
    progress = documents.parse(text, progress_type, _PROGRESS, remedy="", allow_nan=True)
    text = arrays.pop(_IDENTITY, np.frombuffer(b"{}", np.uint8)).tobytes()
    identity = documents.parse(text, dict[str, dict[str, Any]], _IDENTITY, remedy="")
    return arrays, progress, identity


def _variables(parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, part in parts.items():
        for variable in part.variables:
            yield f"{name}/{variable.path}", variable


def _newest_first(folder: Path) -> list[Path]:
    names = (path for path in folder.glob("step-*") if re.fullmatch(_NAME, path.name, re.ASCII))
    return sorted(names, reverse=True)


def _assign(path: Path, arrays: dict[str, np.ndarray], variables: dict[str, Any]) -> None:
    """Assigns all variables or, if an array does not fit, none."""
    wrong = find_mismatches(arrays, {name: tuple(v.shape) for name, v in variables.items()})
    values = {}
    for name in [name for name in variables if name in arrays]:
        try:
            values[name] = cast_array(arrays[name], variables[name].dtype)
        except ValueError as error:
            wrong.append(f"{name} {error}")
    if wrong:
        raise ValueError(f"The checkpoint {path} does not fit this model: {'; '.join(wrong)}")
    for name, variable in variables.items():
        variable.assign(keras.ops.convert_to_tensor(values[name], dtype=variable.dtype))
