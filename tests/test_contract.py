"""What every builder promises, whoever wrote it: a new one is tested without being listed here."""

import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from zoo import registry
from zoo.backends import backend
from zoo.training.optimizers import Adam

EXAMPLES = {
    example: (registry.get(name), arguments)
    for name in registry.models
    for example, arguments in registry.examples(name).items()
}
BUILDERS = pytest.mark.parametrize("name", EXAMPLES)
# JAX has float64 only where the process asked for it at its start.
DTYPES = ["mixed_bfloat16", "bfloat16", *(["float64"] if zoo.backends.name != "jax" else [])]


def build(name: str, **options: Any) -> keras.Model:
    entry, arguments = EXAMPLES[name]
    return entry.build(**{**arguments, **options})


def example_input(model: keras.Model, batch: int = 4) -> Any:
    generator = np.random.default_rng(0)

    def drawn(spec: keras.KerasTensor) -> np.ndarray:
        shape = (batch, *(size or 6 for size in spec.shape[1:]))
        if "int" not in spec.dtype:
            return generator.normal(size=shape).astype(spec.dtype)
        layers = model._flatten_layers()
        limits = (getattr(x, "input_dim", getattr(x, "num_steps", None)) for x in layers)
        return generator.integers(0, min(filter(None, limits)), shape, spec.dtype)

    return keras.tree.map_structure(drawn, model.input)


def loss_of(name: str) -> keras.losses.Loss:
    if EXAMPLES[name][0].loss == "cross_entropy":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def expected_shape(model: keras.Model, batch: int = 4) -> tuple[int, ...]:
    return (batch, *(size or 6 for size in model.output.shape[1:]))


def example_target(model: keras.Model, name: str, batch: int = 4) -> np.ndarray:
    shape = expected_shape(model, batch)
    if EXAMPLES[name][0].loss == "mean_squared_error":
        return np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return np.arange(np.prod(shape[:-1])).reshape(shape[:-1]) % int(shape[-1])


def test_every_builder_is_public_and_every_public_name_a_builder() -> None:
    assert sorted(zoo.__all__) == sorted(registry.models)
    for name, entry in registry.models.items():
        assert getattr(zoo, name) is entry.build
        assert inspect.getdoc(entry.build)
        assert (Path(__file__).parents[1] / entry.recipe).is_file()


@BUILDERS
def test_the_closed_form_counts_its_parameters(name: str) -> None:
    entry, arguments = EXAMPLES[name]
    assert build(name).count_params() == entry.count(**arguments)


@pytest.mark.parametrize("name", registry.models)
def test_the_defaults_are_counted(name: str) -> None:
    entry = registry.get(name)
    assert entry.build().count_params() == entry.count()


@BUILDERS
def test_shape_and_finite_output(name: str) -> None:
    model = build(name)
    outputs = ops.convert_to_numpy(model(example_input(model)))
    assert outputs.shape == expected_shape(model)
    assert np.isfinite(outputs).all()
    assert not model.compiled


@BUILDERS
def test_layers_are_named(name: str) -> None:
    """By hand, not by a counter: weights are matched by path."""
    first, second = build(name), build(name)
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    assert len({v.path for v in first.variables}) == len(first.variables)


@BUILDERS
def test_configuration_round_trip(name: str) -> None:
    model = build(name)
    again = keras.Model.from_config(model.get_config())
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]
    for a, b in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(a, b)  # the initial weights are a function of the seed


@BUILDERS
def test_save_and_load(name: str, tmp_path: Path) -> None:
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


@BUILDERS
def test_training_lowers_the_loss_and_every_weight_takes_part(name: str) -> None:
    model = build(name)
    x, y = example_input(model), example_target(model, name)
    before = [np.array(w) for w in model.get_weights()]
    model.compile("sgd", loss_of(name))
    first = float(model.evaluate(x, y, verbose=0))
    for _ in range(5):
        model.train_on_batch(x, y)
    assert float(model.evaluate(x, y, verbose=0)) < first
    for weight, old in zip(model.get_weights(), before):
        assert (weight != old).any()


@BUILDERS
def test_fit_takes_any_batch_size(name: str) -> None:
    model = build(name)
    x, y = example_input(model, 5), example_target(model, name, 5)
    model.compile("sgd", loss_of(name))
    history = model.fit(x, y, batch_size=2, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert model.predict(x, batch_size=5, verbose=0).shape[0] == 5


@BUILDERS
def test_keras_may_be_set_to_channels_first(name: str) -> None:
    expected = [v.shape for v in build(name).variables]
    keras.config.set_image_data_format("channels_first")
    try:
        assert [v.shape for v in build(name).variables] == expected
    finally:
        keras.config.set_image_data_format("channels_last")


@BUILDERS
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_policies(name: str, dtype: str) -> None:
    model = build(name, dtype=dtype)
    x, y = example_input(model), example_target(model, name)
    # Compiled, for step by step JAX takes far longer.
    read = backend.inference_function(
        model, lambda *arrays: model(keras.tree.pack_sequence_as(x, arrays))
    )
    outputs = read(*keras.tree.flatten(x))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype.removeprefix("mixed_")
    model.compile(Adam(1e-3, l2=1e-4), loss_of(name))
    for _ in range(2):
        assert np.isfinite(float(model.train_on_batch(x, y)))
