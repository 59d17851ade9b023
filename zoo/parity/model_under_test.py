"""Model under test on one backend: layers and variables by path, inputs, losses, layer outputs."""

import contextlib
import functools
import gc
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from zoo import random
from zoo.datasets.augmentation import ImageAugmentation
from zoo.parity.case import Case, build_model
from zoo.parity.inputs import InputSpec
from zoo.parity.layer_calls import (
    LayerRecord,
    in_inference_mode,
    layer_records,
    observed_draws,
    observed_float32,
    on_stack,
    outputs_recorded,
)
from zoo.training.checkpoints import finalize_layer_state

Tensor = Any
Arrays = dict[str, np.ndarray]

ELEMENTS = 2**18  # saved from each layer's output, so that large models fit on a disk
BATCHES = 4  # different batches; training repeats them


class LayerOutput(NamedTuple):
    """Output of a call of a layer.

    Attributes:
        path: Path of the layer, with the number of the call and of the output if not the first.
        layer: Path of the layer.
        terms: Number of terms that are summed in each element.
        dtype: Dtype in which the layer computes.
        uses_float32: Whether a function in a call of the layer has a result in float32, in a model
            in float64.
        array: Values of the output.
    """

    path: str
    layer: str
    terms: int
    dtype: str
    uses_float32: bool
    array: np.ndarray


