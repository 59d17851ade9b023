"""Faults of Keras and its backends that the check has found, each in its smallest case.

A test that passes where it is expected to fail says that the fault is mended. What works around it
can then go.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import keras
import numpy as np
import pytest
from keras import layers, ops

from zoo import backends
from zoo.backends import backend, common


def fault(*names: str) -> pytest.MarkDecorator:
    """Marks a test that fails on the backends of these names."""
    return pytest.mark.xfail(backends.name in names, strict=True, reason="a fault of Keras")


@contextmanager
def float64_of_keras() -> Iterator[None]:
    """float64 as Keras' default, without what `backend.float64` mends."""
    if backends.name == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    try:
        with common.float64():
            yield
    finally:
        if backends.name == "jax":
            jax.config.update("jax_enable_x64", False)


Float64 = Callable[[], AbstractContextManager[None]]


def fault_in_float64(*names: str) -> pytest.MarkDecorator:
    """Parametrizes a test that fails on these backends without `backend.float64`."""
    as_it_is = pytest.param(float64_of_keras, marks=fault(*names), id="keras")
    return pytest.mark.parametrize("float64", [as_it_is, pytest.param(backend.float64, id="zoo")])


@fault("torch", "jax")
def test_float64_and_float64_give_float64() -> None:
    """https://github.com/keras-team/keras/issues/23704"""
    assert keras.backend.result_type("float64", "float64") == "float64"


@fault_in_float64("tensorflow")
def test_gelu_computes_in_the_dtype_of_its_input(float64: Float64) -> None:
    with float64():
        output = float(ops.gelu(ops.convert_to_tensor([1.0], "float64"), approximate=False)[0])
    assert output == pytest.approx(0.8413447460685429, rel=1e-12)


@fault_in_float64("jax")
def test_attention_computes_in_the_dtype_of_its_inputs(float64: Float64) -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 3, 1, 4))
    scores = np.exp(np.einsum("btnh,bsnh->bnts", q, k) / 2)
    expected = np.einsum("bnts,bsnh->btnh", scores / scores.sum(-1, keepdims=True), v)
    with float64():
        tensors = [ops.convert_to_tensor(x, "float64") for x in (q, k, v)]
        outputs = ops.convert_to_numpy(ops.dot_product_attention(*tensors))
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


