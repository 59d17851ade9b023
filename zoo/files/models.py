"""Saved models: a builder of the zoo by its name, its arguments, and a weights file.

`model.json` holds {"builder": "mlp", "arguments": {...}} and names no code: the builder is looked
up in the registry, and its arguments are validated before it is called.
"""

import inspect
import json
import math
import operator
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
from pydantic import Field, JsonValue, create_model

from zoo import registry
from zoo.files import arrays, documents

# Largest integers of arguments that cost memory or time, but are not part of any weight's shape.
_LARGEST = {
    "batch_size": 1 << 12,
    "max_length": 1 << 17,
    "num_blocks": 1_000,
    "num_layers": 1_000,
    "num_steps": 100_000,
    "seed": (1 << 32) - 1,
}
_LARGEST_SIZE = 1 << 24  # of any other integer
_LARGEST_EXAMPLE = 1 << 24  # numbers in one example, the product of `input_shape`
_LONGEST = 100  # characters of a text, entries of a list

Dtype = Literal[
    "bfloat16", "float16", "float32", "float64", "mixed_bfloat16", "mixed_float16"
]  # fmt: skip


class ModelDocument(documents.Document):
    """Content of `model.json`.

    Attributes:
        builder: Name of the builder in the registry.
        arguments: Arguments of the builder.
    """

    builder: Annotated[str, Field(max_length=_LONGEST)]
    arguments: dict[str, JsonValue]


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
    content: bytes, weights: Path, builders: Sequence[str], source: str, remedy: str
) -> keras.Model:
    """Builds the model of a `model.json` and loads its weights.

    Args:
        content: Content of `model.json`.
        weights: Path of the weights file. It bounds the size of the model.
        builders: Names of the builders that are allowed.
        source: Path of `model.json`, for error messages.
        remedy: Sentence of the error messages that tells what to do.

    Raises:
        ValueError: If the builder is another, an argument is invalid, or the weights are not those
            of the model.
        OSError: If the weights file cannot be read.
    """
    document = documents.parse(content, ModelDocument, source, remedy)
    if document.builder not in builders:
        raise ValueError(
            f"{source}: `builder` must be one of {', '.join(builders)}. Received: "
            f"{document.builder!r}. {remedy}"
        )
    entry = registry.get(document.builder)
    text = json.dumps(document.arguments).encode()
    schema = _schema(entry.build)
    arguments = vars(documents.parse(text, schema, f"{source}: `arguments`", remedy))
    for name, value in arguments.items():
        _check_size(name, value, source, remedy)
    stored = sum(map(math.prod, arrays.weight_shapes(weights)))
    try:
        count = entry.parameter_count(**arguments)
        if count <= stored:
            model = entry.build(**arguments)
    except Exception as error:  # combinations of arguments that only the builder knows
        raise ValueError(
            f"{source}: `arguments` must be those of {document.builder}. Received: {error}. "
            f"{remedy}"
        ) from error
    if count > stored:
        raise ValueError(
            f"{source}: `arguments` must be those of the weights in {weights.name}. Received: a "
            f"model of {count:,} parameters, but {stored:,} stored numbers. {remedy}"
        )
    arrays.load_weights(model, weights)
    return model


def _schema(builder: Any) -> type[documents.Document]:
    """Creates the schema of a builder's arguments from its signature."""
    hints = typing.get_type_hints(builder, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(builder).parameters.items()
    }
    fields["dtype"] = (Dtype | None, None)
    return create_model("Arguments", __base__=documents.Document, **fields)


def _check_size(name: str, value: Any, source: str, remedy: str) -> None:
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) > _LONGEST or any(isinstance(x, str) and len(x) > _LONGEST for x in items):
        raise ValueError(
            f"{source}: `{name}` must have at most {_LONGEST} entries or characters. Received: "
            f"more. {remedy}"
        )
    largest = _LARGEST.get(name, _LARGEST_SIZE)
    sizes = [item for item in items if isinstance(item, int)]
    if any(abs(size) > largest for size in sizes):
        raise ValueError(
            f"{source}: `{name}` must be at most {largest:,}. Received: {name}={value}. {remedy}"
        )
    if name == "input_shape" and math.prod(sizes) > _LARGEST_EXAMPLE:
        raise ValueError(
            f"{source}: `input_shape` must have at most {_LARGEST_EXAMPLE:,} numbers. Received: "
            f"input_shape={value}. {remedy}"
        )
