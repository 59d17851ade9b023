"""Formats of exported files, and the backend that writes each."""

import importlib.util
from dataclasses import dataclass

from zoo.export.storage import DTYPES, WeightDType


@dataclass(frozen=True)
class Format:
    """Format of an exported file.

    Attributes:
        name: Name of the format.
        runtime: Name of the library that runs such a file.
        backend: Backend that writes it; empty if any can. Weights are the same on every backend,
            so that the backend on which a model was trained does not matter.
        packages: Packages that are needed besides, by the name that Python imports.
        extra: Extra of keras-zoo that installs the packages.
        holds_metadata: Whether the file has a place for metadata, which otherwise are in a JSON
            file beside it.
        reason: Why this backend writes the format.
        dtypes: Types in which the format can store weights.
        rounds_activations: Whether its int8 is that of the format's own quantizer, whose products
            are of 8-bit numbers. The others compute in float32.
    """

    name: str
    runtime: str
    backend: str
    packages: tuple[str, ...]
    extra: str
    holds_metadata: bool
    reason: str
    dtypes: tuple[WeightDType, ...] = DTYPES
    rounds_activations: bool = False


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
            rounds_activations=True,
        ),
        Format(
            "pt2", "PyTorch", "torch", (), "torch", True, "The format is PyTorch's own."
        ),
        Format(
            "stablehlo", "JAX", "jax", (), "jax", False, "jax.export has symbolic axes."
        ),
        Format(
            "safetensors",
            "safetensors",
            "",
            (),
            "",
            True,
            "The file holds arrays, which are the same on every backend.",
            ("float32", "float16"),  # there is no rule for where the scales of integers are
        ),
    )
}  # fmt: skip


def get(name: str, dtype: WeightDType = "float32") -> Format:
    """Returns a format whose packages are installed.

    Args:
        name: Name of the format.
        dtype: Type of the stored weights.

    Raises:
        ValueError: If there is no such format, or it cannot store the type. The text lists those
            that there are.
        ImportError: If a package is missing. The text has the command that installs it.
    """
    if name not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: format={name!r}")
    entry = FORMATS[name]
    if dtype not in entry.dtypes:
        raise ValueError(
            f"`dtype` must be {' or '.join(entry.dtypes)} for the format {name}, which has no "
            f"place for the scales of integers. Received: dtype={dtype!r}"
        )
    needed = [entry.backend, *entry.packages] if entry.backend else []
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(name.replace("_", "-") for name in missing)
        raise ImportError(
            f"`format` must be one whose packages are installed. Received: format={name!r}, which "
            f"needs {', '.join(missing)}. Install with `pip install {packages}`, or with the extra "
            f"`{entry.extra}` of this package"
        )
    return entry
