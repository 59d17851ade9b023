"""The model to export: where it comes from, and how another process builds it."""

import dataclasses
import json
import operator
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from zoo import registry
from zoo._version import __version__
from zoo.backends.exporting import Axes, Graph, Stored
from zoo.export.formats import Format
from zoo.export.storage import METRIC_TOLERANCE, TOLERANCES, WeightDType, store
from zoo.files.saved import SavedModel
from zoo.files.weights import PACKED, WeightsFolder, open_saved, packed_names
from zoo.layers import recurrent
from zoo.layers.attention import Attention
from zoo.parity.case import Case, build_model
from zoo.parity.inputs import InputSpec
from zoo.training.checkpoints import finalize_layer_state

_ATTENTION = (
    Attention,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
    keras.layers.Attention,
    keras.layers.AdditiveAttention,
)


_RECURRENT = {layer.__name__ for layer in recurrent.LAYERS.values()}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that every worker can build with the same weights.

    Attributes:
        name: Name of the model in the report.
        case: Builder and inputs of the model.
        weights: NumPy file of the weights in the model's order, as the file's program has them.
        original: NumPy file of the weights before they were rounded to `dtype`.
        dtype: Type in which the file stores the weights.
        specs: Specification of each input by its name, in order.
        axes: Dtype and axes of each input by its name, in order.
        outputs: Names of the outputs, in order.
        limits: Largest size of a dynamic axis by its name, where the model has one.
        tolerance: Largest distance of the file's outputs, relative to their scale.
        change_tolerance: Largest distance of outputs and metrics from those before the rounding.
        metadata: Texts by key for the file.
    """

    name: str
    case: Case
    weights: Path
    original: Path
    dtype: WeightDType
    specs: Mapping[str, InputSpec]
    axes: Mapping[str, Axes]
    outputs: tuple[str, ...]
    limits: Mapping[str, int]
    tolerance: float
    change_tolerance: float
    metadata: Mapping[str, str]

    @property
    def is_rounded(self) -> bool:
        """Whether the weights are others than those that the model was given with."""
        return self.weights != self.original

    @property
    def before_rounding(self) -> "Source":
        """The model with the weights that it was given with."""
        return dataclasses.replace(self, weights=self.original)

    def graph(self, for_file: bool = False) -> Graph:
        """Builds the model with its weights, as one function of its inputs.

        Args:
            for_file: Whether Keras' recurrent layers are replaced by those of the zoo, which can
                be traced for any length.
        """
        model, specs = self.load_model(for_file)

        def function(*tensors: Any) -> list[Any]:
            outputs = model(tree.pack_sequence_as(specs, list(tensors)), training=False)
            return tree.flatten(outputs)  # type: ignore[no-any-return]

        return self.as_graph(model, function)

    def as_graph(self, model: keras.Model, function: Callable[..., list[Any]]) -> Graph:
        """A function of the inputs with what a file says about it, and stores of the model."""
        stored: list[Stored] = []
        if self.dtype != "float32":
            with np.load(self.original) as arrays:
                weights = [arrays[name] for name in arrays.files]
            stored = store(weights, [weight.path for weight in model.weights], self.dtype)
        return Graph(
            model, function, self.axes, self.outputs, self.limits, self.metadata, self.dtype, stored
        )

    def load_model(self, for_file: bool = False) -> tuple[keras.Model, Any]:
        """Builds the model with its weights, and an `InputSpec` of each of its inputs."""
        model, specs = build_model(self.case)
        if for_file:
            model = _with_own_recurrent_layers(model)
        with np.load(self.weights) as stored:
            model.set_weights([stored[name] for name in stored.files])
        finalize_layer_state(model)
        return model, specs


@dataclasses.dataclass(frozen=True)
class WeightsSource(Source):
    """The weights of a model alone: outputs without inputs."""

    def graph(self, for_file: bool = False) -> Graph:
        model, _ = self.load_model(for_file)
        return self.as_graph(model, lambda: [weight.value for weight in model.weights])


def weights_alone(source: Source) -> WeightsSource:
    """The weights of a model as outputs by their paths, which a file has exactly."""
    model, _ = source.load_model()
    common = {field.name: getattr(source, field.name) for field in dataclasses.fields(Source)}
    changed = {
        "specs": {}, "axes": {}, "outputs": tuple(weight.path for weight in model.weights),
        "tolerance": 0.0,
    }  # fmt: skip
    return WeightsSource(**{**common, **changed})


def describe(
    model: Any,
    arguments: Mapping[str, Any] | None,
    inputs: Any,
    tolerance: float | None,
    folder: Path,
    entry: Format,
    dtype: WeightDType = "float32",
) -> Source:
    """Builds a model and writes its weights for the workers.

    Args:
        model: Model; or a name, folder or address, as for `zoo.export.export`.
        arguments: Keyword arguments of the builder.
        inputs: Specifications of the inputs of a model that does not define them.
        tolerance: Largest distance of float32 files, by default 1e-5, or 1e-4 with recurrence or
            attention; of others, largest change by the rounding, by default `TOLERANCES`.
        folder: Folder for the weights.
        entry: Format of the file.
        dtype: Type in which the file stores the weights.

    Raises:
        ValueError: If there is no such model, an argument is invalid, or a batch size is fixed.
    """
    case, metadata = _find(model, arguments, inputs)
    built, specs = build_model(case)
    if model is built or not isinstance(case.build, str | partial):
        case = dataclasses.replace(case, build=_rebuild(built, folder))
    flat = tree.flatten(specs)
    if any(spec.batch is not None for spec in flat):
        raise ValueError(
            "`model` must take batches of any size. Received: "
            f"{built.name} with inputs {[spec.full_shape(0, 0) for spec in flat]}. Build it "
            "without `batch_size` and `batch_shape`"
        )
    weights = [ops.convert_to_numpy(ops.cast(w.value, _stored_dtype(w))) for w in built.weights]
    rounded = original = folder / "weights.npz"
    np.savez(original, *weights)
    by_format = dtype == "int8" and entry.rounds_activations
    if dtype != "float32" and not by_format:
        rounded = folder / "rounded.npz"
        stored = store(weights, [weight.path for weight in built.weights], dtype)
        np.savez(rounded, *(array.unpacked() for array in stored))
    names = _input_names(built, len(flat))
    axes = _axes(built, specs, names)
    lengths = {axis for entry in axes.values() for axis in entry.shape[1:] if isinstance(axis, str)}
    longest = [layer.max_length for layer in _layers(built) if getattr(layer, "max_length", 0)]
    # Rounding of one product is some 1e-7 of its scale; states and softmax amplify it.
    amplifies = any(isinstance(x, (keras.layers.RNN, *_ATTENTION)) for x in _layers(built))
    exact, change = 1e-4 if amplifies else 1e-5, METRIC_TOLERANCE
    if dtype != "float32":
        change = tolerance or TOLERANCES[dtype]
        exact = change if by_format else exact
    elif tolerance is not None:
        exact = tolerance
    return Source(
        name=case.name,
        case=case,
        weights=rounded,
        original=original,
        dtype=dtype,
        specs=dict(zip(names, flat, strict=True)),
        axes=axes,
        outputs=_output_names(built, specs),
        limits={axis: min(longest) for axis in lengths} if longest else {},
        tolerance=exact,
        change_tolerance=change,
        metadata={
            "model": built.name,
            "weights": dtype,
            "keras_zoo": __version__,
            "keras": keras.__version__,
            **_origin(built),
            **metadata,
        },
    )


def _find(
    model: Any, arguments: Mapping[str, Any] | None, inputs: Any
) -> tuple[Case, dict[str, str]]:
    """The case of a model, and the card of trained weights as metadata."""
    if isinstance(model, keras.Model):
        return Case(lambda: model, name=model.name, inputs=inputs), {}
    text = str(model)
    saved = find_saved(model)
    if saved is None:
        return Case.of(text, arguments, inputs=inputs), {}
    if arguments:
        raise ValueError(
            "`arguments` must not be given for a trained model, whose arguments are saved with "
            f"it. Received: model={text!r}, arguments={dict(arguments)}"
        )
    card = saved.card.model_dump_json() if isinstance(saved, WeightsFolder) else None
    case = Case(saved.load_model, name=Path(text).name, inputs=inputs)
    return case, {} if card is None else {"card": card}


def find_saved(model: Any) -> SavedModel | None:
    """Opens trained weights or a finished run; None for other models.

    Args:
        model: Model; or a name, folder or address, as for `zoo.export.export`.

    Raises:
        ValueError: If there is no such model, or what is saved is damaged.
    """
    if isinstance(model, keras.Model):
        return None
    text = str(model)
    is_address = ":" in text and not Path(text).exists()
    if is_address or text.partition("/")[0] in registry.models:
        return None
    if text not in packed_names() and not Path(text).exists():
        raise ValueError(
            f"`model` must be one of {', '.join(registry.models)}; trained weights, one of "
            f"{', '.join(packed_names())}; a weights folder; the directory of a finished run; or "
            f"package.module:function. Received: model={text!r}"
        )
    return open_saved(PACKED / text if text in packed_names() else text, argument="model")


def _rebuild(model: keras.Model, folder: Path) -> Callable[[], keras.Model]:
    """A function that builds a model like this one in another process."""
    try:
        name, arguments = registry.origin(model)
    except ValueError:
        path = folder / "model.keras"
        model.save(path)
        return partial(keras.saving.load_model, path, compile=False)
    return partial(registry.get(name).build, **arguments)


def _origin(model: keras.Model) -> dict[str, str]:
    """Builder and arguments of a model of the zoo."""
    try:
        name, arguments = registry.origin(model)
    except ValueError:
        return {}
    return {"builder": name, "arguments": json.dumps(arguments, default=operator.index)}


def _with_own_recurrent_layers(model: keras.Model) -> keras.Model:
    """The model with the zoo's recurrent layers, which have the weights of Keras' own."""
    config = keras.saving.serialize_keras_object(model)
    replaced = _replaced(config)
    return model if replaced == config else keras.saving.deserialize_keras_object(replaced)


def _replaced(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return [_replaced(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    config = {key: _replaced(value) for key, value in config.items()}
    if config.get("module") == "keras.layers" and config["class_name"] in _RECURRENT:
        config |= {"module": recurrent.__name__, "registered_name": f"zoo>{config['class_name']}"}
        config["config"] = {**config["config"], "dropout": 0.0, "recurrent_dropout": 0.0}
    return config


def _layers(model: keras.Model) -> list[Any]:
    return list(model._flatten_layers())


def _stored_dtype(weight: Any) -> str:
    """NumPy's files have no bfloat16."""
    return "float32" if "16" in weight.dtype else str(weight.dtype)


