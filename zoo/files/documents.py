"""JSON documents, validated against a typed schema before anything is made of them.

    class Schedule(Document):
        num_steps: int = Field(ge=1, le=100_000)

    schedule = read(path, Schedule, "Train the model again")

A document has a largest size, is UTF-8 and JSON of the standard: finite numbers, no key twice.
"""

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

MAX_BYTES = 1 << 20  # a parsed document takes some 20 times the memory of its text


class Document(BaseModel):
    """Schema of a JSON object: types are exact, numbers are finite, other keys are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def read(path: Path, schema: type[T], remedy: str, max_bytes: int = MAX_BYTES) -> T:
    """Reads a JSON file.

    Args:
        path: Path of the file.
        schema: Type of the content: a `Document`, or another type that pydantic validates.
        remedy: Sentence of the error messages that tells what to do.
        max_bytes: Largest size of the file.

    Returns:
        The content as an object of the schema.

    Raises:
        ValueError: If the file is not there, too large, not UTF-8, not JSON, or not of the schema.
            The text is one line with the file, the key, the rule, the value and the remedy.
        OSError: If the file cannot be read.
    """
    return parse(read_bytes(path, remedy, max_bytes), schema, str(path), remedy)


def read_bytes(path: Path, remedy: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads a regular file of bounded size.

    Args:
        path: Path of the file.
        remedy: Sentence of the error messages that tells what to do.
        max_bytes: Largest size of the file.

    Raises:
        ValueError: If there is no such file, it is a folder or a device, or it is too large.
        OSError: If the file cannot be read.
    """
    if not path.is_file():  # a pipe would never end
        kind = "something else" if path.exists() else "nothing"
        raise _fault(f"{path} must be a file. Received: {kind}", remedy)
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        size = path.stat().st_size
        text = f"{path} must have at most {max_bytes:,} bytes. Received: {size:,}"
        raise _fault(text, remedy)
    return content


def parse(content: bytes, schema: type[T], source: str, remedy: str, allow_nan: bool = False) -> T:
    """Validates the content of a JSON document.

    Args:
        content: Content of the document.
        schema: Type of the content: a `Document`, or another type that pydantic validates.
        source: Name of the document in error messages.
        remedy: Sentence of the error messages that tells what to do; may be empty.
        allow_nan: Whether the numbers may be NaN and Infinity, which JSON does not have.

    Returns:
        The content as an object of the schema.

    Raises:
        ValueError: As `read` does.
    """
    try:
        data = json.loads(
            content.decode(),
            object_pairs_hook=_unique_keys,
            parse_float=_finite,
            parse_constant=float if allow_nan else _refuse_constant,
        )
    except UnicodeDecodeError as error:
        received = f"the byte {content[error.start]:#04x} at offset {error.start}"
        raise _fault(f"{source} must be UTF-8. Received: {received}", remedy) from error
    except RecursionError as error:
        received = "more levels than Python's recursion limit"
        text = f"{source} must not be nested so deeply. Received: {received}"
        raise _fault(text, remedy) from error
    except ValueError as error:
        received = str(error) if content.strip() else "an empty file"
        raise _fault(f"{source} must be valid JSON. Received: {received}", remedy) from error
    try:
        return TypeAdapter(schema).validate_json(content)
    except ValidationError as error:
        raise _fault(f"{source}: {_explain(error, data)}", remedy) from error


def dump(content: Any) -> bytes:
    """Returns a JSON document for `read`, with null for NaN and infinity, which JSON does not have.

    Args:
        content: Dictionary, list, text, number or None. Anything else, such as a path, is written
            as text.
    """
    text = json.dumps(_with_null(content), indent=2, ensure_ascii=False, default=str)
    return f"{text}\n".encode()


def _with_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fault(text: str, remedy: str) -> ValueError:
    return ValueError(f"{text}. {remedy}" if remedy else text)


def _explain(error: ValidationError, data: Any) -> str:
    """Describes the first fault: the key, the rule and the value."""
    fault = error.errors(include_url=False)[0]
    key = _key(fault["loc"], data) or "content"
    if fault["type"] == "json_invalid":
        return (
            f"`{key}` must be valid JSON. Received: {fault['msg'].removeprefix('Invalid JSON: ')}"
        )
    if fault["type"] == "missing":
        return f"`{key}` must be given. Received: no such key"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"`{key}` must not be given. Received: an unknown key"
    rule = fault["msg"].removeprefix("Value error, ")
    if rule.startswith("`"):  # a check that names its own keys
        return rule
    rule = re.sub(r"^\w+ should", "must", rule)
    return f"`{key}` {rule}. Received: {reprlib.repr(fault['input'])}"


def _key(location: Sequence[int | str], data: Any) -> str:
    """Path of a value, such as "vocab.a" or "rungs[0].rows", without the types that were tried."""
    key = ""
    for index, part in enumerate(location):
        if isinstance(data, dict) and (part in data or index == len(location) - 1):
            key += f".{part}" if key else str(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            key += f"[{part}]"
            data = data[part] if part < len(data) else None
    return key if len(key) <= 100 else f"{key[:100]}..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {reprlib.repr(twice)} twice")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]}, which is beyond the largest number")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no number of JSON")
