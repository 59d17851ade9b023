"""Reading of a PyTorch `state_dict` in its usual forms, and checks of its tensors."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from zoo.backends.pytorch_file import WRAPPERS, first_line, read_pytorch_file

Arrays = dict[str, np.ndarray]

_LISTED = 8  # names of each kind in an error


def read(state: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns the tensors of a `state_dict` by the names that the model expects.

    Args:
        state: Arrays or tensors by name, a checkpoint that holds them, or the path of a file.
        names: Names that the model expects, which tell the prefix of the names.

    Returns:
        The tensors by name, without a prefix and without counters of batch normalizations.

    Raises:
        ValueError: If `state` or the file is of another kind.
        ImportError: If the file is PyTorch's own and PyTorch is not installed.
        OSError: If the file cannot be read.
    """
    if isinstance(state, str | os.PathLike):
        state = _read_file(Path(state))
    if not isinstance(state, Mapping):
        raise ValueError(
            "`state` must hold arrays by name, such as `module.state_dict()`, or be the path of a "
            f"file. Received: {type(state).__name__}"
        )
    tensors = _without_prefix(_unwrapped(state), set(names))
    counters = [name for name in tensors if name.split(".")[-1] == "num_batches_tracked"]
    return {name: tensor for name, tensor in tensors.items() if name not in counters}


def _read_file(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, of 8 bytes, and the JSON header.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        return read_pytorch_file(path)
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`state` must be a safetensors file or a file of PyTorch. Received: {path} ({error})"
        ) from error


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and hasattr(v, "shape") for k, v in value.items())
    )


def _unwrapped(state: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The `state_dict` in a checkpoint, which may hold an optimizer, counters and other entries."""
    if not any(isinstance(value, Mapping) for value in state.values()):
        return state
    state_keys = [key for key, value in state.items() if _is_state_dict(value)]
    usual = [key for key in state_keys if key in WRAPPERS] or state_keys
    if len(usual) != 1:
        raise ValueError(
            "`state` must hold one state_dict. Received: a checkpoint with the entries "
            f"{', '.join(map(str, state))}, of which {', '.join(map(str, usual)) or 'none'} may be "
            "one. Pass that entry, such as `torch.load(path)['net']`"
        )
    unwrapped: Mapping[str, Any] = state[usual[0]]
    return unwrapped


def _without_prefix(tensors: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Removes the prefix beneath which expected names are found, unless names are found without it.

    `DataParallel` has the prefix `module.`, `torch.compile` has `_orig_mod.`, and a module within a
    larger one has the name of its attribute. Names without the prefix stay as they are.
    """
    result = {str(name).replace("._orig_mod.", "."): t for name, t in tensors.items()}
    if names & result.keys():
        return result
    prefixes: Counter[str] = Counter()
    for name in result:
        parts = name.split(".")
        for length in range(1, len(parts)):
            prefixes[".".join(parts[:length]) + "."] += ".".join(parts[length:]) in names
    prefix, number = prefixes.most_common(1)[0] if prefixes else ("", 0)
    return {name.removeprefix(prefix if number else ""): t for name, t in result.items()}


def checked_arrays(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Returns the tensors as floating-point arrays.

    Args:
        tensors: Arrays or tensors by name.
        shapes: Expected shapes by name.

    Raises:
        ValueError: If a tensor is missing, unknown, of another shape, not floating-point or not
            finite. The text lists all of them, with near matches of the names.
    """
    missing = [name for name in shapes if name not in tensors]
    unknown = [name for name in tensors if name not in shapes]
    wrong = _listed(missing, "missing", unknown) + _listed(unknown, "unknown", missing)
    arrays: Arrays = {}
    for name in shapes.keys() & tensors.keys():
        shape = tuple(np.shape(tensors[name]))
        if shape != shapes[name]:  # before anything is converted, which allocates memory
            wrong.append(f"{name} has shape {shape} instead of {shapes[name]}")
            continue
        try:
            arrays[name] = _as_array(tensors[name])
        except (TypeError, ValueError, RuntimeError) as error:
            wrong.append(f"{name} is no dense tensor ({first_line(error)})")
            continue
        if arrays[name].dtype.kind != "f":
            wrong.append(f"{name} is of type {arrays[name].dtype} instead of a floating-point type")
        elif not np.isfinite(arrays[name]).all():
            wrong.append(f"{name} holds a NaN or an infinity")
    if wrong:
        hint = ". Other names of layers are given by `rename`" if missing and unknown else ""
        raise ValueError(f"`state` does not fit the model: {'; '.join(wrong)}{hint}")
    return arrays


def _listed(names: list[str], fault: str, others: list[str]) -> list[str]:
    lines = []
    for name in names[:_LISTED]:
        near = difflib.get_close_matches(name, others, 1)
        lines.append(f"{name} is {fault}" + (f" (is it {near[0]}?)" if near else ""))
    if len(names) > _LISTED:
        lines.append(f"{len(names) - _LISTED} more are {fault}")
    return lines


def _as_array(tensor: Any) -> np.ndarray:
    """Array of a tensor of any device; bfloat16, which NumPy itself lacks, becomes float32."""
    if hasattr(tensor, "detach"):  # PyTorch's
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        tensor = tensor.numpy()
    array = np.asarray(tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
