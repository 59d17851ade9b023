"""What every backend module supplies, beside the steps that training tests."""

import keras
import numpy as np
import pytest
from keras import layers, ops

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


# PyTorch's compiler imports a module of PyTorch's that warns.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_is_the_same() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")], name="model")
    x = backend.on_device(np.ones((4, 3), np.float32))
    expected = ops.convert_to_numpy(backend.forward(model, model)(x))
    found = ops.convert_to_numpy(backend.compiled(model, lambda x: model(x))(x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