@fault("tensorflow")
def test_adam_sums_the_gradients_of_an_id_that_occurs_twice() -> None:
    """The first step of Adam has the size of the learning rate, 0.1; this one has 0.131."""
    model = keras.Sequential([keras.Input((2,), dtype="int32"), layers.Embedding(2, 1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    original = model.layers[0].get_weights()[0][0, 0]
    model.train_on_batch(np.array([[0, 0]]), np.ones((1, 2, 1)))
    assert abs(model.layers[0].get_weights()[0][0, 0] - original) == pytest.approx(0.1, rel=1e-3)


@fault("tensorflow", "jax")
def test_normalization_uses_the_values_of_its_variables() -> None:
    layer = layers.Normalization()
    layer.build((None, 1))
    layer.adapt_mean.assign([3.0])
    layer.adapt_variance.assign([1.0])
    assert float(layer(np.array([[3.0]], np.float32))[0, 0]) == 0


@fault("tensorflow")
def test_attention_shares_one_key_head_among_query_heads() -> None:
    query, key = np.ones((1, 2, 4, 8), np.float32), np.ones((1, 2, 1, 8), np.float32)
    assert ops.dot_product_attention(query, key, key).shape == (1, 2, 4, 8)


@fault("torch")
def test_gradient_through_wholly_masked_attention() -> None:
    """PyTorch's fused kernel loses the number of keys beside the huge number of their scores.

    Such rows are the padded queries of an `Embedding(mask_zero=True)`. Their outputs are means of
    the values, and the gradient of the sum of outputs is 1 for each bias of the values.
    """
    query, values = keras.Input((3, 1, 2)), keras.Input((3, 1, 2))
    shift = layers.Dense(2, name="shift")
    mask = np.zeros((1, 1, 3, 3), bool)
    attended = ops.dot_product_attention(query, query, shift(values), mask=mask)
    model = keras.Model([query, values], attended)
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 1, 2)).astype(np.float32)

    def loss(query: object, values: object) -> object:
        return ops.mean(model([query, values]))

    _, gradients = backends.loss_and_gradients(model, loss, *x)
    bias = ops.convert_to_numpy(gradients["shift/bias"])
    np.testing.assert_allclose(bias, [0.5, 0.5], rtol=1e-4)


@fault("torch")
def test_average_pooling_counts_no_padding() -> None:
    """https://github.com/keras-team/keras/pull/23233: PyTorch repeats the number at the edge."""
    x = np.array([10.0, 20.0], np.float32).reshape(1, 2, 1)
    outputs = ops.average_pool(x, 3, strides=2, padding="same")
    assert float(outputs[0, 0, 0]) == pytest.approx(15.0)


@fault("torch")
def test_top_k_returns_the_first_of_equal_numbers() -> None:
    """https://github.com/keras-team/keras/pull/23367"""
    indices = ops.convert_to_numpy(ops.top_k(np.ones((1, 50), np.float32), 5)[1])
    np.testing.assert_array_equal(indices, [np.arange(5)])


@fault("torch")
def test_moments_of_numbers_far_from_zero() -> None:
    """PyTorch subtracts the squared mean from the mean of squares, which loses the digits."""
    variance = ops.moments(np.array([9999.0, 10001.0], np.float32), axes=[0])[1]
    assert float(variance) == pytest.approx(1.0, rel=1e-3)


@fault("torch")
def test_bicubic_upsampling_uses_the_kernel_of_keys() -> None:
    """The cubic convolution kernel with a = -0.5; PyTorch's has a = -0.75, which gives 0.8789."""
    image = np.zeros((1, 8, 8, 1), np.float32)
    image[:, :, 4] = 1
    outputs = layers.UpSampling2D(2, interpolation="bicubic")(image)
    assert float(outputs[0, 8, 8, 0]) == pytest.approx(0.8671875, rel=1e-4)


@fault("tensorflow", "torch")
def test_gradient_of_spectral_normalization() -> None:
    """A kernel of one number is normalized to 1 or -1 whatever it is, so its gradient is 0."""
    layer = layers.SpectralNormalization(layers.Dense(1, use_bias=False, name="dense"))
    x = np.ones((1, 1), np.float32)
    model = keras.Sequential([keras.Input((1,)), layer])
    _, gradients = backends.loss_and_gradients(
        model, lambda x: ops.mean(model(x, training=True)), x
    )
    (kernel,) = gradients.values()
    assert float(kernel[0, 0]) == pytest.approx(0.0, abs=1e-6)


@fault("torch", "jax")
def test_gradient_of_unit_normalization_of_zeros() -> None:
    """https://github.com/keras-team/keras/issues/23075: the gradient is NaN."""
    dense = layers.Dense(2, kernel_initializer="zeros", name="dense")
    model = keras.Sequential([keras.Input((2,)), dense, layers.UnitNormalization()])
    _, gradients = backends.loss_and_gradients(
        model, lambda x: ops.mean(model(x)), np.ones((1, 2), np.float32)
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@fault("torch")
def test_gradient_of_a_stateful_gru() -> None:
    """https://github.com/keras-team/keras/issues/23462: PyTorch writes over the first state."""
    sequence = keras.Input(batch_shape=(1, 3, 2))
    model = keras.Model(sequence, layers.GRU(2, stateful=True, name="gru")(sequence))
    loss, _ = backends.loss_and_gradients(
        model, lambda x: ops.mean(model(x)), np.ones((1, 3, 2), np.float32)
    )
    assert np.isfinite(loss)


@fault("jax")
def test_attention_to_values_of_another_width_than_the_keys() -> None:
    x = np.ones((1, 4, 6), np.float32)
    assert layers.MultiHeadAttention(2, 3, value_dim=5)(x, x).shape == (1, 4, 6)


@fault_in_float64("tensorflow")
def test_leaky_relu_computes_in_the_dtype_of_its_input(float64: Float64) -> None:
    with float64():
        output = ops.leaky_relu(ops.convert_to_tensor([-1.0], "float64"), 0.2)
    assert float(output[0]) == pytest.approx(-0.2, rel=1e-12)


@fault_in_float64("tensorflow")
def test_constants_have_the_default_dtype(float64: Float64) -> None:
    with float64():
        constant = ops.convert_to_tensor([0.1])
    assert keras.backend.standardize_dtype(constant.dtype) == "float64"


@fault_in_float64("torch")
@pytest.mark.parametrize("layer", [layers.Conv2D, layers.Conv2DTranspose])
def test_gradient_of_a_float64_convolution_with_one_filter(
    layer: type[keras.layers.Layer], float64: Float64
) -> None:
    channels, filters = (2, 1) if layer is layers.Conv2D else (1, 2)
    with float64():
        inputs = keras.Input((4, 4, channels), dtype="float64")
        model = keras.Sequential([inputs, layer(filters, 3, dtype="float64")])
        loss, _ = backends.loss_and_gradients(
            model, lambda x: ops.mean(model(x)), np.ones((1, 4, 4, channels))
        )
    assert np.isfinite(loss)


@fault_in_float64("torch")
def test_gradient_of_a_hard_sigmoid_in_float64(float64: Float64) -> None:
    with float64():
        dense = layers.Dense(1, activation="hard_sigmoid", dtype="float64")
        model = keras.Sequential([keras.Input((1,), dtype="float64"), dense])
        _, gradients = backends.loss_and_gradients(
            model, lambda x: ops.mean(model(x)), np.full((1, 1), 0.5)
        )
    kernel, _ = gradients.values()
    assert float(kernel[0, 0]) == pytest.approx(0.5 / 6, rel=1e-12)
