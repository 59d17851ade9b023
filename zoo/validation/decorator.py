"""Decorator that checks the arguments of a function by its annotations."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from zoo.validation.rules import describe

F = TypeVar("F", bound=Callable[..., Any])


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
            valid_args, valid_kwargs = validate(*args, **kwargs)
            # Without the defaults that pydantic adds: a builder with `weights` takes only what is
            # given.
            return valid_args, {name: valid_kwargs[name] for name in kwargs}
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if any(e["type"] in _SIGNATURE_ERRORS for e in errors):
            function(*args, **kwargs)  # raises Python's own TypeError
        raise ValueError(_error_text(errors, function, args, kwargs))

    return check


def _error_text(
    errors: Sequence[Any], function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
) -> str:
    """Text of the errors of the first invalid argument."""
    location = errors[0]["loc"][0]
    of_argument = [e for e in errors if e["loc"][0] == location]
    indices = [part for part in of_argument[0]["loc"][1:] if isinstance(part, int)]
    rule = " or ".join(dict.fromkeys(map(_rule_text, of_argument)))
    if indices:
        rule = f"a sequence with {rule} at index {indices[0]}"
    if isinstance(location, int):
        parameters = list(inspect.signature(function).parameters)
        name, value = parameters[min(location, len(parameters) - 1)], args[location]
    else:
        name, value = str(location), kwargs[str(location)]
    return describe(name, rule, value)


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
