"""Contract tests of all registered builders; a new builder is tested without an entry here."""

import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from zoo import registry
from zoo.training.optimizers import Adam

EXAMPLES = {
    example: (registry.get(name), arguments)
    for name in registry.models
    for example, arguments in registry.examples(name).items()
}
BUILDERS = pytest.mark.parametrize("name", EXAMPLES)
# On one backend: second examples of a builder, and large networks; `zoo check` trains them on each.
ONCE = "unet", "text_to_image"
TRAINED = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.once] * ("/" in name or name in ONCE))
        for name in EXAMPLES
    ],
)
# The compiled backends take seconds for a step, and `zoo check` trains every model in float64, too.
# JAX supports float64 only if it is enabled when the process starts.
UNCOMPILED = ["bfloat16", *(["float64"] if zoo.backends.name != "jax" else [])]
DTYPES = ["mixed_bfloat16", *(pytest.param(dtype, marks=pytest.mark.once) for dtype in UNCOMPILED)]


def build(name: str, **options: Any) -> keras.Model:
    """Builds an example model, with some arguments replaced by `options`."""
    entry, arguments = EXAMPLES[name]
    return entry.build(**{**arguments, **options})


def example_input(model: keras.Model, batch: int = 4) -> Any:
    """Returns random inputs of a model, with 6 time steps where the length is free."""
    generator = np.random.default_rng(0)

    def random_input(spec: keras.KerasTensor) -> np.ndarray:
        shape = (batch, *(size or 6 for size in spec.shape[1:]))
        if "int" not in spec.dtype:
            return generator.normal(size=shape).astype(spec.dtype)
        layers = model._flatten_layers()
        limits = (getattr(x, "input_dim", getattr(x, "num_steps", None)) for x in layers)
        return generator.integers(0, min(filter(None, limits)), shape, spec.dtype)

    # In one order on every backend: in some, `tree` sorts the keys of a dict.
    specs = sorted(keras.tree.flatten(model.input), key=lambda spec: spec.name)
    inputs = {spec.name: random_input(spec) for spec in specs}
    return keras.tree.map_structure(lambda spec: inputs[spec.name], model.input)


def loss_of(name: str) -> keras.losses.Loss:
    if EXAMPLES[name][0].loss == "cross_entropy":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def compile_model(model: keras.Model, optimizer: Any, name: str) -> None:
    model.compile(optimizer, loss_of(name))
    # TensorFlow would trace the step a second time if the first made variables.
    model.optimizer.build(model.trainable_variables)


def expected_shape(model: keras.Model, batch: int = 4) -> tuple[int, ...]:
    return (batch, *(size or 6 for size in model.output.shape[1:]))


def example_target(model: keras.Model, name: str, batch: int = 4) -> np.ndarray:
    shape = expected_shape(model, batch)
    if EXAMPLES[name][0].loss == "mean_squared_error":
        return np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return np.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % int(shape[-1])


def test_public_names_are_the_registered_builders_the_trainer_and_trained_models() -> None:
    assert sorted(zoo.__all__) == sorted([*registry.models, "Trainer", "list_weights", "load"])
    for name, entry in registry.models.items():
        assert getattr(zoo, name) is entry.build
        assert inspect.getdoc(entry.build)
        assert (Path(__file__).parents[1] / entry.recipe).is_file()


@BUILDERS
def test_builder_parameter_count_matches_the_closed_form(name: str) -> None:
    entry, arguments = EXAMPLES[name]
    assert build(name).count_params() == entry.parameter_count(**arguments)


@pytest.mark.parametrize("name", registry.models)
def test_builder_parameter_count_with_defaults_matches_the_closed_form(name: str) -> None:
    entry = registry.get(name)
    assert entry.build().count_params() == entry.parameter_count()


@BUILDERS
def test_builder_output_has_the_expected_shape_and_is_finite(name: str) -> None:
    model = build(name)
    outputs = ops.convert_to_numpy(model(example_input(model)))
    assert outputs.shape == expected_shape(model)
    assert np.isfinite(outputs).all()
    assert not model.compiled


@BUILDERS
def test_builder_gives_weights_stable_unique_paths(name: str) -> None:
    """Weights are matched by path, so layer names must not come from a counter."""
    first, second = build(name), build(name)
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    assert len({v.path for v in first.variables}) == len(first.variables)


@BUILDERS
def test_builder_configuration_round_trips(name: str) -> None:
    model = build(name)
    restored = keras.Model.from_config(model.get_config())
    assert [w.shape for w in restored.weights] == [w.shape for w in model.weights]
    for a, b in zip(model.get_weights(), restored.get_weights()):
        np.testing.assert_array_equal(a, b)  # the initial weights are a function of the seed


@BUILDERS
def test_builder_model_saves_and_loads(name: str, tmp_path: Path) -> None:
    model = build(name)
    x = example_input(model)
    expected = ops.convert_to_numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(x)), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    other = build(name, seed=1)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(ops.convert_to_numpy(other(x)), expected)


@TRAINED
def test_fit_trains_every_weight_with_an_incomplete_last_batch(name: str) -> None:
    model = build(name)
    x, y = example_input(model, 6), example_target(model, name, 6)
    initial_weights = [np.array(w) for w in model.get_weights()]
    compile_model(model, "sgd", name)
    losses = model.fit(x, y, batch_size=4, epochs=10, verbose=0).history["loss"]
    assert np.mean(losses[5:]) < np.mean(losses[:5])
    for weight, initial_weight in zip(model.get_weights(), initial_weights):
        assert (weight != initial_weight).any()


@BUILDERS
def test_builder_ignores_the_global_image_data_format(name: str) -> None:
    expected = [v.shape for v in build(name).variables]
    keras.config.set_image_data_format("channels_first")
    try:
        assert [v.shape for v in build(name).variables] == expected
    finally:
        keras.config.set_image_data_format("channels_last")


@TRAINED
@pytest.mark.parametrize("dtype", DTYPES)
def test_builder_supports_dtype_policies(name: str, dtype: str) -> None:
    model = build(name, dtype=dtype)
    x, y = example_input(model), example_target(model, name)
    compile_model(model, Adam(1e-3, l2=1e-4), name)
    compute_loss, output_dtypes = model.compute_loss, []

    def recorded(x: Any, y: Any, y_pred: Any, *args: Any, **options: Any) -> Any:
        output_dtypes.append(keras.backend.standardize_dtype(y_pred.dtype))
        return compute_loss(x, y, y_pred, *args, **options)

    model.compute_loss = recorded
    for _ in range(2):
        assert np.isfinite(float(model.train_on_batch(x, y)))
    assert output_dtypes[-1] == dtype.removeprefix("mixed_")
