"""Reading of PyTorch's own files, on every backend, where PyTorch is installed."""

import importlib.util
import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

_CONVERSION = (
    "import sys, torch, safetensors.torch as s; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = next((d[k] for k in ('model_state_dict', 'state_dict', 'model') if k in d), d); "
    "s.save_file({k: v.clone().contiguous() for k, v in d.items()}, sys.argv[2])"
)


def conversion_command(path: Path) -> str:
    """Returns a command that converts a file, or the checkpoint in it, where PyTorch is installed.

    Args:
        path: Path of the file. The new file beside it ends with `.safetensors`.
    """
    paths = (shlex.quote(str(p)) for p in (path, path.with_suffix(".safetensors")))
    return " ".join(("python -c", f'"{_CONVERSION}"', *paths))


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            "`state` must be an undamaged file of tensors alone, as written by "
            "`torch.save(module.state_dict(), path)`. "
            f"Received: {path} ({type(error).__name__}: {reason[:200]})"
        ) from error
