"""The list of models: each builder says here where it comes from and which recipe trains it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec

import keras

P = ParamSpec("P")


@dataclass(frozen=True)
class Entry:
    """A builder, and what is said and checked of it.

    Attributes:
        build: the builder. It must work without arguments, or with those of `example`.
        section: of the document.
        recipe: that trains it, a path from the repository's root.
        parameters: the closed form of the parameter count, in words.
        count: the same in numbers, from the builder's arguments.
        loss: what the model is trained with: "cross_entropy" of logits, "mean_squared_error".
        example: arguments of a small one.
    """

    build: Callable[..., keras.Model]
    section: str
    recipe: str
    parameters: str
    count: Callable[..., int]
    loss: Literal["cross_entropy", "mean_squared_error"] = "cross_entropy"
    example: Mapping[str, Any] = field(default_factory=dict)


models: dict[str, Entry] = {}


def register(**about: Any) -> Callable[[Callable[P, keras.Model]], Callable[P, keras.Model]]:
    """Enters a builder into `models` under its own name; the arguments are those of `Entry`."""

    def enter(build: Callable[P, keras.Model]) -> Callable[P, keras.Model]:
        models[build.__name__] = Entry(build, **about)
        return build

    return enter


def get(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ValueError: if there is no such model; the text lists those there are.
    """
    if name not in models:
        raise ValueError(
            f"`model` must be one of {', '.join(sorted(models))}. Received: model={name}"
        )
    return models[name]
