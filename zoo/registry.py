"""Registry of the model builders, with the section and the training recipe of each."""

import functools
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import keras

from zoo.validation import validated

MAX_PARAMETERS = 2 * 10**10  # 80 GB in float32

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ImageInput:
    """Image format of a classifier.

    Attributes:
        size: Height and width of an image in pixels.
        channels: Number of channels that the classifier requires, such as 3 for colour. None
            means the channels of the dataset, and a builder with an `input_shape` argument.
        rows: Whether an image is a sequence of its pixel rows.
    """

    size: int
    channels: int | None = None
    rows: bool = False

    def shape(self, dataset_channels: int) -> tuple[int, ...]:
        """Returns the input shape of one image.

        Args:
            dataset_channels: Number of channels of the images in the dataset.
        """
        channels = self.channels or dataset_channels
        return (self.size, self.size * channels) if self.rows else (self.size, self.size, channels)


@dataclass(frozen=True)
class Entry:
    """Registry entry of a builder.

    Attributes:
        build: The builder. All of its arguments must have defaults.
        section: Section of the document that describes the model.
        recipe: Recipe that trains the model, a path relative to the root of the repository.
        parameter_formula: Closed form of the parameter count as a text.
        parameter_count: Function from the builder's arguments to the parameter count. Arguments
            that are not given have the builder's defaults.
        loss: Training loss: "cross_entropy" of logits, or "mean_squared_error".
        images: Image format of an image classifier; None for other models.
        generates: "tokens" or "images" for a generative model; None for other models.
        examples: Builder arguments of the small models in tests and parity checks, by name.
    """

    build: Callable[..., keras.Model]
    section: str
    recipe: str
    parameter_formula: str
    parameter_count: Callable[..., int]
    loss: Literal["cross_entropy", "mean_squared_error"] = "cross_entropy"
    images: ImageInput | None = None
    generates: Literal["tokens", "images"] | None = None
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})


@dataclass(frozen=True)
class Classifier:
    """Image classifier: a builder whose `num_classes` and `seed` are not bound yet.

    Attributes:
        build: Builder of the model.
        images: Image format of the classifier.
    """

    build: Callable[..., keras.Model]
    images: ImageInput


models: dict[str, Entry] = {}

# The builder's name and arguments of each model that a builder returned, for `origin`.
_origins: MutableMapping[keras.Model, tuple[str, dict[str, Any]]] = WeakKeyDictionary()


PretrainedBuilder = Callable[[str, Any, Mapping[str, Any]], keras.Model]
_pretrained: dict[str, PretrainedBuilder] = {}


def set_pretrained_builder(build: PretrainedBuilder) -> None:
    """Sets what builds a model with trained weights; this module is below those that read files.

    Args:
        build: Function of a builder's name, its `weights`, and the other arguments of the call.
    """
    _pretrained["build"] = build


def register(
    *, parameter_count: Callable[..., int], **attributes: Any
) -> Callable[[Callable[P, keras.Model]], Callable[P, keras.Model]]:
    """Returns a decorator that adds a builder to `models` under its own name.

    The decorated builder notes the arguments of each model, for `origin`, and does the work of the
    argument `weights`, which every builder declares.

    Args:
        parameter_count: Function from all of the builder's arguments to the parameter count.
        **attributes: Further attributes of the builder's `Entry`, such as `section` and `recipe`.
    """

    def decorator(build: Callable[P, keras.Model]) -> Callable[P, keras.Model]:
        signature = inspect.signature(build)
        defaults = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if name != "weights"
        }

        @validated
        @functools.wraps(build)
        def bounded(*args: P.args, **kwargs: P.kwargs) -> keras.Model:
            bound = signature.bind(*args, **kwargs)
            weights = bound.arguments.pop("weights", None)
            if weights is not None:
                return _pretrained["build"](build.__name__, weights, bound.arguments)
            bound.apply_defaults()
            arguments = {k: v for k, v in bound.arguments.items() if k != "weights"}
            _check_parameter_count(build.__name__, parameter_count(**arguments), arguments)
            model = build(*args, **kwargs)
            policy = arguments["dtype"] or keras.config.dtype_policy()
            dtype = policy if isinstance(policy, str) else policy.name
            _origins[model] = build.__name__, {**arguments, "dtype": dtype}
            return model

        models[build.__name__] = Entry(
            bounded, parameter_count=partial(parameter_count, **defaults), **attributes
        )
        return bounded

    return decorator


@validated
def origin(model: keras.Model) -> tuple[str, dict[str, Any]]:
    """Returns the name of the builder that made a model, and its arguments without `weights`.

    A dtype of None is resolved to Keras' policy at that time.

    Args:
        model: Model that a builder in `models` returned.

    Raises:
        ValueError: If the model comes from elsewhere, such as a copy.
    """
    if model not in _origins:
        raise ValueError(
            f"`model` must be made by one of {', '.join(sorted(models))}. Received: {model.name}, "
            "which comes from elsewhere. Save it with Keras' `save`"
        )
    name, arguments = _origins[model]
    return name, dict(arguments)


def _check_parameter_count(name: str, count: int, arguments: Mapping[str, Any]) -> None:
    if count > MAX_PARAMETERS:
        largest = max(
            (n for n in arguments if type(arguments[n]) is int), key=arguments.__getitem__
        )
        raise ValueError(
            f"A `{name}` must have at most {MAX_PARAMETERS:,} parameters. Received: arguments for "
            f"{count:,}. Choose smaller sizes; `{largest}`={arguments[largest]} is the largest"
        )


@validated
def get(name: str) -> Entry:
    """Returns the registry entry of a model.

    Args:
        name: Name of the builder.

    Raises:
        ValueError: If there is no such model. The text lists all names.
    """
    return _get_by_name(models, name)


@validated
def examples(name: str) -> dict[str, dict[str, Any]]:
    """Returns the builder arguments of example models, by "builder/example".

    Args:
        name: Name of a builder for all of its examples, or "builder/example" for a single one.

    Raises:
        ValueError: If there is no such builder or example. The text lists all names.
    """
    builder, _, example = name.partition("/")
    arguments_by_name = {
        "/".join(filter(None, (builder, key))): dict(arguments)
        for key, arguments in get(builder).examples.items()
    }
    return {name: _get_by_name(arguments_by_name, name)} if example else arguments_by_name


def classifiers() -> dict[str, Classifier]:
    """Returns all image classifiers by name: one for each example of a classifying builder."""
    return {
        example or name: Classifier(partial(entry.build, **arguments), entry.images)
        for name, entry in models.items()
        if entry.images
        for example, arguments in entry.examples.items()
    }


@validated
def get_classifier(name: str) -> Classifier:
    """Returns an image classifier.

    Args:
        name: Name of the classifier, one of `classifiers()`.

    Raises:
        ValueError: If there is no such classifier. The text lists all names.
    """
    return _get_by_name(classifiers(), name)


def _get_by_name(known: Mapping[str, T], name: str) -> T:
    if name not in known:
        raise ValueError(
            f"`model` must be one of {', '.join(sorted(known))}. Received: model={name}"
        )
    return known[name]
