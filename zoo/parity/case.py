"""Configuration of the cross-backend check of one model."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import keras
import numpy as np
from keras import ops, tree

from zoo import registry
from zoo.parity.diagnosis import recorded_sources
from zoo.parity.inputs import InputSpec, input_specs
from zoo.parity.samples import SAMPLES
from zoo.validation import MAX_COUNT, Address, Index, Seed, Size, each, validated, whole
from zoo_command import missing_attribute, missing_module

Loss = Literal["mean_squared_error", "cross_entropy"]


@validated
@dataclass(frozen=True)
class Case:
    """A model with its inputs, loss and optimizer for the cross-backend check.

    Attributes:
        build: Builder of the model: a function without arguments, or "package.module:function".
        name: Name of the model in the report.
        input_shape: Shape of one example, for a model that does not define its input shape.
        inputs: Input arrays, nested as the model takes them; their first axis is the batch. Or an
            `InputSpec` of each, also a dict by the names of the inputs that the model defines, for
            random inputs. By default these are as the model defines them.
        loss: Loss function: "mean_squared_error" with random targets, "cross_entropy" of logits
            with random labels, or a function of (targets, outputs).
        optimizer: Function that makes the optimizer; by default `zoo.training.optimizers.Adam`
            with learning rate 1e-3 and `l2=1e-4`.
        sample: Sampling function: takes the model and returns generated arrays by name. Integers
            (tokens) must be equal on all backends.
        parameters: Expected number of parameters, from a closed formula.
        portable: Whether the initial weights must have the same bits on every backend.
        examples: Batch size.
        length: Size of the input axes that the model leaves undefined, such as time steps.
        steps: Number of training steps, at least 4.
        seed: Seed of the inputs, the targets and the offsets of constant weights.

    Raises:
        ValueError: If a size is too small, `loss` is unknown, `build` is not an address, or
            `inputs` are neither arrays nor specifications.
    """

    build: Callable[[], keras.Model] | str
    name: str = "model"
    input_shape: Annotated[tuple[int, ...], each(whole())] | None = None
    inputs: Any = None
    loss: Loss | Callable[[Any, Any], Any] = "mean_squared_error"
    optimizer: Callable[[], keras.optimizers.Optimizer] | None = None
    sample: Callable[[keras.Model], Mapping[str, Any]] | None = None
    parameters: Index | None = None
    portable: bool = False
    examples: Size = 4
    length: Size = 8
    # Three steps before the checkpoint and one after the restore.
    steps: Annotated[int, whole(4, MAX_COUNT)] = 10
    seed: Seed = 0

    def __post_init__(self) -> None:
        if isinstance(self.build, str) and self.build.count(":") != 1:
            raise ValueError(
                "`build` must be a function or its address, package.module:function. "
                f"Received: build={self.build}"
            )
        for leaf in [] if self.inputs is None else tree.flatten(self.inputs):
            if not isinstance(leaf, InputSpec) and not np.ndim(leaf):
                raise ValueError(
                    "`inputs` must be arrays whose first axis is the batch, or an `InputSpec` of "
                    f'each, such as InputSpec((16,), "int32", 0, 1000). Received: {leaf!r}'
                )

    @staticmethod
    def of(
        model: Callable[..., keras.Model] | str,
        arguments: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Case":
        """Creates the case of a builder, of the address of a builder or of a model of the zoo.

        For a model of the zoo the loss, the sampling function, the expected parameter count and
        `portable` come from the registry.

        Args:
            model: Builder, "package.module:function", or name of a model of the zoo: "name" for its
                first example or "name/example".
            arguments: Keyword arguments of the builder.
            **options: Attributes of `Case`; they override those from the registry.
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
        defaults: dict[str, Any] = {
            "name": name,
            "loss": entry.loss,
            "sample": SAMPLES.get(entry.generates or ""),
            "parameters": entry.parameter_count(**arguments),
            "portable": True,
        }
        return Case(partial(entry.build, **arguments), **{**defaults, **options})

    def builder(self) -> Callable[[], keras.Model]:
        """Returns the function that builds the model."""
        return locate(self.build) if isinstance(self.build, str) else self.build


def build_model(case: Case) -> tuple[keras.Model, Any]:
    """Returns the model with its weights, and its inputs: arrays, or an `InputSpec` of each."""
    with recorded_sources():
        model = case.builder()()
    if not isinstance(model, keras.Model):
        raise TypeError(f"`build` must return a keras.Model. Received: {model!r}")
    _check_call(model)
    specs = case.inputs
    if specs is None or any(isinstance(spec, InputSpec) for spec in tree.flatten(specs)):
        specs = input_specs(model, specs, case.input_shape)
    if not (model.built and hasattr(model, "inputs")):
        # `build` of a subclass without a `build` of its own creates no weights.
        model(tree.map_structure(lambda spec: _example(case, spec), specs))
    return model, specs


def _check_call(model: keras.Model) -> None:
    """Raises ValueError for a model that needs several arguments."""
    parameters = inspect.signature(model.call).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    needed = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    if len(needed) > 1:
        raise ValueError(
            "`build` must return a model that takes its inputs as one argument, several as a list "
            f"or a dict. Received: {model.name}.call({', '.join(needed)})"
        )


def _example(case: Case, spec: Any) -> Any:
    if isinstance(spec, InputSpec):
        return ops.zeros(spec.full_shape(case.examples, case.length), spec.dtype)
    return ops.convert_to_tensor(spec)


def _build(address: str, arguments: Mapping[str, Any]) -> keras.Model:
    return locate(address)(**arguments)


@validated
def locate(address: Address) -> Callable[..., Any]:
    """Imports the function at the address "package.module:function".

    Raises:
        ImportError: If the module imports one that is missing.
        ValueError: If there is no such module, if it has no such attribute or if the attribute is
            not callable.
    """
    module_name, _, name = address.partition(":")
    try:
        function: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise missing_module(str(error.name), address) from None
    for attribute in name.split("."):
        if not hasattr(function, attribute):
            functions = [
                key
                for key, value in vars(function).items()
                if callable(value) and getattr(value, "__module__", "") == module_name
            ]
            raise missing_attribute(attribute, function.__name__, functions, address)
        function = getattr(function, attribute)
    if not callable(function):
        raise ValueError(
            f"{address} must be a function that builds a model. Received: {function!r}"
        )
    return function  # type: ignore[no-any-return]
