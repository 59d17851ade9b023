"""Tests of losses."""

import keras
import numpy as np
import pytest
from keras import ops

from zoo.training import CrossEntropy
from zoo.training.losses import at_least_float32


def data(*shape: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Labels (*shape) and logits (*shape, classes)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, shape, dtype=np.int32)
    return labels, generator.normal(size=(*shape, classes), scale=3).astype(np.float32)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
@pytest.mark.parametrize("classes", [5, 300])  # JAX computes many classes in another way
def test_cross_entropy_matches_keras(shape: tuple[int, ...], classes: int) -> None:
    labels, logits = data(*shape, classes=classes)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    losses = CrossEntropy(reduction=None)(labels, logits)
    assert losses.shape == shape
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), ops.convert_to_numpy(expected(labels, logits)), rtol=1e-5
    )


def test_label_smoothing_matches_keras() -> None:
    labels, logits = data(2, 3)
    one_hot = np.eye(5, dtype=np.float32)[labels]
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    loss = CrossEntropy(label_smoothing=0.1)(labels, logits)
    assert float(loss) == pytest.approx(float(expected(one_hot, logits)), rel=1e-5)
    assert float(loss) != pytest.approx(float(CrossEntropy()(labels, logits)), rel=1e-3)


def test_cross_entropy_divides_by_the_sum_of_weights() -> None:
    labels, logits = data(2, 3)
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    losses = ops.convert_to_numpy(CrossEntropy(reduction=None)(labels, logits))
    loss = float(CrossEntropy()(labels, logits, sample_weight=weights))
    assert loss == pytest.approx(losses[weights > 0].mean(), rel=1e-6)
    assert float(CrossEntropy()(labels, logits, sample_weight=0 * weights)) == 0


def test_cross_entropy_of_16_bit_logits_is_computed_in_float32() -> None:
    labels, logits = data(6)
    rounded = ops.cast(logits, "bfloat16")
    losses = CrossEntropy(reduction=None)(labels, rounded)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"
    expected = CrossEntropy(reduction=None)(labels, ops.cast(rounded, "float32"))
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (losses, expected)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_at_least_float32_casts_16_bits(dtype: str) -> None:
    result = at_least_float32(ops.ones((2,), dtype))
    assert keras.backend.standardize_dtype(result.dtype) == "float32"


@pytest.mark.once
def test_cross_entropy_survives_its_configuration() -> None:
    loss = CrossEntropy(label_smoothing=0.1, reduction="sum", name="nats")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, CrossEntropy)
    assert again.get_config() == loss.get_config()
    assert (again.label_smoothing, again.reduction, again.name) == (0.1, "sum", "nats")


@pytest.mark.once
@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_cross_entropy_rejects_invalid_label_smoothing(label_smoothing: float) -> None:
    text = rf"`label_smoothing` must be a number in \[0, 1\)\. Received: .*={label_smoothing}"
    with pytest.raises(ValueError, match=text):
        CrossEntropy(label_smoothing)


@pytest.mark.once
def test_cross_entropy_rejects_other_arguments() -> None:
    text = r"CrossEntropy\.__init__\(\) got an unexpected keyword argument 'foo'"
    with pytest.raises(TypeError, match=text):
        CrossEntropy(foo=1)
    with pytest.raises(ValueError, match=r"`dtype` must be a dtype policy.* Received: dtype='x'"):
        CrossEntropy(dtype="x")
    assert CrossEntropy(dtype="float64").dtype == "float64"
