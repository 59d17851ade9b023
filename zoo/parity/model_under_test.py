"""The model under check on one backend: its layers and variables by path, fed and watched."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from zoo import random
from zoo.datasets.augmentation import ImageTransform
from zoo.parity.case import Case
from zoo.training.checkpoints import finalize_layer_state

Tensor = Any
Arrays = dict[str, np.ndarray]

ELEMENTS = 2**18  # of each layer's output, so that the files of a large model fit on a disk
BATCHES = 4  # different ones; training goes round


@dataclass(frozen=True)
class LayerRecord:
    """A layer of the model, or the model itself.

    Attributes:
        path: the names of the layers it lies in and its own.
        in_loop: whether it is a recurrent layer's cell, called in a loop that may be compiled.
    """

    path: str
    layer: keras.layers.Layer
    in_loop: bool

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of the layer itself, not of the layers in it."""
        layer = self.layer
        generators = [generator.state for generator in layer._seed_generators]
        return [*layer._trainable_variables, *layer._non_trainable_variables, *generators]

    @property
    def hidden_variables(self) -> list[keras.Variable]:
        """Attributes that `Layer.variables` does not know of, such as a recurrent layer's state."""
        known = {id(variable) for variable in self.layer.variables}
        held = [
            value
            for name, attribute in vars(self.layer).items()
            if not name.startswith("_")
            for value in tree.flatten(attribute)
            if isinstance(value, keras.Variable)
        ]
        return [variable for variable in held if id(variable) not in known]


