"""Checkpoint files that every backend reads, and that a killed process leaves whole.

A checkpoint is one `.npz` file: every variable of the model and of the optimizer by its path, and
the progress of the run. The file is written under a temporary name and renamed when it is on the
disk, so that a checkpoint's name always holds a whole file. The archive's checksums reveal later
damage. The last two checkpoints are kept.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

_PROGRESS = "progress.json"
_KEEP = 2


class NotFinite(ValueError):
    """A variable holds a NaN or an infinity; nothing was written."""


def save(folder: Path, step: int, progress: dict[str, Any], **parts: Any) -> Path:
    """Writes a checkpoint and removes all but the last two.

    Args:
        folder: Folder of the checkpoints; created if it is not there.
        step: Number of the step, for the file's name.
        progress: Progress of the run, as JSON can hold it.
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
    """Restores the newest whole checkpoint, and warns of damaged ones.

    Args:
        folder: Folder of the checkpoints.
        **parts: Objects with `variables`, by the names they were saved under.

    Returns:
        The progress in the checkpoint, or None if there is no whole checkpoint.

    Raises:
        ValueError: If the checkpoint holds other variables; then nothing is restored.
    """
    remove_unfinished(folder)
    for path in _newest_first(folder):
        try:
            arrays, progress = _read(path)
        except PermissionError:
            raise  # the file itself may be whole
        except Exception as error:  # a damaged archive raises many kinds of errors
            aside = path.with_name(f"{path.name}.damaged")
            path.rename(aside)
            warnings.warn(
                f"The checkpoint {path} is damaged ({error}) and was set aside as {aside.name}; "
                "falling back to the one before, if there is one",
                stacklevel=2,
            )
            continue
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


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Any]:
    """Opens a file that gets its name only once the whole content is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Describes arrays that are missing, unknown, of another shape or not numeric."""
    wrong = [f"{name} is missing" for name in shapes if name not in arrays]
    for name, array in arrays.items():
        if name not in shapes:
            wrong.append(f"{name} is unknown")
        elif array.shape != shapes[name]:
            wrong.append(f"{name} has shape {array.shape} instead of {shapes[name]}")
        elif array.dtype.kind not in "fiub":
            wrong.append(f"{name} is of type {array.dtype}")
    return wrong


def remove_unfinished(folder: Path) -> None:
    """Removes temporary files of a process that was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with open(path, "rb") as file, np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(arrays.pop(_PROGRESS).tobytes())


def _variables(parts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, part in parts.items():
        for variable in part.variables:
            yield f"{name}/{variable.path}", variable


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.npz"), reverse=True)


def _assign(path: Path, arrays: dict[str, np.ndarray], variables: dict[str, Any]) -> None:
    """Assigns all variables or, if an array does not fit, none."""
    wrong = find_mismatches(arrays, {name: tuple(v.shape) for name, v in variables.items()})
    if wrong:
        raise ValueError(f"The checkpoint {path} does not fit this model: {'; '.join(wrong)}")
    for name, variable in variables.items():
        variable.assign(keras.ops.convert_to_tensor(arrays[name], dtype=variable.dtype))
