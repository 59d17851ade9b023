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
from collections.abc import Iterator, Mapping
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
            arrays, progress = _read(path)
        except PermissionError:
            raise  # not the file's fault
        except Exception as error:  # damage shows in a dozen ways
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
    """Tells layers whose variables were assigned to use them.

    `keras.layers.Normalization` and its like keep constants made from their variables, which
    follow an assignment on PyTorch but nowhere else.
    """
    for layer in model._flatten_layers():
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def load_model(path: str | Path) -> keras.Model:
    """Loads a `.keras` file so that training can go on, whatever backend it was saved on.

    A model that was compiled and saved under PyTorch names PyTorch's own optimizer class, and
    `keras.saving.load_model` takes that on every backend; the first step then fails. This takes
    the class of the backend in use, with the state that was saved.
    """
    classes = {
        name: value
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    with keras.saving.custom_object_scope(classes):  # also where the optimizer is looked up
        return keras.saving.load_model(path)


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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def find_mismatches(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Says of each array that is missing, unknown, misshapen or not numeric what is wrong."""
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
    """Removes what a process that was killed while it wrote has left behind."""
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
    """Assigns all or, if anything does not fit, nothing."""
    wrong = find_mismatches(arrays, {name: tuple(v.shape) for name, v in variables.items()})
    if wrong:
        raise ValueError(f"The checkpoint {path} does not fit this model: {'; '.join(wrong)}")
    for name, variable in variables.items():
        variable.assign(keras.ops.convert_to_tensor(arrays[name], dtype=variable.dtype))