def _input_names(model: keras.Model, count: int) -> list[str]:
    declared = [tensor.name for tensor in tree.flatten(getattr(model, "inputs", None) or [])]
    return declared if len(declared) == count else [f"input_{i}" for i in range(count)]


def _output_names(model: keras.Model, specs: Any) -> tuple[str, ...]:
    """Names of the layers that compute the outputs; a name that occurs again has a number."""
    shapes = tree.flatten(model.compute_output_spec(_symbolic(specs)))
    names = list(getattr(model, "output_names", None) or [])
    if len({*names}) != len(shapes):
        names = [f"output_{i}" for i in range(len(shapes))]
    return tuple(names)


def _symbolic(specs: Any) -> Any:
    return tree.map_structure(
        lambda spec: keras.KerasTensor((None, *spec.shape), spec.dtype), specs
    )


def _axes(model: keras.Model, specs: Any, names: list[str]) -> dict[str, Axes]:
    """Names of the dynamic axes: one for each, or one for all if the model needs equal sizes."""
    flat = tree.flatten(specs)
    count = sum(size is None for spec in flat for size in spec.shape)
    for separate in (True, False):
        sizes = [3 + i if separate else 3 for i in range(count)]
        numbers = iter(range(count))
        named = [
            ["batch", *(_axis(next(numbers), separate) if n is None else n for n in spec.shape)]
            for spec in flat
        ]
        values = iter(sizes)
        arrays = [
            ops.zeros([2, *(next(values) if n is None else n for n in spec.shape)], spec.dtype)
            for spec in flat
        ]
        try:
            if count > 1:
                model(tree.pack_sequence_as(specs, arrays), training=False)
            break
        except Exception:  # of any kind, by the model and the backend
            if not separate:
                raise
    return {name: Axes(spec.dtype, tuple(shape)) for name, spec, shape in zip(names, flat, named)}


def _axis(number: int, separate: bool) -> str:
    return "length" if number == 0 or not separate else f"length_{number + 1}"
