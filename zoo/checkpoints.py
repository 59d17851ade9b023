"""Checkpoints that any backend can go on from, and that survive whatever ends a run.

A checkpoint is one `.npz` file: every variable of the model and of the optimizer by its path, and
the progress of the run. It is written beside its final name and renamed when it is on the disk, so
a name that exists holds a whole checkpoint; the archive's own checksums tell one damaged later.
The last two are kept.
"""

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

_PROGRESS = "progress.json"
_KEEP = 2


class NotFinite(ValueError):
    """A variable holds a NaN or an infinity, so nothing was written."""


def save(folder: Path, step: int, progress: dict[str, Any], **parts: Any) -> Path:
    """Writes a checkpoint and removes all but the last two.

    Args:
        folder: of the checkpoints; created if it is not there.
        step: names the file.
        progress: what JSON can hold.
        parts: objects with `variables`, by the name they are restored under.

    Raises:
        NotFinite: if a variable holds a NaN or an infinity.
        OSError: if the file cannot be written, with the last good checkpoint named; that one stays.
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
    target = folder / f"step-{step:09d}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        last = next(iter(_newest_first(folder)), None)
        raise OSError(
            error.errno,
            f"Could not write the checkpoint {target}: {error.strerror}. The last good one is "
            f"{last or 'none'}; make room and run the same command again",
        ) from error
    for old in _newest_first(folder)[_KEEP:]:
        old.unlink()
    return target


def restore(folder: Path, **parts: Any) -> dict[str, Any] | None:
    """Restores the newest checkpoint that is whole, and warns of those that are not.

    Args:
        folder: of the checkpoints.
        parts: objects with `variables`, by the names they were saved under.

    Returns:
        The progress saved with it, or None if there is no whole checkpoint.

    Raises:
        ValueError: if the checkpoint holds other variables; then nothing was restored.
    """
    remove_unfinished(folder)
    for path in _newest_first(folder):
        try:
            with open(path, "rb") as file, np.load(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
            progress: dict[str, Any] = json.loads(arrays.pop(_PROGRESS).tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(
                f"The checkpoint {path} is damaged ({error}); falling back to the one before",
                stacklevel=2,
            )
            continue
        _assign(path, arrays, dict(_variables(parts)))
        return progress
    return None


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Any]:
    """Opens a file that takes its name only once all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left behind."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _variables(parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, part in parts.items():
        for variable in part.variables:
            yield f"{name}/{variable.path}", variable


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.npz"), reverse=True)


def _assign(path: Path, arrays: dict[str, np.ndarray], variables: dict[str, Any]) -> None:
    """Assigns all or, if anything does not fit, nothing."""
    wrong = [f"{name} is missing" for name in variables if name not in arrays]
    wrong += [f"{name} is unknown" for name in arrays if name not in variables]
    wrong += [
        f"{name} has shape {arrays[name].shape} instead of {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and arrays[name].shape != tuple(variable.shape)
    ]
    if wrong:
        raise ValueError(f"The checkpoint {path} does not fit this model: {'; '.join(wrong)}")
    for name, variable in variables.items():
        variable.assign(keras.ops.convert_to_tensor(arrays[name], dtype=variable.dtype))