class ModelUnderTest:
    """Built model of a case with access to its variables, data, losses and layer outputs.

    Args:
        case: Configuration of the check.
        folder: Folder of the shared `weights.npz` and `data.npz`, which may not exist yet.
        policy: Dtype policy of layers without a dtype of their own; by default floatx.
    """

    def __init__(self, case: Case, folder: Path, policy: str = ""):
        _exclude_modules_from_garbage_collection()
        keras.utils.clear_session()  # restarts the numbers in layer names
        keras.config.set_dtype_policy(policy or keras.config.floatx())
        self.case = case
        self.folder = folder
        self.model, self.specs = build_model(case)
        self.images = {  # indices of the inputs that are augmented
            i: spec.shape
            for i, spec in enumerate(tree.flatten(self.specs))
            if isinstance(spec, InputSpec) and spec.is_image
        }
        self._augmentations = {  # only square images are rotated
            i: ImageAugmentation((0.5,), (0.25,), 10.0 * (height == width))
            for i, (height, width, _) in self.images.items()
        }
        self.layer_records = layer_records(self.model)
        self.variables: dict[str, keras.Variable] = {}
        self.owners: dict[str, str] = {}  # paths of the layers by variable path
        owner = {id(v): record.path for record in self.layer_records for v in record.variables}
        for variable in self.model.variables:
            self._add_variable(variable.path, variable, owner.get(id(variable), ""))
        for record in self.layer_records:
            for i, variable in enumerate(record.untracked_variables):
                self._add_variable(f"{record.path}/{variable.name}[{i}]", variable, record.path)
        names = {id(variable): path for path, variable in self.variables.items()}
        self.trainable = [names[id(variable)] for variable in self.model.trainable_variables]
        # The state of a backend's own random generator differs between backends.
        self.generators = {
            names[id(generator.state)]
            for record in self.layer_records
            if not hasattr(record.layer, "random_key")
            for generator in record.layer._seed_generators
        }
        self.initial = self.values()
        self._data: Arrays = {}

    def _add_variable(self, path: str, variable: keras.Variable, owner: str) -> None:
        while path in self.variables:
            path += "'"
        self.variables[path] = variable
        self.owners[path] = owner

    # -------------------------------------------------------------- variables

    def values(self) -> Arrays:
        """Returns the values of all variables by path."""
        return {path: to_numpy(variable.value) for path, variable in self.variables.items()}

    @property
    def state_paths(self) -> list[str]:
        """Paths of the variables that hold statistics, states and counters."""
        excluded = {*self.trainable, *self.generators}
        return [path for path in self.variables if path not in excluded]

    def load(self) -> None:
        """Assigns the values in `weights.npz` to the variables."""
        with np.load(self.folder / "weights.npz") as shared:
            for path, variable in self.variables.items():
                value = shared.get(path, None)
                # Rung 1 reports a different shape. A backend's own generator keeps its state.
                if value is None or value.shape != tuple(variable.shape) or path in self.generators:
                    value = self.initial[path]
                variable.assign(ops.convert_to_tensor(value, dtype=variable.dtype))
        finalize_layer_state(self.model)

    # -------------------------------------------------------------- data

    def batch(self, number: int = 0) -> list[np.ndarray]:
        """Returns the inputs and targets of one batch as a flat list."""
        if not self._data:
            with np.load(self.folder / "data.npz") as file:
                self._data = dict(file)
        size = len(next(iter(self._data.values()))) // BATCHES
        rows = slice(number % BATCHES * size, (number % BATCHES + 1) * size)
        arrays = [array[rows] for array in self._data.values()]
        floatx = keras.config.floatx()
        return [array.astype(floatx) if array.dtype.kind == "f" else array for array in arrays]

    def inputs(self, arrays: Sequence[Tensor], key: random.Key | None = None) -> Any:
        """Converts a batch to the model's input structure. With a key, images are augmented."""
        prepared = [
            self._pixels(i, array, key) if i in self.images else ops.convert_to_tensor(array)
            for i, array in enumerate(arrays[: len(tree.flatten(self.specs))])
        ]
        return tree.pack_sequence_as(self.specs, prepared)

    def _pixels(self, number: int, images: Tensor, key: random.Key | None) -> Tensor:
        """Scales uint8 images to about unit variance; with a key, images are augmented first."""
        images = ops.convert_to_tensor(images)
        if key is not None:
            images = self._augmentations[number].augment(images, key)
        return (ops.cast(images, keras.config.floatx()) - 127.5) / 64

    def outputs(self, training: bool) -> Any:
        """Computes the model's outputs for the first batch."""
        return self.model(self.inputs(self.batch()), training=training)

    def loss(self, arrays: Sequence[Tensor], key: random.Key | None = None) -> Tensor:
        """Computes a batch's mean loss in training mode, with the losses that layers add."""
        outputs = tree.flatten(self.model(self.inputs(arrays, key), training=True))
        targets = map(ops.convert_to_tensor, arrays[len(arrays) - len(outputs) :])
        total = sum(self.model.losses)  # regularizers and `add_loss`
        for target, output in zip(targets, outputs):
            total = total + ops.mean(self._losses(target, output))
        return total

    def _losses(self, target: Tensor, output: Tensor) -> Tensor:
        output = ops.cast(output, keras.config.floatx())  # integers, or layers of another dtype
        if callable(self.case.loss):
            return self.case.loss(target, output)
        if self.case.loss == "cross_entropy":
            return ops.sparse_categorical_crossentropy(target, output, from_logits=True)
        return ops.square(output - target)

    # -------------------------------------------------------------- layers

    def disable_backend_randomness(self) -> tuple[list[str], list[str]]:
        """Switches layers that use the backend's random generator to inference mode permanently.

        Returns:
            Paths of the layers that are random in training mode only, and paths of the layers that
            are random in inference mode, too.
        """
        random_layers = self._random_layers()
        for record in random_layers:
            if "training" in inspect.signature(record.layer.call).parameters:
                record.layer.__dict__["call"] = in_inference_mode(record.layer.call)
        in_inference = self._depend_on_draws(self._random_layers())
        in_training = [record.path for record in random_layers if record.path not in in_inference]
        return in_training, in_inference

    def _random_layers(self) -> list[LayerRecord]:
        """Returns the layers that use the backend's random generator in training mode."""
        random_layers: list[LayerRecord] = []
        stack = [self.layer_records[-1]]
        with contextlib.ExitStack() as contexts:
            for record in self.layer_records:
                if not record.in_loop:
                    contexts.enter_context(on_stack(record, stack))
            contexts.enter_context(observed_draws(lambda: random_layers.append(stack[-1])))
            self.outputs(training=True)
        return [record for record in self.layer_records if record in random_layers]

    def _depend_on_draws(self, records: list[LayerRecord]) -> list[str]:
        """Returns the paths of the layers whose outputs are others with zeros for random numbers.

        Keras' recurrent layers draw the masks of their dropout in inference mode, too, unused.
        """
        if not records:
            return []
        outputs = []
        for zeros in (False, True):
            self.load()
            with observed_draws(lambda: None, zeros):
                outputs.append(self.layer_outputs(training=True))
        return [
            record.path
            for record in records
            if any(
                not np.array_equal(drawn.array, zeroed.array, equal_nan=True)
                for drawn, zeroed in zip(*outputs)
                if drawn.layer == record.path
            )
        ]

    def layer_outputs(self, training: bool) -> list[LayerOutput]:
        """Computes every layer's output for the first batch, in the order of computation."""
        calls: list[tuple[LayerRecord, int, Any]] = []
        stack = [self.layer_records[-1]]
        in_float32: set[str] = set()
        with contextlib.ExitStack() as contexts:
            for record in self.layer_records:
                if not record.in_loop:
                    contexts.enter_context(outputs_recorded(record, calls))
                    contexts.enter_context(on_stack(record, stack))
            if keras.config.floatx() == "float64":
                note = observed_float32(lambda: in_float32.add(stack[-1].path))
                contexts.enter_context(note)
            self.outputs(training)
        result: list[LayerOutput] = []
        call_counts: dict[str, int] = {}
        for record, terms, outputs in calls:
            count = call_counts[record.path] = call_counts.get(record.path, 0) + 1
            name = record.path if count == 1 else f"{record.path} (call {count})"
            for number, output in enumerate(tree.flatten(outputs)):
                array = _concrete(output)
                if array is not None:
                    path = name if number == 0 else f"{name}[{number}]"
                    dtype = record.layer.compute_dtype
                    uses_float32 = record.path in in_float32
                    output = LayerOutput(path, record.path, terms, dtype, uses_float32, array)
                    result.append(output)
        return result


@functools.cache
def _exclude_modules_from_garbage_collection() -> None:
    """Excludes what exists before the first model, a million objects of imported modules.

    `clear_session` collects garbage, which took 90 % of the time that a small model needs.
    """
    gc.freeze()


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copies a tensor, since PyTorch's arrays share its memory. NumPy has no bfloat16."""
    array = np.array(ops.convert_to_numpy(tensor))
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def subsample(array: np.ndarray) -> np.ndarray:
    """Samples at most `ELEMENTS` elements of an array, the same ones on every backend."""
    if array.size <= ELEMENTS:
        return array
    return array.ravel()[np.random.default_rng(0).integers(0, array.size, ELEMENTS)]


def _concrete(output: Any) -> np.ndarray | None:
    """Returns a tensor's values, or None for a tracer and for anything but a tensor."""
    try:
        return to_numpy(output) if keras.ops.is_tensor(output) else None
    except Exception:  # the error of a tracer depends on the backend
        return None
