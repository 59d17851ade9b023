"""Validation of arguments: annotated types, and a decorator that checks a function's arguments.

    @validated
    def classifier(num_classes: Size, dropout: Rate = 0.5, seed: Seed = 0) -> keras.Model: ...

    classifier(10, dropout=1)
    ValueError: `dropout` must be a number in [0, 1). Received: dropout=1

The annotations are the declaration. pydantic enforces them, strictly: no value is converted, except
that `operator.index` decides what a whole number is, and that a real number is passed on as a
float. pydantic is imported by the first call of a validated function, which keeps `import zoo`
fast. Relations between arguments are checked in the functions.
"""

import functools
import inspect
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import keras
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

# Upper bounds: far above sensible values, and low enough that a typo is an error instead of a call
# that allocates all memory or does not end.
MAX_SIZE = 2**20  # of a dimension, such as a width or a number of classes
MAX_VOCABULARY = 2**24
MAX_LAYERS = 1000
MAX_TIMESTEPS = 10**5  # of a noise schedule, whose tables and embeddings are computed at once
MAX_NEW_TOKENS = 2**20
MAX_COUNT = 2**31 - 1  # of examples or steps, which are not allocated at once; fits int32
MAX_ELEMENTS = 2**31 - 1  # of an array

# ------------------------------------------------------------------ rules


class Rule:
    """Rule of an argument, the metadata of an annotated type.

    Args:
        text: What a valid value is, such as "a whole number of at least 1"; follows "must be".
        check: Function from a value to the value that the function receives. It raises `_Invalid`,
            TypeError or ValueError for an invalid value.
    """

    def __init__(self, text: str, check: Callable[[Any], Any]):
        self.text = text
        self.check = check

    def __repr__(self) -> str:
        return self.text

    def or_none(self) -> "Rule":
        """Returns the rule of a value that may also be None."""
        return Rule(f"{self.text} or None", lambda v: None if v is None else self.check(v))

    def require(self, name: str, value: Any) -> Any:
        """Returns the value that a function receives, or raises ValueError that names it."""
        try:
            return self._apply(value)
        except _Invalid as error:
            raise ValueError(_text(name, str(error), value)) from None

    def _apply(self, value: Any) -> Any:
        try:
            return self.check(value)
        except (TypeError, ValueError, OverflowError):
            raise _Invalid(self.text) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def validate(value: Any) -> Any:
            try:
                return self._apply(value)
            except _Invalid as error:
                raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate)


class _Invalid(Exception):
    """A value breaks a rule; the text is the part of the rule that it breaks."""


def whole(low: int | None = 1, high: int | None = MAX_SIZE) -> Rule:
    """Returns the rule of a whole number, of any type that `operator.index` takes but a bool.

    Args:
        low: Smallest value; None for no limit.
        high: Largest value; None for no limit.
    """
    text = "a whole number" if low is None else f"a whole number of at least {low}"

    def check(value: Any) -> int:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
        if low is not None and number < low:
            raise ValueError
        if high is not None and number > high:
            raise _Invalid(f"a whole number of at most {high}")
        return number

    return Rule(text, check)


def number(interval: str = "(-inf, inf)") -> Rule:
    """Returns the rule of a finite real number.

    Args:
        interval: Interval of the number, such as "[0, 1)". A limit "inf" is open.
    """
    low, high = (float(limit) for limit in interval[1:-1].split(","))
    if math.isfinite(high):
        text = f"a number in {interval}"
    elif math.isfinite(low):
        relation = "of at least" if interval[0] == "[" else "above"
        text = f"a finite number {relation} {low:g}"
    else:
        text = "a finite number"

    def check(value: Any) -> float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise TypeError
        number = float(value)
        is_above = number >= low if interval[0] == "[" else number > low
        is_below = number <= high if interval[-1] == "]" else number < high
        if not (is_above and is_below and math.isfinite(number)):
            raise ValueError
        return number

    return Rule(text, check)


