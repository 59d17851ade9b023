"""`.keras` files, checked before Keras builds anything of them.

A `.keras` file is a zip archive: `config.json` names the classes and functions of the model,
`model.weights.h5` holds its numbers, and `assets/` may hold vocabularies. Keras calls what the
configuration names: its safe mode refuses the bytecode of lambdas and some functions, but takes
every other public function of Keras, such as `keras.config.set_epsilon`. Here a configuration may
only name

- layers, models, operations, losses, metrics, optimizers and other configurable classes of Keras;
- activations, losses, metrics and operations of `keras.ops` that call no other function;
- what the program has registered with Keras.

No name is imported, and no layer may read another file.
"""

import functools
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import keras
from pydantic import JsonValue

from zoo.files import arrays, documents

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
_LARGEST_CONFIG = 1 << 24  # bytes; some thousand layers take one MB
_REMEDY = "Save the model again with Keras' `save`"
_DAMAGES = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, NotImplementedError,
    OverflowError, RuntimeError, ValueError,
)  # fmt: skip

_CLASSES = (
    keras.Operation.__base__,  # of layers, models, operations, losses, metrics and optimizers
    keras.optimizers.schedules.LearningRateSchedule,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.dtype_policies.DTypePolicy,
    keras.quantizers.Quantizer,
    keras.quantizers.QuantizationConfig,
    keras.random.SeedGenerator,
)
# Layers of another framework's code, which Keras refuses in safe mode, too.
_FOREIGN = ("TFSMLayer", "TorchModuleWrapper")
# Data, which Keras rebuilds without looking up a name.
_DATA = (
    "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__",
)  # fmt: skip
# Functions that look up names, and operations that call functions.
_EXCLUDED = (
    "get", "serialize", "deserialize", "associative_scan", "cond", "custom_gradient", "fori_loop",
    "jvp", "map", "scan", "switch", "vectorize", "vectorized_map", "while_loop",
)  # fmt: skip
# Where Keras looks for a function of the module "builtins".
_BUILTINS = (
    "activations", "constraints", "initializers", "losses", "metrics", "optimizers", "regularizers",
)  # fmt: skip


def check(path: Path) -> None:
    """Checks a `.keras` file, before anything is built of it.

    The weights are extracted to a temporary folder for the check.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If the file is damaged, larger when extracted, no `.keras` file, names anything
            but parts of a model, or holds anything but plain arrays of numbers. The text is one
            line that names the file.
        OSError: If the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"a wrong checksum of {damaged!r:.100}")
            config = archive.read(CONFIG)
            with tempfile.TemporaryDirectory() as folder:
                weights = Path(archive.extract(WEIGHTS, folder))
                try:
                    arrays.weight_shapes(weights)
                except ValueError as error:
                    raise ValueError(str(error).replace(str(weights), WEIGHTS)) from error
    except _DAMAGES as error:
        text = " ".join(str(error).split())  # names in the file may have several lines
        received = text if path.stat().st_size else "an empty file"
        raise ValueError(
            f"{path} must be an undamaged `.keras` file. Received: {received}. {_REMEDY}"
        ) from error
    document = documents.parse(
        config, dict[str, JsonValue], f"{path}: {CONFIG}", _REMEDY, allow_nan=True
    )
    forbidden = next(_forbidden(document), None)
    if forbidden is not None:
        layer, name = forbidden
        raise ValueError(
            f"{path} must name layers and other parts of a model only: classes and pure functions "
            f"of Keras, and what is registered. Received: {name} in {layer}. Register what is "
            "yours with `keras.saving.register_keras_serializable`, and import it before the file "
            "is loaded"
        )


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises ValueError for members that Keras does not write, or larger than the file."""
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise ValueError("a member twice")
    for name in (CONFIG, WEIGHTS):
        if name not in members:
            raise ValueError(f"no {name}")
    for name in members:
        if ".." in PurePosixPath(name).parts or not (
            name in (CONFIG, WEIGHTS, "metadata.json") or name.startswith("assets/")
        ):
            raise ValueError(f"the member {name!r:.100}")
    size = sum(member.file_size for member in members.values())
    if size > path.stat().st_size:
        raise ValueError(f"members of {size:,} bytes in {path.stat().st_size:,}")
    if members[CONFIG].file_size > _LARGEST_CONFIG:
        raise ValueError(f"a {CONFIG} of {members[CONFIG].file_size:,} bytes")


def _forbidden(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the layer and the name of each thing that a configuration may not name."""
    items: list[tuple[Any, str]] = [(document, "the model")]
    while items:
        item, layer = items.pop()
        if isinstance(item, list):
            items += ((value, layer) for value in item)
        elif isinstance(item, dict):
            # Without both keys, Keras takes it for data.
            if "class_name" in item and "config" in item:
                config = item["config"]
                if isinstance(config, dict) and isinstance(config.get("name"), str):
                    layer = f"the layer {config['name']!r:.100}"
                if not _is_allowed(item):
                    yield layer, _name(item)
                if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
                    yield layer, f"the file {config['vocabulary']!r:.100}"
            items += ((value, layer) for value in item.values())


def _name(item: Mapping[str, Any]) -> str:
    """Name of what a configuration asks for, as Keras writes it."""
    name = item["config"] if item["class_name"] == "function" else item["class_name"]
    if name == "__lambda__":
        return "a Python lambda"
    module = item.get("module")
    text = f"{module}.{name}" if module else f"{name!r}, which is not registered"
    return " ".join(text[:200].split())


def _is_allowed(item: Mapping[str, Any]) -> bool:
    """Whether what Keras finds for a configuration is a part of a model."""
    name, module, config = item["class_name"], item.get("module"), item["config"]
    if not isinstance(name, str) or not isinstance(module, str | None):
        return False
    if name.startswith("__"):  # Keras heeds no registered name here
        return name in _DATA
    if name == "function":
        return isinstance(config, str) and _is_allowed_function(config, module)
    registered_name = item.get("registered_name", name)
    if not isinstance(registered_name, str | None):
        return False
    if keras.saving.get_registered_object(registered_name) is not None:
        return True
    if module is None or module.split(".")[0] != "keras" or name in _FOREIGN:
        return False
    # Looked up, not imported: Keras has imported all of its own.
    resolved = getattr(sys.modules.get(module), name, None)
    return isinstance(resolved, type) and issubclass(resolved, _CLASSES)


def _is_allowed_function(name: str, module: str | None) -> bool:
    if keras.saving.get_registered_object(name) is not None:
        return True
    if module != "builtins":
        return f"{module}.{name}" in _functions()
    resolved = [f"keras.{part}.{name}" for part in _BUILTINS if hasattr(getattr(keras, part), name)]
    if resolved:
        return _functions().issuperset(resolved)
    return any(key.endswith(f">{name}") for key in keras.saving.get_custom_objects())


@functools.cache
def _functions() -> frozenset[str]:
    """Full names of the functions that a configuration may name."""
    modules = (
        keras.activations, keras.losses, keras.metrics,
        keras.ops, keras.ops.image, keras.ops.linalg, keras.ops.nn, keras.ops.numpy,
    )  # fmt: skip
    return frozenset(
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if callable(value) and not isinstance(value, type) and name not in _EXCLUDED
    )