class ModelUnderTest:
    """The model of a case, built, with the variables and data that all backends share.

    Args:
        case: what to check.
        folder: where `weights.npz` and `data.npz` are, or will be.
        policy: for layers that do not choose their own; by default floatx.
    """

    def __init__(self, case: Case, folder: Path, policy: str = ""):
        keras.utils.clear_session()  # names count from the beginning
        keras.config.set_dtype_policy(policy or keras.config.floatx())
        self.case = case
        self.folder = folder
        self.model = _built(case)
        self.specs = _specs(case, self.model)
        self.images = image_inputs(case, self.specs)
        self.parts = _parts(self.model)
        self.variables: dict[str, keras.Variable] = {}
        self.owners: dict[str, str] = {}  # the path of the layer that a variable belongs to
        owner = {id(v): part.path for part in self.parts for v in part.variables}
        for variable in self.model.variables:
            self._enter(variable.path, variable, owner.get(id(variable), ""))
        for part in self.parts:
            for number, variable in enumerate(part.hidden_variables):
                self._enter(f"{part.path}/{variable.name}[{number}]", variable, part.path)
        names = {id(variable): path for path, variable in self.variables.items()}
        self.trainable = [names[id(variable)] for variable in self.model.trainable_variables]
        # A backend's own generator starts from other numbers on each.
        self.generators = {
            names[id(generator.state)]
            for part in self.parts
            if not hasattr(part.layer, "random_key")
            for generator in part.layer._seed_generators
        }
        self.initial = self.values()
        self._data: Arrays = {}

    def _enter(self, path: str, variable: keras.Variable, owner: str) -> None:
        while path in self.variables:
            path += "'"
        self.variables[path] = variable
        self.owners[path] = owner

    # -------------------------------------------------------------- variables

    def values(self) -> Arrays:
        return {path: to_numpy(variable.value) for path, variable in self.variables.items()}

    @property
    def others(self) -> list[str]:
        """Paths of what training changes besides the weights: statistics, states, counters."""
        apart = {*self.trainable, *self.generators}
        return [path for path in self.variables if path not in apart]

    def load(self) -> None:
        """Sets every variable to what `weights.npz` says."""
        with np.load(self.folder / "weights.npz") as shared:
            for path, variable in self.variables.items():
                value = shared.get(path, None)
                # Another shape is for rung 1 to say; a backend's own generator keeps its own state.
                if value is None or value.shape != tuple(variable.shape) or path in self.generators:
                    value = self.initial[path]
                variable.assign(ops.convert_to_tensor(value, dtype=variable.dtype))
        finalize_layer_state(self.model)

    # -------------------------------------------------------------- data

    def batch(self, number: int = 0) -> list[np.ndarray]:
        """Inputs and then targets of one batch, flat."""
        if not self._data:
            with np.load(self.folder / "data.npz") as file:
                self._data = dict(file)
        size = len(next(iter(self._data.values()))) // BATCHES
        start = number % BATCHES * size
        arrays = [array[start : start + size] for array in self._data.values()]
        floatx = keras.config.floatx()
        return [array.astype(floatx) if array.dtype.kind == "f" else array for array in arrays]

    def inputs(self, arrays: Sequence[Tensor], key: random.Key | None = None) -> Any:
        """A batch's inputs as the model takes them. With a key, images are augmented."""
        prepared = [
            _pixels(array, key) if i in self.images else ops.convert_to_tensor(array)
            for i, array in enumerate(arrays[: len(tree.flatten(self.specs))])
        ]
        return tree.pack_sequence_as(self.specs, prepared)

    def outputs(self, training: bool) -> Any:
        """Of the first batch."""
        return self.model(self.inputs(self.batch()), training=training)

    def loss(self, arrays: Sequence[Tensor], key: random.Key | None = None) -> Tensor:
        """The mean loss of a batch in training mode, summed over the outputs, and the model's."""
        outputs = tree.flatten(self.model(self.inputs(arrays, key), training=True))
        targets = map(ops.convert_to_tensor, arrays[len(arrays) - len(outputs) :])
        total = sum(self.model.losses)  # regularizers, and what layers add
        for target, output in zip(targets, outputs):
            total = total + ops.mean(self._losses(target, output))
        return total

    def _losses(self, target: Tensor, output: Tensor) -> Tensor:
        if callable(self.case.loss):
            return self.case.loss(target, output)
        if self.case.loss == "cross_entropy":
            return ops.sparse_categorical_crossentropy(target, output, from_logits=True)
        return ops.square(output - target)

    # -------------------------------------------------------------- layers

    def silence(self) -> tuple[list[str], list[str]]:
        """Puts layers that draw a backend's own numbers in training into inference mode for good.

        Returns:
            Their paths, and those of layers that draw in inference mode, too.
        """
        drew = self._drawing()
        for part in drew:
            if "training" in inspect.signature(part.layer.call).parameters:
                part.layer.__dict__["call"] = _in_inference_mode(part.layer.call)
        live = self._drawing()
        return [p.path for p in drew if p not in live], [p.path for p in live]

    def _drawing(self) -> list[LayerRecord]:
        """The layers in whose call, in training mode, numbers of the backend's own are drawn."""
        drew: list[LayerRecord] = []
        stack = [self.parts[-1]]
        with contextlib.ExitStack() as contexts:
            for part in self.parts:
                if not part.in_loop:
                    contexts.enter_context(_stacked(part, stack))
            contexts.enter_context(_noted_draws(lambda: drew.append(stack[-1])))
            self.outputs(training=True)
        return [part for part in self.parts if part in drew]

    def record(self, training: bool) -> list[tuple[str, int, np.ndarray]]:
        """Every layer's output on the first batch, in the order in which they are ready.

        Returns:
            For each the layer's path, how many terms are summed up in each number, the numbers.
        """
        seen: list[tuple[str, int, Any]] = []
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                if not part.in_loop:
                    stack.enter_context(_watched(part, seen))
            self.outputs(training)
        records: list[tuple[str, int, np.ndarray]] = []
        calls: dict[str, int] = {}
        for path, terms, outputs in seen:
            calls[path] = calls.get(path, 0) + 1
            name = path if calls[path] == 1 else f"{path} (call {calls[path]})"
            for number, output in enumerate(tree.flatten(outputs)):
                array = _concrete(output)
                if array is not None:
                    records.append((name if number == 0 else f"{name}[{number}]", terms, array))
        return records


def _built(case: Case) -> keras.Model:
    model = case.builder()()
    if not isinstance(model, keras.Model):
        raise TypeError(f"`build` must return a keras.Model. Received: {model!r}")
    if not model.built and case.input_shape is not None:
        model.build((case.examples, *case.input_shape))
    if not model.built and case.inputs is not None:
        model(case.inputs)
    return model


def _specs(case: Case, model: keras.Model) -> Any:
    if case.inputs is not None:
        return case.inputs
    if isinstance(model, keras.Sequential) and model.built:
        return model.inputs[0]
    if hasattr(model, "input"):
        return model.input
    if case.input_shape is not None:
        return keras.KerasTensor((None, *case.input_shape))
    raise ValueError(
        "The model does not say what its inputs are. Give `input_shape`, the shape of one example, "
        f"or `inputs`, arrays. Received: {model.name} without either"
    )


def _parts(model: keras.Model) -> list[LayerRecord]:
    found: dict[int, LayerRecord] = {}

    def walk(layer: keras.layers.Layer, prefix: str, in_loop: bool) -> None:
        for child in layer._flatten_layers(include_self=False, recursive=False):
            if id(child) not in found and not isinstance(child, keras.layers.InputLayer):
                found[id(child)] = LayerRecord(prefix + child.name, child, in_loop)
                recurrent = isinstance(child, keras.layers.RNN)
                walk(child, f"{prefix}{child.name}/", in_loop or recurrent)

    walk(model, "", False)
    return [*found.values(), LayerRecord(model.name, model, False)]