def each(element: Rule, least: int = 0, most: int = MAX_SIZE) -> Rule:
    """Returns the rule of a sequence or one-dimensional array, which becomes a tuple.

    Args:
        element: Rule of each element.
        least: Smallest number of elements.
        most: Largest number of elements.
    """
    if least == most:
        length = f"{least} elements"
    else:
        length = {0: "elements", 1: "at least 1 element"}.get(least, f"at least {least} elements")
    text = f"a sequence of {length}, each {element.text}"

    def check(value: Any) -> tuple[Any, ...]:
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = list(value)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise TypeError
        if len(value) < least:
            raise ValueError
        if len(value) > most:
            raise _Invalid(f"a sequence of at most {most} elements")
        try:
            return tuple(element.check(item) for item in value)
        except _Invalid as error:
            raise _Invalid(text.replace(element.text, str(error))) from error

    return Rule(text, check)


def array(kinds: str, shape: str | None = None) -> Rule:
    """Returns the rule of a NumPy array, or of lists of numbers, which become one.

    Args:
        kinds: Kinds of the dtype, as in `numpy.dtype.kind`: "b", "iu", "f" or several.
        shape: Text of the shape, such as "(N, C)", which gives the rank; None for any shape.
    """
    names = {"b": "booleans", "i": "integers", "f": "floats"}
    kind_text = " or ".join(name for kind, name in names.items() if kind in kinds)
    text = f"an array of {kind_text}" + (f" of shape {shape}" if shape else "")
    rank = None if shape is None else len([axis for axis in shape[1:-1].split(",") if axis])

    def check(value: Any) -> np.ndarray:
        if not isinstance(value, np.ndarray | list | tuple) and not hasattr(value, "__array__"):
            raise TypeError
        result = np.asarray(value)
        kind = "f" if result.dtype.name == "bfloat16" else result.dtype.kind
        if kind not in kinds or (rank is not None and result.ndim != rank):
            raise ValueError
        return result

    return Rule(text, check)


def tensor(shape: str | None = None) -> Rule:
    """Returns the rule of an array or a tensor of any backend, eager, traced or symbolic.

    Args:
        shape: Text of the shape, such as "(B, T)", which gives the rank; None for any shape.
    """
    text = "an array or a tensor" + (f" of shape {shape}" if shape else "")
    rank = None if shape is None else len([axis for axis in shape[1:-1].split(",") if axis])

    def check(value: Any) -> Any:
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise TypeError
        if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
            raise TypeError
        if rank is not None and len(value.shape) != rank:
            raise ValueError
        return value

    return Rule(text, check)


# ------------------------------------------------------------------ checks of the rules


def _activation_names() -> list[str]:
    """Names of the activations of Keras that keep the width and take no arguments."""
    excluded = ("deserialize", "get", "glu", "serialize", "threshold")
    return [n for n in dir(keras.activations) if not n.startswith("_") and n not in excluded]


def _check_activation(value: Any) -> str:
    names = _activation_names()
    if not isinstance(value, str) or value not in names:
        raise _Invalid(f"one of {', '.join(names)}")
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


def _check_iterable(value: Any) -> Any:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError
    return value


def _check_texts(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_check_text(text) for text in value]
    return _check_iterable(value)  # a text that is read later cannot be checked now


def _check_key(value: Any) -> Any:
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or tuple(value.shape) != (2,):
        raise TypeError
    if keras.backend.standardize_dtype(value.dtype) != "int32":
        raise ValueError
    return value


def _check_shape(value: Any) -> tuple[Any, ...]:
    rule = whole(0, MAX_ELEMENTS)
    sizes = value if isinstance(value, Sequence | np.ndarray) else (value,)
    # In a compiled step a size may be a tensor.
    shape = tuple(size if hasattr(size, "dtype") else rule.check(size) for size in sizes)
    if isinstance(value, str) or math.prod(s for s in shape if type(s) is int) > MAX_ELEMENTS:
        raise ValueError
    return shape


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


# ------------------------------------------------------------------ annotated types

