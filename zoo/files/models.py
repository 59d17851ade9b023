"""Saved models: a builder of the zoo by its name, its arguments, and a weights file.

`model.json` holds {"builder": "mlp", "arguments": {...}} and names no code: the builder is looked
up in the registry, and its arguments are validated before it is called. The weights file is one of
Keras, `.weights.h5`, or `.safetensors`.
"""

import inspect
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import keras
from pydantic import Field, JsonValue, field_validator

from zoo import registry
from zoo.files import arrays, documents, tensors
from zoo.validation import MAX_LAYERS, show

# Bounds of what costs memory or time, but is not part of any weight's shape.
_LARGEST = {"batch_size": 1 << 12, "max_length": 1 << 17}
_LARGEST_EXAMPLE = 1 << 24  # numbers in one example, the product of `input_shape`
_LONGEST = MAX_LAYERS  # entries of a list, characters of a name
_ARRAYS = 2  # that each layer or block has at least


class ModelDocument(documents.Document):
    """Content of `model.json`.

    Attributes:
        builder: Name of the builder in the registry.
        arguments: Arguments of the builder.
    """

    builder: Annotated[str, Field(max_length=_LONGEST)]
    arguments: dict[str, JsonValue]

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if "weights" in arguments:  # it would have the builder open another folder
            raise ValueError("must not name weights")
        return arguments


def describe(model: keras.Model) -> bytes:
    """Returns the content of `model.json` for a model that a builder of the zoo made.

    Raises:
        ValueError: If the model comes from elsewhere, or has got other weights since then.
    """
    name, arguments = registry.origin(model)
    count = registry.get(name).parameter_count(**arguments)
    if model.count_params() != count:
        raise ValueError(
            f"`model` must have the {count:,} parameters that {name} has given it. Received: "
            f"{model.count_params():,} parameters"
        )
    content = {"builder": name, "arguments": arguments}
    return (json.dumps(content, indent=2, default=operator.index) + "\n").encode()


def build(
    document: ModelDocument, weights: Path, builders: Sequence[str], source: str, remedy: str
) -> keras.Model:
    """Builds a saved model and loads its weights.

    Args:
        document: Builder and arguments.
        weights: Path of the weights file. Its arrays bound the size and depth of the model, which
            is built only if it has as many parameters.
        builders: Names of the builders that are allowed.
        source: Path of the file that holds the document, for error messages.
        remedy: Sentence of the error messages that tells what to do.

    Raises:
        ValueError: If the builder is another, an argument is invalid, or the weights are not those
            of the model.
        OSError: If the weights file cannot be read.
    """
    if document.builder not in builders:
        raise ValueError(
            f"{source}: `builder` must be one of {', '.join(builders)}. Received: "
            f"{document.builder!r}. {remedy}"
        )
    entry = registry.get(document.builder)
    arguments = document.arguments
    for name, value in arguments.items():
        _check_bounds(name, value, source, remedy)
    stored_shapes = _reader(weights).weight_shapes(weights)
    shapes = [shape for shape in stored_shapes if shape]  # a scalar counts draws
    stored = sum(map(math.prod, shapes))
    try:
        inspect.signature(entry.build).bind(**arguments)
        count = entry.parameter_count(**arguments)
        layers = _layer_count(arguments)
        fault = None
        if count != stored:
            fault = f"{count:,} parameters, but {stored:,} stored numbers"
        elif _ARRAYS * layers > len(shapes):
            fault = f"{layers} layers and blocks, but {len(shapes)} stored arrays"
        else:
            model = entry.build(**arguments)
    except (TypeError, ValueError) as error:  # a builder checks its arguments
        raise ValueError(
            f"{source}: `arguments` must be those of {document.builder}. Received: {error}. "
            f"{remedy}"
        ) from error
    if fault:
        raise ValueError(
            f"{source}: `arguments` must be those of the weights in {weights.name}. Received: a "
            f"model of {fault}. {remedy}"
        )
    load_weights(model, weights)
    return model


def _layer_count(arguments: Mapping[str, Any]) -> int:
    """Returns the number of layers and blocks that valid arguments of a builder ask for."""
    return int(
        arguments.get("num_layers", 0)
        + arguments.get("num_blocks", 1) * len(arguments.get("channels", ()))
        + len(arguments.get("hidden_units", ()))
    )


def load_weights(model: keras.Model, path: Path) -> None:
    """Loads a weights file of either format into a model, wholly or not at all.

    Raises:
        ValueError: If the file is damaged or does not hold the weights of the model.
        OSError: If the file cannot be read.
    """
    _reader(path).load_weights(model, path)


def _reader(path: Path) -> Any:
    """The module that reads a weights file."""
    return tensors if path.suffix == ".safetensors" else arrays


def _check_bounds(name: str, value: Any, source: str, remedy: str) -> None:
    """Raises ValueError for a value that the builder takes, but that no file needs."""
    items = value if isinstance(value, list) else [value]
    sizes = [item for item in items if isinstance(item, int)]
    if len(items) > _LONGEST:
        rule = f"have at most {_LONGEST} entries"
    elif name in _LARGEST and any(size > _LARGEST[name] for size in sizes):
        rule = f"be at most {_LARGEST[name]:,}"
    elif name == "input_shape" and math.prod(sizes) > _LARGEST_EXAMPLE:
        rule = f"have at most {_LARGEST_EXAMPLE:,} numbers"
    else:
        return
    raise ValueError(f"{source}: `{name}` must {rule}. Received: {name}={show(value)}. {remedy}")
