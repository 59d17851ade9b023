"""Rules of arguments: what a valid value is, in words and as a check.

A rule is the metadata of an annotated type, such as `Annotated[int, whole(1, 8)]`. pydantic calls
its check; `Rule.require` does the same for a single value.
"""

import math
import numbers
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Upper bounds: far above sensible values, and low enough that a typo is an error instead of a call
# that allocates all memory or does not end.
MAX_SIZE = 2**20  # of a dimension, such as a width or a number of classes
MAX_VOCABULARY = 2**24
# Keras recurses through a graph, and a layer takes some 10 ms to build.
MAX_LAYERS = 128
MAX_LEVELS = 8  # of resolution, in an image network
MAX_BLOCKS = 8  # at each level
MAX_TIMESTEPS = 10**5  # of a noise schedule, whose tables and embeddings are computed at once
MAX_NEW_TOKENS = 2**20
MAX_BEAMS = 1024
MAX_COUNT = 2**31 - 1  # of examples or steps, which are not allocated at once; fits int32
MAX_ELEMENTS = 2**31 - 1  # of an array


class Rule:
    """Rule of an argument, the metadata of an annotated type.

    Args:
        text: What a valid value is, such as "a whole number of at least 1"; follows "must be".
        check: Function from a value to the value that the function receives. It raises
            InvalidError, TypeError or ValueError for an invalid value.
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
        except InvalidError as error:
            raise ValueError(describe(name, str(error), value)) from None

    def _apply(self, value: Any) -> Any:
        try:
            return self.check(value)
        except (TypeError, ValueError, OverflowError):
            raise InvalidError(self.text) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def validate(value: Any) -> Any:
            try:
                return self._apply(value)
            except InvalidError as error:
                raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate)


class InvalidError(Exception):
    """A value breaks a rule; the text is the part of the rule that it breaks."""


def whole(low: int | None = 1, high: int | None = MAX_SIZE) -> Rule:
    """Returns the rule of a whole number, of any type that `operator.index` takes but a bool.

    Args:
        low: Smallest value; None for no limit.
        high: Largest value; None for no limit.
    """
    text = "a whole number" if low is None else f"a whole number of at least {low}"

    def check(value: Any) -> int:
        if _is_bool(value):
            raise TypeError
        number = operator.index(value)
        if low is not None and number < low:
            raise ValueError
        if high is not None and number > high:
            raise InvalidError(f"a whole number of at most {high}")
        return number

    return Rule(text, check)


def _is_bool(value: Any) -> bool:
    """Whether a value is a bool, or an array or tensor of any library that holds bools."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


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
        if _is_bool(value) or not isinstance(value, numbers.Real):
            raise TypeError
        number = float(value)
        is_above = number >= low if interval[0] == "[" else number > low
        is_below = number <= high if interval[-1] == "]" else number < high
        if not (is_above and is_below and math.isfinite(number)):
            raise ValueError
        return number

    return Rule(text, check)


def is_sequence(value: Any) -> bool:
    """Whether a value is a sequence of items, such as a list, a range or TensorFlow's shapes."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    methods = ("__len__", "__getitem__", "__iter__")
    other = isinstance(value, Mapping) or hasattr(value, "dtype")  # a dict or a tensor
    return not other and all(hasattr(value, method) for method in methods)


def each(element: Rule, least: int = 0, most: int = MAX_SIZE) -> Rule:
    """Returns the rule of a sequence or an array, which becomes a tuple.

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
        if isinstance(value, np.ndarray) and value.ndim:
            value = list(value)
        if not is_sequence(value):
            raise TypeError
        if len(value) < least:
            raise ValueError
        if len(value) > most:
            raise InvalidError(f"a sequence of at most {most} elements")
        try:
            return tuple(element.check(item) for item in value)
        except InvalidError as error:
            raise InvalidError(text.replace(element.text, str(error))) from error

    return Rule(text, check)


def array(kinds: str, shape: str | None = None) -> Rule:
    """Returns the rule of a NumPy array, or of lists of numbers, which become one.

    Args:
        kinds: Kinds of the dtype, as in `numpy.dtype.kind`: "b", "u", "iu", "f" or several.
        shape: Text of the shape, such as "(N, C)", which gives the rank; None for any shape.
    """
    names = {"b": "booleans", "i": "integers", "f": "floats"}
    known = [name for kind, name in names.items() if kind in kinds]
    kind_text = " or ".join(known) or "uint8"
    text = f"an array of {kind_text}" + (f" of shape {shape}" if shape else "")
    rank = None if shape is None else len([axis for axis in shape[1:-1].split(",") if axis])

    def check(value: Any) -> np.ndarray:
        if not isinstance(value, np.ndarray | list | tuple) and not hasattr(value, "__array__"):
            raise TypeError
        result = np.asarray(value)
        if result.size == 0 and not isinstance(value, np.ndarray):
            result = result.astype(int)  # an empty list has no dtype of its own
        kind = "f" if result.dtype.name == "bfloat16" else result.dtype.kind
        if kind not in kinds or (rank is not None and result.ndim != rank):
            raise ValueError
        return result

    return Rule(text, check)


def instance(kind: type) -> Rule:
    """Returns the rule of an object of a class.

    Args:
        kind: Class of the object.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Rule(f"an instance of {kind.__name__}", check)


def check_lengths(**arrays: Any) -> None:
    """Checks that arrays have one length, and at least one element.

    Args:
        **arrays: Arrays or sequences, by the names of the arguments.

    Raises:
        ValueError: If two lengths differ, or they are 0. The text names the arguments.
    """
    lengths = [len(array) for array in arrays.values()]
    if len(set(lengths)) > 1 or not lengths[0]:
        names = " and ".join(f"`{name}`" for name in arrays)
        raise ValueError(
            f"{names} must be of one length, at least 1. Received: "
            f"{' and '.join(map(str, lengths))}"
        )


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


def describe(name: str, rule: str, value: Any) -> str:
    """Returns the text of the error for an invalid argument."""
    return f"`{name}` must be {rule}. Received: {name}={show(value)}"


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
