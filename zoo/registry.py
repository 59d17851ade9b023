"""The list of models: each builder says here where it comes from and which recipe trains it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

import keras

P = ParamSpec("P")


@dataclass(frozen=True)
class Entry:
    """What `python -m zoo list` says of a builder."""

    build: Callable[..., keras.Model]
    section: str  # of the document
    recipe: str  # a path from the repository's root
    parameters: str  # the closed form of the parameter count


models: dict[str, Entry] = {}


def register(
    section: str, recipe: str, parameters: str
) -> Callable[[Callable[P, keras.Model]], Callable[P, keras.Model]]:
    """Enters a builder into `models` under its own name."""

    def enter(build: Callable[P, keras.Model]) -> Callable[P, keras.Model]:
        models[build.__name__] = Entry(build, section, recipe, parameters)
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
