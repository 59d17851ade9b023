"""Annotated types of arguments, by which `validated` checks them."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np

from zoo.validation.rules import (
    MAX_BEAMS,
    MAX_BLOCKS,
    MAX_COUNT,
    MAX_ELEMENTS,
    MAX_LAYERS,
    MAX_LEVELS,
    MAX_NEW_TOKENS,
    MAX_TIMESTEPS,
    MAX_VOCABULARY,
    InvalidError,
    Rule,
    array,
    each,
    is_sequence,
    number,
    whole,
)


def _activation_names() -> list[str]:
    """Names of the activations of Keras that keep the width and take no arguments."""
    excluded = ("deserialize", "get", "glu", "serialize", "threshold")
    return [n for n in dir(keras.activations) if not n.startswith("_") and n not in excluded]


def _check_activation(value: Any) -> str:
    names = _activation_names()
    if not isinstance(value, str) or value not in names:
        raise InvalidError(f"one of {', '.join(names)}")
    return value


_DTYPES = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")


def _check_dtype(value: Any) -> Any:
    if isinstance(value, keras.DTypePolicy):
        value_name = value.compute_dtype
    else:
        value_name = value if isinstance(value, str) else None
    if value_name not in _DTYPES:
        raise ValueError
    return value


def _check_name(value: Any) -> str:
    if not isinstance(value, str) or not value or "/" in value:
        raise ValueError
    return value


def _check_path(value: Any) -> Path:
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError
    return Path(path)


def _check_source(value: Any) -> str:
    _check_path(value)
    return str(os.fspath(value))  # "./name" is a path, "name" may be a name


def _check_iterable(value: Any) -> Any:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError
    return value


def _check_texts(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_check_text(text) for text in value]
    return _check_iterable(value)  # a text that is read later cannot be checked now


def _check_key(value: Any) -> Any:
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or tuple(value.shape) != (2,):
        raise TypeError
    if keras.backend.standardize_dtype(value.dtype) != "int32":
        raise ValueError
    return value


_AXIS = whole(0, MAX_ELEMENTS)


def _is_tensor(size: Any) -> bool:
    """Whether a size is a scalar tensor of a backend."""
    is_array = hasattr(size, "dtype") and not isinstance(size, np.generic | np.ndarray)
    return is_array and not len(size.shape)


def _check_shape(value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    sizes = tuple(value) if is_sequence(value) else (value,)
    # In a compiled step a size may be a scalar tensor.
    shape = tuple(size if _is_tensor(size) else _AXIS.check(size) for size in sizes)
    if math.prod(size for size in shape if type(size) is int) > MAX_ELEMENTS:
        raise ValueError
    return shape


def _check_address(value: Any) -> str:
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", value):
        raise ValueError
    return str(value)


def _check_identifier(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError
    return value


def _check_json(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    try:
        return dict(json.loads(json.dumps(value, allow_nan=False)))
    except RecursionError:
        raise ValueError from None


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


Size = Annotated[int, whole()]
Vocabulary = Annotated[int, whole(1, MAX_VOCABULARY)]
Layers = Annotated[int, whole(1, MAX_LAYERS)]
Blocks = Annotated[int, whole(1, MAX_BLOCKS)]
Timesteps = Annotated[int, whole(1, MAX_TIMESTEPS)]
NewTokens = Annotated[int, whole(1, MAX_NEW_TOKENS)]
Beams = Annotated[int, whole(1, MAX_BEAMS)]
Count = Annotated[int, whole(1, MAX_COUNT)]
Index = Annotated[int, whole(0, MAX_COUNT)]
TokenId = Annotated[int, whole(0, MAX_VOCABULARY - 1)]
Seed = Annotated[int, whole(0, 2**32 - 1)]

Number = Annotated[float, number()]
NonNegative = Annotated[float, number("[0, inf)")]
Positive = Annotated[float, number("(0, inf)")]
Rate = Annotated[float, number("[0, 1)")]
Fraction = Annotated[float, number("(0, 1)")]
Nucleus = Annotated[float, number("(0, 1]")]
Probability = Annotated[float, number("[0, 1]")]

Sizes = Annotated[Sequence[int], each(whole(), 1)]
Levels = Annotated[Sequence[int], each(whole(), 1, MAX_LEVELS)]
ImageShape = Annotated[tuple[int, int, int], each(whole(), 3, 3)]
TokenIds = Annotated[Sequence[int], each(whole(0, MAX_VOCABULARY - 1))]

TokenSequences = Annotated[Sequence[Any], each(array("iu", "(T,)"), 1)]
Labels = Annotated[np.ndarray, array("iu", "(N,)")]
TokenArray = Annotated[np.ndarray, array("iu", "(T,)")]

Images = Annotated[np.ndarray, array("u", "(N, H, W, C)")]
Features = Annotated[np.ndarray, array("f", "(N, width)")]
Logits = Annotated[np.ndarray, array("f", "(N, classes)")]
TokenRows = Annotated[np.ndarray, array("iu", "(N, T)")]
NumberArray = Annotated[np.ndarray, array("biuf")]

TEXT = Rule("a string", _check_text)
Arrays = Annotated[Iterable[np.ndarray], Rule("an iterable of arrays", _check_iterable)]
TextList = Annotated[Sequence[str], each(TEXT)]
Numbers = Annotated[Sequence[float], each(number())]
ACTIVATION = Rule("the name of an activation of Keras", _check_activation)
Activation = Annotated[str, ACTIVATION]
DType = Annotated[str, Rule(f"a dtype policy, one of {', '.join(_DTYPES)}", _check_dtype)]
Name = Annotated[str, Rule("a string that is not empty, without '/'", _check_name)]
FilePath = Annotated[Path, Rule("a path", _check_path)]
AnyPath = Annotated[str | os.PathLike[str], Rule("a path", _check_path)]
Source = Annotated[str | Path, Rule("a name or a path", _check_source)]
ArgumentName = Annotated[str, Rule("the name of an argument", _check_identifier)]
Address = Annotated[str, Rule("an address, package.module:function", _check_address)]
JSONObject = Annotated[dict[str, Any], Rule("a dictionary that JSON can hold", _check_json)]
Texts = Annotated[Iterable[str], Rule("an iterable of strings", _check_texts)]
KEY = Rule("a key of `zoo.random.key`, (2,) int32", _check_key)
RandomKey = Annotated[Any, KEY]
SHAPE = Rule("a shape of fewer than 2**31 elements", _check_shape)
Shape = Annotated[Any, SHAPE]
