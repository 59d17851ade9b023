"""Reading of PyTorch's own files, on every backend, where PyTorch is installed."""

import importlib.util
import os
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

WRAPPERS = ("model_state_dict", "state_dict", "model")  # entries of checkpoints that hold more

_CONVERSION = (
    "import sys, torch, safetensors.torch as s; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "f = lambda d: {k: v for k, v in d.items() if hasattr(v, 'shape')}; "
    "c = [k for k, v in d.items() if isinstance(v, dict) and v and len(f(v)) == len(v)]; "
    f"c = sys.argv[3:] or [k for k in c if k in {WRAPPERS}] or c; "
    "c[1:] and sys.exit(f'Several entries hold tensors: {c}. Append the name of one'); "
    "d = d[c[0]] if c else d; "
    "s.save_file({k: v.clone().contiguous() for k, v in f(d).items()}, sys.argv[2])"
)


def conversion_command(path: Path) -> str:
    """Returns a command that converts a file, or the checkpoint in it, where PyTorch is installed.

    Args:
        path: Path of the file. The new file beside it ends with `.safetensors`.
    """
    paths = (shlex.quote(str(p)) for p in (path, path.with_suffix(".safetensors")))
    return " ".join(("python -c", f'"{_CONVERSION}"', *paths))


def first_line(error: BaseException) -> str:
    """Returns the beginning of an error's text, without the colors of a terminal."""
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def read_pytorch_file(path: str | os.PathLike[str]) -> Any:
    """Reads what `torch.save` has written: tensors in Python's own containers, and no code.

    Args:
        path: Path of the file, such as model.pt, model.pth or model.ckpt.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        ImportError: If PyTorch is not installed. The text has a command that converts the file.
        ValueError: If the file is damaged, holds other objects than tensors, or would take more
            memory than it is long.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    if importlib.util.find_spec("torch") is None:
        raise ImportError(
            f"`state` is a file of PyTorch, which is not installed. Received: {path}. Convert it "
            f"to a safetensors file where PyTorch is installed: {conversion_command(path)}"
        )
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > path.stat().st_size:  # compressed, or parts of the file used repeatedly
                raise ValueError(f"it would take {size} bytes of memory, more than the file has")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle, PyTorch and its archive reader raise many kinds
        raise ValueError(
            "`state` must be an undamaged file of tensors alone, as written by "
            "`torch.save(module.state_dict(), path)`. "
            f"Received: {path} ({type(error).__name__}: {first_line(error)})"
        ) from error
