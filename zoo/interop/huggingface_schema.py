"""JSON files of Hugging Face folders, validated against typed schemas.

Each key of a file is one of four kinds:

- a setting that the zoo honours: a field of the schema, with the bounds of its values and with
  Hugging Face's default;
- a key that changes nothing in the outputs, such as a dropout rate: `Settings.no_effect`;
- a setting of which the zoo supports one value: `Settings.only_value`;
- any other key: an error that names the key and its value, unless the value is null, which sets
  nothing.
"""

import re
import reprlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import AliasChoices, JsonValue, ValidationError, model_validator

from zoo.files import documents

S = TypeVar("S", bound="Settings")

_MAX_JSON_BYTES = 2**24


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
        path: Path of the file.
        remedy: Sentence of the error messages that tells what to do.

    Raises:
        ValueError: If the file is missing, too large or no JSON object. The text names the file.
        OSError: If the file cannot be read.
    """
    return documents.read(path, dict[str, JsonValue], remedy, _MAX_JSON_BYTES)


def validate(data: dict[str, Any], schema: type[S], path: Path, remedy: str) -> S:
    """Validates the content of a file.

    Args:
        data: Content of the file.
        schema: Schema of the content.
        path: Path of the file, for the error messages.
        remedy: Sentence of the error messages that tells what to do.

    Raises:
        ValueError: If the content does not fit the schema. The text is one line with the file, the
            key, the rule, the value and the remedy.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        rule = re.sub(r"^\w+ should", "must", fault["msg"].removeprefix("Value error, "))
        if fault["type"] == "extra_forbidden":
            rule = "must not be given beside its other name"
        keys: list[str] = []
        value: Any = data
        for part in fault["loc"]:
            if not isinstance(value, dict):
                break  # an index of a list, or the tried type of several
            keys.append(str(part))
            value = value.get(part)
        received = f"Received: {reprlib.repr(fault['input'])}"
        # A rule about several keys begins with their names and has the values.
        if rule.startswith("`"):
            text = ": ".join([*keys, rule])
        else:
            text = f"`{'.'.join(keys)}` {rule}. {received}"
        raise ValueError(f"{path}: {text}. {remedy}") from error


class Settings(documents.Document):
    """Base of the schemas: types are exact and numbers finite.

    Attributes:
        no_effect: Keys that change nothing in the outputs.
        only_value: Keys of which one value is supported, with that value.
    """

    no_effect: ClassVar[Set[str]] = frozenset()
    only_value: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _select_fields(cls, data: Any) -> Any:
        """Returns the keys that are fields, or raises ValueError for one that is not supported."""
        if not isinstance(data, dict):
            return data
        fields = {}
        for key, value in data.items():
            if key in cls._field_keys():
                fields[key] = value
            elif key in cls.only_value:
                supported = cls.only_value[key]
                if value is not None and value != supported:
                    raise ValueError(
                        f"`{key}` must be {supported!r}. Received: {key}={reprlib.repr(value)}"
                    )
            elif key not in cls.no_effect and value is not None:
                raise ValueError(
                    f"`{repr(key)[1:-1][:100]}` must not be given, since it is not a setting "
                    f"that the zoo knows. Received: {reprlib.repr(value)}"
                )
        return fields

    @classmethod
    def _field_keys(cls) -> set[str]:
        keys = set()
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            keys |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {name}
        return keys


def require(is_valid: bool, rule: str, **settings: Any) -> None:
    """Raises ValueError with the rule and the received settings unless these are valid."""
    if not is_valid:
        received = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ValueError(f"{rule}. Received: {received}")
