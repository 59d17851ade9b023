"""What is to be checked."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import keras

from zoo import registry
from zoo.parity.samples import SAMPLES

Loss = Literal["mean_squared_error", "cross_entropy"]


@dataclass(frozen=True)
class Case:
    """A model and how it is to be fed.

    Attributes:
        build: makes the model: a function without arguments, or "package.module:function".
        name: in the report.
        input_shape: of one example, for a model that does not say it itself.
        inputs: arrays to feed, nested as the model takes them; their first axis is the batch. By
            default they are drawn at random from what the model says of its inputs.
        loss: "mean_squared_error" against random targets, "cross_entropy" of logits against random
            labels, or a function of (targets, outputs).
        optimizer: makes the optimizer that trains; by default the zoo's
            `Adam(1e-3, l2=1e-4)`.
        sample: what the model generates: takes the model, returns arrays by name. Integers (tokens)
            have to be equal.
        parameters: how many there should be, from the closed form.
        portable: whether the initial weights are promised to be the same bits everywhere.
        examples: the batch.
        length: of input axes that the model leaves open.
        steps: of training.
        seed: of inputs, targets and the values that constant weights are moved by.
    """

    build: Callable[[], keras.Model] | str
    name: str = "model"
    input_shape: tuple[int, ...] | None = None
    inputs: Any = None
    loss: Loss | Callable[[Any, Any], Any] = "mean_squared_error"
    optimizer: Callable[[], keras.optimizers.Optimizer] | None = None
    sample: Callable[[keras.Model], Mapping[str, Any]] | None = None
    parameters: int | None = None
    portable: bool = False
    examples: int = 4
    length: int = 8
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("examples", "length"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1. Received: {name}={getattr(self, name)}"
                )
        if self.steps < 4:  # three before a checkpoint and one after it
            raise ValueError(f"`steps` must be at least 4. Received: steps={self.steps}")
        if isinstance(self.loss, str) and self.loss not in Loss.__args__:  # type: ignore[attr-defined]
            raise ValueError(
                "`loss` must be mean_squared_error, cross_entropy or a function. "
                f"Received: loss={self.loss}"
            )
        if isinstance(self.build, str) and self.build.count(":") != 1:
            raise ValueError(
                "`build` must be a function or its address, package.module:function. "
                f"Received: build={self.build}"
            )

    @staticmethod
    def of(
        model: Callable[..., keras.Model] | str,
        arguments: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Case":
        """The case of a builder with its arguments, of an address, or of a model of the zoo's.

        A model of the zoo's is "name" or "name/example", by default its first example. What the zoo
        promises of its own models is filled in. Other options win.
        """
        arguments = arguments or {}
        if isinstance(model, str) and ":" in model:
            build: Any = partial(_build, model, arguments) if arguments else model
            return Case(build, **{"name": model, **options})
        if callable(model):
            build = partial(model, **arguments) if arguments else model
            return Case(build, **{"name": getattr(model, "__name__", "model"), **options})
        (name, example), *_ = registry.examples(model).items()
        entry = registry.get(model.partition("/")[0])
        arguments = {**example, **arguments}
        promised: dict[str, Any] = {
            "name": name,
            "loss": entry.loss,
            "sample": SAMPLES.get(entry.generates or ""),
            "parameters": entry.count(**arguments),
            "portable": True,
        }
        return Case(partial(entry.build, **arguments), **{**promised, **options})

    def builder(self) -> Callable[[], keras.Model]:
        """The function that makes the model."""
        return locate(self.build) if isinstance(self.build, str) else self.build


def _build(address: str, arguments: Mapping[str, Any]) -> keras.Model:
    return locate(address)(**arguments)


def locate(address: str) -> Callable[..., Any]:
    """The function at "package.module:function".

    Raises:
        ImportError, ValueError: if it is not there; the text says which part.
    """
    module_name, _, name = address.partition(":")
    found = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"There is no {name} in {module_name}. Received: {address}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{address} must be a function that makes a model. Received: {found!r}")
    return found
