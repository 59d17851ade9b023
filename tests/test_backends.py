"""What every backend module supplies, beside the steps that training tests."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, ops

from zoo import backends
from zoo.backends import backend


def test_gradients_are_the_slopes_of_the_loss() -> None:
    """Against finite differences; None or zeros for a weight that the loss does not depend on."""
    values, ids = keras.Input((3,), name="values"), keras.Input((), dtype="int32", name="ids")
    x = layers.Embedding(5, 3, name="embed")(ids)
    x = layers.Add(name="add")([values, x])
    used = layers.Dense(2, activation="tanh", name="used")(x)
    unused = layers.Dense(2, name="unused")(values)
    model = keras.Model([values, ids], [used, unused], name="model")
    generator = np.random.default_rng(0)
    arrays = [
        backend.on_device(generator.normal(size=(4, 3)).astype(np.float32)),
        backend.on_device(np.array([0, 1, 1, 3], np.int32)),
    ]

    def loss_of(*arrays: object) -> object:
        return ops.mean(ops.square(model(list(arrays))[0]))

    def loss_here() -> float:
        return float(ops.convert_to_numpy(loss_of(*arrays)))

    loss, gradients = backend.gradients(model, loss_of)(*arrays)
    assert abs(float(loss) - loss_here()) < 1e-6
    for variable, gradient in zip(model.trainable_variables, gradients):
        if "unused" in variable.path:
            assert gradient is None or not np.asarray(ops.convert_to_numpy(gradient)).any()
            continue
        found = ops.convert_to_numpy(gradient)
        assert found.shape == tuple(variable.shape)
        value = np.array(ops.convert_to_numpy(variable.value))
        direction = generator.normal(size=value.shape).astype(np.float32)
        slopes = []
        for sign in (1, -1):
            variable.assign(value + sign * 1e-2 * direction)
            slopes.append(sign * loss_here())
        variable.assign(value)
        assert abs(sum(slopes) / 2e-2 - float((found * direction).sum())) < 2e-3


def test_a_loss_that_depends_on_no_weight() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="dense")], name="model")
    x = backend.on_device(np.ones((1, 2), np.float32))
    loss, gradients = backend.gradients(model, lambda x: ops.sum(ops.stop_gradient(model(x))))(x)
    assert np.isfinite(float(loss))
    for gradient in gradients:
        assert gradient is None or not np.asarray(ops.convert_to_numpy(gradient)).any()


def small_model(dtype: str = "float32") -> keras.Model:
    """y = tanh(x W + b) V; a second output U of y takes no part in the losses below."""
    x = keras.Input((3,), name="x")
    y = layers.Dense(4, "tanh", dtype=dtype, name="hidden")(x)
    used = layers.Dense(2, use_bias=False, dtype=dtype, name="used")(y)
    unused = layers.Dense(2, use_bias=False, dtype=dtype, name="unused")(y)
    model = keras.Model(x, [used, unused], name="model")
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape).astype(np.float32))
    return model


def squared_error(targets: object, outputs: list) -> object:
    return ops.sum(ops.square(outputs[0] - ops.cast(targets, outputs[0].dtype)), axis=1)


def batch(examples: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return tuple(generator.normal(size=(examples, n)).astype(np.float32) for n in (3, 2))


def by_hand(model: keras.Model, x: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """The mean of the squared errors, derived in NumPy's float64."""
    w, b, v, _ = (ops.convert_to_numpy(w).astype(np.float64) for w in model.trainable_variables)
    x = x.astype(np.float64)
    y = np.tanh(x @ w + b)
    d_outputs = 2 * (y @ v - targets) / len(x)
    dz = d_outputs @ v.T * (1 - y**2)
    return {
        "hidden/kernel": x.T @ dz,
        "hidden/bias": dz.sum(0),
        "used/kernel": y.T @ d_outputs,
        "unused/kernel": np.zeros((4, 2)),
    }


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-13)])
def test_named_gradients_are_those_derived_by_hand(dtype: str, limit: float) -> None:
    """Measured: 3e-7 and 1e-15 apart."""
    x, targets = batch(5)
    with backend.float64() if dtype == "float64" else contextlib.nullcontext():
        model = small_model(dtype)
        found = backends.gradients(model, x, targets, squared_error)
        expected = by_hand(model, x, targets)
    assert list(found) == list(expected)
    for path, gradient in found.items():
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, expected[path], rtol=limit, atol=limit)
    assert not found["unused/kernel"].any()


def test_gradients_of_unequal_batches_add_up_by_their_sizes() -> None:
    model = small_model()
    x, targets = batch(7)
    whole = backends.gradients(model, x, targets, squared_error)
    parts = [
        backends.gradients(model, x[rows], targets[rows], squared_error)
        for rows in (slice(0, 5), slice(5, 7))
    ]
    for path, gradient in whole.items():
        mean = (5 * parts[0][path] + 2 * parts[1][path]) / 7
        np.testing.assert_allclose(gradient, mean, rtol=1e-5, atol=1e-6)


def test_gradients_hold_the_models_own_losses() -> None:
    """An L2 penalty of 0.1·w² has the derivative 0.2·w."""
    dense = layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1), name="dense")
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, dense(inputs), name="model")
    x, targets = batch(4)
    found = backends.gradients(model, x, targets, lambda y, outputs: 0 * outputs)
    expected = 0.2 * ops.convert_to_numpy(dense.kernel)
    np.testing.assert_allclose(found["dense/kernel"], expected, rtol=1e-6)


def test_float64_ends_where_it_ends() -> None:
    """Also where it ends with an error."""
    third = np.float64([1 / 3])

    def square() -> np.ndarray:
        tensor = ops.convert_to_tensor(third, keras.config.floatx())
        return ops.convert_to_numpy(ops.multiply(tensor, tensor))

    @backend.float64()
    def fails() -> None:
        np.testing.assert_array_equal(square(), third * third)
        raise RuntimeError("after the check")

    with pytest.raises(RuntimeError, match="after the check"):
        fails()
    assert keras.config.floatx() == "float32"
    assert square().dtype == np.float32


# PyTorch's compiler imports a module of PyTorch's that warns.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_is_the_same() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")], name="model")
    x = backend.on_device(np.ones((4, 3), np.float32))
    expected = ops.convert_to_numpy(backend.inference_function(model, model)(x))
    found = ops.convert_to_numpy(backend.compiled_function(model, lambda x: model(x))(x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
