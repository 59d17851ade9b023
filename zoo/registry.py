"""The list of models: each builder says here where it comes from and which recipe trains it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

import keras

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ImageInput:
    """How a classifier takes an image.

    Attributes:
        size: height and width.
        channels: 3 for colour, whatever is stored. None takes what is stored, and the builder an
            `input_shape`.
        rows: whether an image is a sequence of its rows.
    """

    size: int
    channels: int | None = None
    rows: bool = False

    def shape(self, stored: int) -> tuple[int, ...]:
        """Of one image as the network takes it, from an image with so many channels."""
        channels = self.channels or stored
        return (self.size, self.size * channels) if self.rows else (self.size, self.size, channels)


@dataclass(frozen=True)
class Entry:
    """A builder, and what is said and checked of it.

    Attributes:
        build: the builder. It must work without arguments.
        section: of the document.
        recipe: that trains it, a path from the repository's root.
        parameters: the closed form of the parameter count, in words.
        count: the same in numbers, from the builder's arguments; those not given are its defaults.
        loss: what the model is trained with: "cross_entropy" of logits, "mean_squared_error".
        images: how it takes images, if it classifies them.
        generates: "tokens" or "images", if it generates any.
        examples: arguments of the small models that are tested and checked, by name.
    """

    build: Callable[..., keras.Model]
    section: str
    recipe: str
    parameters: str
    count: Callable[..., int]
    loss: Literal["cross_entropy", "mean_squared_error"] = "cross_entropy"
    images: ImageInput | None = None
    generates: Literal["tokens", "images"] | None = None
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})


@dataclass(frozen=True)
class Classifier:
    """A network for images: a builder that is yet to hear of classes, seed and the like."""

    build: Callable[..., keras.Model]
    images: ImageInput


models: dict[str, Entry] = {}


def register(
    *, count: Callable[..., int], **about: Any
) -> Callable[[Callable[P, keras.Model]], Callable[P, keras.Model]]:
    """Enters a builder into `models` under its own name; the arguments are those of `Entry`.

    `count` is called with all of the builder's arguments.
    """

    def enter(build: Callable[P, keras.Model]) -> Callable[P, keras.Model]:
        parameters = inspect.signature(build).parameters.items()
        defaults = {name: parameter.default for name, parameter in parameters}
        models[build.__name__] = Entry(build, count=partial(count, **defaults), **about)
        return build

    return enter


def get(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ValueError: if there is no such model; the text lists those there are.
    """
    return _look_up(models, name)


def examples(name: str) -> dict[str, dict[str, Any]]:
    """Arguments of the small models of a builder, by "name/example".

    Args:
        name: of a builder, for all of its examples, or "name/example" for that one.
    """
    builder, _, example = name.partition("/")
    named = {
        "/".join(filter(None, (builder, key))): dict(arguments)
        for key, arguments in get(builder).examples.items()
    }
    return {name: _look_up(named, name)} if example else named


def classifiers() -> dict[str, Classifier]:
    """The networks that classify images; of a builder with several examples, each of them."""
    return {
        example or name: Classifier(partial(entry.build, **arguments), entry.images)
        for name, entry in models.items()
        if entry.images
        for example, arguments in entry.examples.items()
    }


def get_classifier(name: str) -> Classifier:
    """The one of a name.

    Raises:
        ValueError: if there is no such classifier; the text lists those there are.
    """
    return _look_up(classifiers(), name)


def _look_up(known: Mapping[str, T], name: str) -> T:
    if name not in known:
        raise ValueError(
            f"`model` must be one of {', '.join(sorted(known))}. Received: model={name}"
        )
    return known[name]
