"""Formats of exported files, and the backend that writes each."""

import importlib.util
from dataclasses import dataclass

from zoo import backends


@dataclass(frozen=True)
class Format:
    """Format of an exported file.

    Attributes:
        name: Name of the format.
        runtime: Name of the library that runs such a file.
        backend: Backend that writes it. Weights are the same on every backend, so that the
            backend on which a model was trained does not matter.
        packages: Packages that are needed besides, by the name that Python imports.
        extra: Extra of keras-zoo that installs the packages.
        holds_metadata: Whether the file has a place for metadata, which otherwise are in a JSON
            file beside it.
        reason: Why this backend writes the format.
    """

    name: str
    runtime: str
    backend: str
    packages: tuple[str, ...]
    extra: str
    holds_metadata: bool
    reason: str


FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            "onnx",
            "ONNX Runtime",
            "torch",
            ("onnx", "onnxruntime", "onnxscript"),
            "onnx",
            True,
            "A program of torch.export has dynamic axes, and loops over time as one operation. "
            "tf2onnx writes reshapes and operators that ONNX Runtime refuses.",
        ),
        Format(
            "saved_model",
            "TensorFlow",
            "tensorflow",
            (),
            "tensorflow",
            True,
            "The format is TensorFlow's own.",
        ),
        Format(
            "litert",
            "LiteRT",
            "tensorflow",
            ("ai_edge_litert",),
            "litert",
            False,
            "TensorFlow's converter keeps dynamic axes.",
        ),
        Format(
            "pt2", "PyTorch", "torch", (), "torch", True, "The format is PyTorch's own."
        ),
        Format(
            "stablehlo", "JAX", "jax", (), "jax", False, "jax.export has symbolic axes."
        ),
    )
}  # fmt: skip


def get(name: str) -> Format:
    """Returns a format whose packages are installed.

    Args:
        name: Name of the format.

    Raises:
        ValueError: If there is no such format. The text lists all names.
        ImportError: If a package is missing. The text has the command that installs it.
    """
    if name not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: format={name!r}")
    entry = FORMATS[name]
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    extras = [entry.extra] if missing else []
    if entry.backend not in backends.installed():
        missing = [entry.backend, *missing]
        extras = list(dict.fromkeys([entry.backend, *extras]))
    if missing:
        raise ImportError(
            f"`format`={name!r} needs {', '.join(missing)}, which this environment lacks. Install "
            f'with `pip install "keras-zoo[{",".join(extras)}]"`'
        )
    return entry
