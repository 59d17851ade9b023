"""Backend modules: gradients, float64 and compiled functions."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, ops

from zoo import backends
from zoo.backends import backend


def test_gradients_match_finite_differences() -> None:
    """The gradient of a weight that the loss does not depend on is None or zero."""
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

    def loss_value() -> float:
        return float(ops.convert_to_numpy(loss_of(*arrays)))

    loss, gradients = backend.gradients(model, loss_of)(*arrays)
    assert abs(float(loss) - loss_value()) < 1e-6
    for variable, gradient in zip(model.trainable_variables, gradients):
        if "unused" in variable.path:
            assert gradient is None or not np.asarray(ops.convert_to_numpy(gradient)).any()
            continue
        gradient = ops.convert_to_numpy(gradient)
        assert gradient.shape == tuple(variable.shape)
        value = np.array(ops.convert_to_numpy(variable.value))
        direction = generator.normal(size=value.shape).astype(np.float32)
        difference = 0.0
        for sign in (1, -1):
            variable.assign(value + sign * 1e-2 * direction)
            difference += sign * loss_value()
        variable.assign(value)
        assert abs(difference / 2e-2 - float((gradient * direction).sum())) < 2e-3


def test_gradients_of_loss_without_weights_are_zero() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="dense")], name="model")
    x = backend.on_device(np.ones((1, 2), np.float32))
    loss, gradients = backend.gradients(model, lambda x: ops.sum(ops.stop_gradient(model(x))))(x)
    assert np.isfinite(float(loss))
    for gradient in gradients:
        assert gradient is None or not np.asarray(ops.convert_to_numpy(gradient)).any()


def small_model(dtype: str = "float32") -> keras.Model:
    """Model with outputs tanh(x W + b) V and tanh(x W + b) U; the losses use only the first one."""
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


def analytic_gradients(
    model: keras.Model, x: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """Gradients of the mean squared error, computed in NumPy's float64."""
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
def test_gradients_match_analytic_gradients(dtype: str, limit: float) -> None:
    """Measured differences: 3e-7 in float32, 1e-15 in float64."""
    x, targets = batch(5)
    with backend.float64() if dtype == "float64" else contextlib.nullcontext():
        model = small_model(dtype)
        gradients = backends.gradients(model, x, targets, squared_error)
        expected = analytic_gradients(model, x, targets)
    assert list(gradients) == list(expected)
    for path, gradient in gradients.items():
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, expected[path], rtol=limit, atol=limit)
    assert not gradients["unused/kernel"].any()


def test_gradients_of_unequal_batches_average_by_size() -> None:
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


def test_gradients_include_regularization_losses() -> None:
    """An L2 penalty of 0.1·w² has the derivative 0.2·w."""
    dense = layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1), name="dense")
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, dense(inputs), name="model")
    x, targets = batch(4)
    gradients = backends.gradients(model, x, targets, lambda y, outputs: 0 * outputs)
    expected = 0.2 * ops.convert_to_numpy(dense.kernel)
    np.testing.assert_allclose(gradients["dense/kernel"], expected, rtol=1e-6)


def test_float64_restores_default_after_error() -> None:
    third = np.float64([1 / 3])

    def square() -> np.ndarray:
        tensor = ops.convert_to_tensor(third, keras.config.floatx())
        return ops.convert_to_numpy(ops.multiply(tensor, tensor))

    @backend.float64()
    def check_and_raise() -> None:
        np.testing.assert_array_equal(square(), third * third)
        raise RuntimeError("raised within float64")

    with pytest.raises(RuntimeError, match="raised within float64"):
        check_and_raise()
    assert keras.config.floatx() == "float32"
    assert keras.config.dtype_policy().name == "float32"
    assert square().dtype == np.float32
    x = ops.convert_to_tensor(np.array([-1.0], np.float32))
    assert float(ops.leaky_relu(x, 0.1)[0]) == np.float32(-0.1)


# The compiler of PyTorch imports a deprecated PyTorch module.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_function_matches_inference_function() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")], name="model")
    x = backend.on_device(np.ones((4, 3), np.float32))
    expected = ops.convert_to_numpy(backend.inference_function(model, model)(x))
    outputs = ops.convert_to_numpy(backend.compiled_function(model, lambda x: model(x))(x))
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
