"""Layers of a model by path, and context managers that observe and change their calls."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops, tree

_FLOAT32 = ("float32", "torch.float32", "<dtype: 'float32'>")  # on JAX, PyTorch and TensorFlow


@dataclass(frozen=True)
class LayerRecord:
    """Layer of the model, or the model itself, with its path.

    Attributes:
        path: Names of the enclosing layers and of the layer, separated by slashes.
        layer: Keras layer.
        in_loop: Whether the layer is a recurrent cell, whose loop over time may be compiled.
    """

    path: str
    layer: keras.layers.Layer
    in_loop: bool

    @property
    def variables(self) -> list[keras.Variable]:
        """Variables of the layer without those of its sublayers."""
        layer = self.layer
        generators = [generator.state for generator in layer._seed_generators]
        return [*layer._trainable_variables, *layer._non_trainable_variables, *generators]

    @property
    def untracked_variables(self) -> list[keras.Variable]:
        """Variables missing from `Layer.variables`, such as the states of a recurrent layer."""
        tracked = {id(variable) for variable in self.layer.variables}
        attributes = [
            value
            for name, attribute in vars(self.layer).items()
            if not name.startswith("_")
            for value in tree.flatten(attribute)
            if isinstance(value, keras.Variable)
        ]
        return [variable for variable in attributes if id(variable) not in tracked]


def layer_records(model: keras.Model) -> list[LayerRecord]:
    """Returns the records of all layers by depth-first search, and of the model itself."""
    records: dict[int, LayerRecord] = {}

    def walk(layer: keras.layers.Layer, prefix: str, in_loop: bool) -> None:
        for child in layer._flatten_layers(include_self=False, recursive=False):
            if id(child) not in records and not isinstance(child, keras.layers.InputLayer):
                records[id(child)] = LayerRecord(prefix + child.name, child, in_loop)
                recurrent = isinstance(child, keras.layers.RNN)
                walk(child, f"{prefix}{child.name}/", in_loop or recurrent)

    walk(model, "", False)
    return [*records.values(), LayerRecord(model.name, model, False)]


@contextlib.contextmanager
def call_wrapped(record: LayerRecord, around: Callable[..., Any]) -> Iterator[None]:
    """Wraps a layer's `call` in a function; Keras looks `call` up on the instance."""
    instance_call = record.layer.__dict__.get("call")
    call = record.layer.call

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(call, *args, **kwargs)

    record.layer.__dict__["call"] = wrapped
    try:
        yield
    finally:
        del record.layer.__dict__["call"]
        if instance_call is not None:
            record.layer.__dict__["call"] = instance_call


@contextlib.contextmanager
def outputs_recorded(
    record: LayerRecord, calls: list[tuple[LayerRecord, int, Any]]
) -> Iterator[None]:
    """Appends record, summed terms and outputs of each call of a layer to `calls`."""

    def call_and_append(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        calls.append((record, _terms(record, args), outputs))
        return outputs

    with call_wrapped(record, call_and_append):
        yield


@contextlib.contextmanager
def on_stack(record: LayerRecord, stack: list[LayerRecord]) -> Iterator[None]:
    """Keeps the layer on top of the stack during its calls."""

    def call_on_stack(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stack.append(record)
        try:
            return call(*args, **kwargs)
        finally:
            stack.pop()

    with call_wrapped(record, call_on_stack):
        yield


@contextlib.contextmanager
def observed_draws(on_draw: Callable[[], None], zeros: bool = False) -> Iterator[None]:
    """Calls `on_draw` for each use of the backend's random functions, which Keras' layers share.

    With `zeros`, the functions return zeros.
    """
    module = keras.src.backend.random
    kinds = "normal uniform categorical randint truncated_normal dropout shuffle gamma binomial"
    functions = {name: getattr(module, name) for name in [*kinds.split(), "beta"]}

    def observed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        on_draw()
        numbers = function(*args, **kwargs)
        return ops.zeros_like(numbers) if zeros else numbers

    for name, function in functions.items():
        setattr(module, name, functools.partial(observed, function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(module, name, function)


@contextlib.contextmanager
def observed_float32(on_float32: Callable[[], None]) -> Iterator[None]:
    """Calls `on_float32` for each result in float32 of the backend's functions.

    Keras' layers and `keras.ops` share these functions.
    """
    names = ("core", "image", "linalg", "math", "nn", "numpy")
    modules = [getattr(keras.src.backend, name) for name in names]
    functions = [
        (module, name, function)
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function) and not name.startswith("_")
    ]

    def observed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if any(str(getattr(x, "dtype", "")) in _FLOAT32 for x in tree.flatten(result)):
                on_float32()
            return result

        return call

    for module, name, function in functions:
        setattr(module, name, observed(function))
    try:
        yield
    finally:
        for module, name, function in functions:
            setattr(module, name, function)


def in_inference_mode(call: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def inference_call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = False
        return call(*bound.args, **bound.kwargs)

    return inference_call


def _terms(record: LayerRecord, args: Sequence[Any]) -> int:
    """Returns the number of terms that are summed in each element of a layer's output."""
    recurrent = isinstance(record.layer, keras.layers.RNN)
    weights = record.layer.weights if recurrent else record.variables
    fan_in = max((math.prod(weight.shape[:-1]) for weight in weights), default=1)
    shapes = [x.shape for x in tree.flatten(args) if hasattr(x, "shape") and len(x.shape) > 1]
    if recurrent and shapes:
        return int(fan_in * shapes[0][1])
    # Layers such as normalization and softmax sum along an axis.
    return int(max(fan_in, *(shape[-1] for shape in shapes), 1))