@contextlib.contextmanager
def _wrapped(part: LayerRecord, around: Callable[..., Any]) -> Iterator[None]:
    """Puts a function around a layer's `call`, which Keras looks up on the instance."""
    before = part.layer.__dict__.get("call")
    call = part.layer.call

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(call, *args, **kwargs)

    part.layer.__dict__["call"] = wrapped
    try:
        yield
    finally:
        del part.layer.__dict__["call"]
        if before is not None:
            part.layer.__dict__["call"] = before


@contextlib.contextmanager
def _watched(part: LayerRecord, seen: list[tuple[str, int, Any]]) -> Iterator[None]:
    """Notes what a layer's `call` gives."""

    def noted(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        seen.append((part.path, _terms(part, args), outputs))
        return outputs

    with _wrapped(part, noted):
        yield


@contextlib.contextmanager
def _stacked(part: LayerRecord, stack: list[LayerRecord]) -> Iterator[None]:
    """Keeps the layer on top of the stack while it is called."""

    def pushed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stack.append(part)
        try:
            return call(*args, **kwargs)
        finally:
            stack.pop()

    with _wrapped(part, pushed):
        yield


@contextlib.contextmanager
def _noted_draws(note: Callable[[], None]) -> Iterator[None]:
    """Notes every draw from the backend's own generator; all of Keras' go through this module."""
    module = keras.src.backend.random
    names = (
        "normal uniform categorical randint truncated_normal dropout shuffle gamma binomial beta"
    )
    before = {name: getattr(module, name) for name in names.split()}

    def noted(draw: Callable[..., Any]) -> Callable[..., Any]:
        def draw_and_note(*args: Any, **kwargs: Any) -> Any:
            note()
            return draw(*args, **kwargs)

        return draw_and_note

    for name, draw in before.items():
        setattr(module, name, noted(draw))
    try:
        yield
    finally:
        for name, draw in before.items():
            setattr(module, name, draw)


def _in_inference_mode(call: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def silenced(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = False
        return call(*bound.args, **bound.kwargs)

    return silenced


def _terms(part: LayerRecord, args: Sequence[Any]) -> int:
    """How many products a number of a layer's output is the sum of."""
    recurrent = isinstance(part.layer, keras.layers.RNN)
    weights = part.layer.weights if recurrent else part.variables
    fan_in = max((math.prod(weight.shape[:-1]) for weight in weights), default=1)
    shapes = [x.shape for x in tree.flatten(args) if hasattr(x, "shape") and len(x.shape) > 1]
    if recurrent and shapes:
        return int(fan_in * shapes[0][1])
    # Normalisation, softmax and their like sum along an axis.
    return int(max(fan_in, *(shape[-1] for shape in shapes), 1))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy, since PyTorch's arrays share the tensor's memory. NumPy has no bfloat16."""
    array = np.array(ops.convert_to_numpy(tensor))
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def some_of(array: np.ndarray) -> np.ndarray:
    """The array, or `ELEMENTS` of it at places drawn at random, the same on every backend."""
    if array.size <= ELEMENTS:
        return array
    return array.ravel()[np.random.default_rng(0).integers(0, array.size, ELEMENTS)]


def _concrete(output: Any) -> np.ndarray | None:
    """None for what is not a tensor, or one that a compiler is still tracing."""
    if not keras.ops.is_tensor(output):
        return None
    try:
        return to_numpy(output)
    except Exception:  # each backend has its own error for a tracer
        return None


def image_inputs(case: Case, specs: Any) -> set[int]:
    """The inputs that the check draws as images: (B, H, W, 1 or 3), float."""
    if case.inputs is not None:
        return set()
    return {
        i
        for i, spec in enumerate(tree.flatten(specs))
        if len(spec.shape) == 4
        and spec.shape[-1] in (1, 3)
        and "float" in keras.backend.standardize_dtype(spec.dtype)
    }


def _pixels(images: Tensor, key: random.Key | None) -> Tensor:
    """uint8 images, augmented if there is a key, as numbers of about unit variance."""
    images = ops.convert_to_tensor(images)
    if key is not None:
        rotation = 10.0 if images.shape[1] == images.shape[2] else 0.0
        images = ImageTransform((0.5,), (0.25,), rotation=rotation).augment(images, key)
    return (ops.cast(images, keras.config.floatx()) - 127.5) / 64