Size = Annotated[int, whole()]
Vocabulary = Annotated[int, whole(1, MAX_VOCABULARY)]
Layers = Annotated[int, whole(1, MAX_LAYERS)]
Timesteps = Annotated[int, whole(1, MAX_TIMESTEPS)]
NewTokens = Annotated[int, whole(1, MAX_NEW_TOKENS)]
Count = Annotated[int, whole(1, MAX_COUNT)]
Index = Annotated[int, whole(0, MAX_COUNT)]
Integer = Annotated[int, whole(None, None)]
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
ImageShape = Annotated[tuple[int, int, int], each(whole(), 3, 3)]
TokenIds = Annotated[Sequence[int], each(whole(0, MAX_VOCABULARY - 1))]

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
DType = Annotated[Any, Rule(f"a dtype policy, one of {', '.join(_DTYPES)}", _check_dtype)]
Name = Annotated[str, Rule("a string that is not empty, without '/'", _check_name)]
FilePath = Annotated[Path, Rule("a path", _check_path)]
Texts = Annotated[Iterable[str], Rule("an iterable of strings", _check_texts)]
RandomKey = Annotated[Any, Rule("a key of `zoo.random.key`, (2,) int32", _check_key)]
AnyTensor = Annotated[Any, tensor()]
Shape = Annotated[Any, Rule("a shape of fewer than 2**31 elements", _check_shape)]

# ------------------------------------------------------------------ decorator


def validated(function: F) -> F:
    """Decorator that checks the arguments of a function by its annotations, before any work.

    Args:
        function: Function or dataclass with annotated parameters. A parameter without annotation,
            or annotated with Any, takes any value.

    Returns:
        The function, which raises ValueError for an invalid argument and TypeError, as Python
        does, for a call that does not fit the signature; or the dataclass itself.
    """
    if inspect.isclass(function):
        function.__init__ = validated(function.__init__)  # type: ignore[method-assign]
        return function

    check: Callable[..., tuple[Any, Any]] | None = None

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        if check is None:
            check = _arguments_check(function)
        args, kwargs = check(args, kwargs)
        return function(*args, **kwargs)

    # For `inspect.getfullargspec`, by which Keras reads the arguments of a layer.
    wrapper.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def check_sizes(**sizes: Any) -> None:
    """Checks that the sizes of a command's flags are whole numbers of at least 1.

    Args:
        **sizes: Size of each flag, by its name.

    Raises:
        ValueError: If a size is not a whole number of at least 1. The text names the flag.
    """
    rule = whole(1, MAX_COUNT)
    for name, size in sizes.items():
        rule.require(name, size)


_SIGNATURE_ERRORS = {
    "missing_argument",
    "missing_keyword_only_argument",
    "missing_positional_only_argument",
    "multiple_argument_values",
    "unexpected_keyword_argument",
    "unexpected_positional_argument",
}


def _arguments_check(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Returns a function from the arguments of a call to valid arguments."""
    from pydantic import ConfigDict, ValidationError, validate_call

    @functools.wraps(function)
    def collect(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    config = ConfigDict(arbitrary_types_allowed=True, strict=True)
    validate = validate_call(config=config)(collect)

    def check(args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            return validate(*args, **kwargs)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if any(e["type"] in _SIGNATURE_ERRORS for e in errors):
            function(*args, **kwargs)  # raises Python's own TypeError
        raise ValueError(_describe(errors, function, args, kwargs))

    return check


def _describe(
    errors: Sequence[Any], function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
) -> str:
    """Text of the errors of the first invalid argument."""
    location = errors[0]["loc"][0]
    texts = [_rule_text(e) for e in errors if e["loc"][0] == location]
    if isinstance(location, int):
        parameters = list(inspect.signature(function).parameters)
        name, value = parameters[min(location, len(parameters) - 1)], args[location]
    else:
        name, value = str(location), kwargs[str(location)]
    return _text(name, " or ".join(dict.fromkeys(texts)), value)


def _text(name: str, rule: str, value: Any) -> str:
    return f"`{name}` must be {rule}. Received: {name}={show(value)}"


def _rule_text(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "rule":
        return str(context["text"])
    if kind == "literal_error":
        return f"one of {context['expected']}".replace(" or ", ", ").replace("'", "")
    if kind == "is_instance_of":
        return f"an instance of {context['class']}"
    texts = {
        "bool_type": "True or False",
        "string_type": "a string",
        "callable_type": "callable",
        "dict_type": "a dict",
        "mapping_type": "a mapping",
    }
    return texts.get(kind, f"valid ({error['msg']})")


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxdict = 8


def show(value: Any) -> str:
    """Returns a value as a short text for an error: its `repr`, or an array's shape and dtype."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if dtype is not None and shape is not None and len(shape):
        return f"an array of shape {tuple(shape)}, dtype {dtype}"
    try:
        return _repr.repr(value)
    except Exception:  # of the value's own `__repr__`, or an integer of too many digits
        return f"a value of type {type(value).__name__}"
