"""Models with a difference that users meet, each with the verdict that the check must reach.

Half are faults of Keras or of a backend, which `tests/test_keras_faults.py` has in the smallest
case; the others are mistakes that users make.
"""

import os
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tests.parity.verdicts import functional, verdict
from tests.parity.verdicts_layers import Apply

Tensor = Any

# ------------------------------------------------------------------ faults of Keras


@verdict(1, "pool", rungs="2", says="padding that counts in an average")
def average_pooling_of_an_uneven_edge() -> keras.Model:
    return functional(
        layers.AveragePooling2D(3, strides=2, padding="same", name="pool"), shape=(8, 8, 2)
    )


@verdict(1, "attention/value/kernel", rungs="4", says="rows that are masked wholly")
def attention_of_padded_tokens() -> keras.Model:
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="embed")(ids)
    return keras.Model(ids, layers.MultiHeadAttention(2, 3, name="attention")(x, x), name="model")


def keras_adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.01)


@verdict(
    1, "step 2", rungs="6", says="tensorflow is the odd one", optimizer=keras_adam,
    inputs=np.array([[0, 0, 1, 2]] * 4, "int32"),
)  # fmt: skip
def embedding_of_repeated_ids() -> keras.Model:
    ids = keras.Input((4,), dtype="int32")
    return keras.Model(ids, layers.Embedding(5, 3, name="embed")(ids), name="model")


@verdict(1, "best", rungs="2", says="ties in an argmax, a sort or a top_k")
def equal_numbers_in_top_k() -> keras.Model:
    best = Apply(lambda x: ops.top_k(ops.sign(x), 5)[1], name="best")
    return functional(layers.Dense(20, name="dense"), best)


@verdict(1, "norm", rungs="2-3", says="a formula that loses digits")
def batch_norm_of_a_large_mean() -> keras.Model:
    return functional(
        layers.Rescaling(1.0, offset=1000.0, name="shift"), layers.BatchNormalization(name="norm")
    )


@verdict(1, "singular", rungs="2", says="is the odd one")
def signs_of_singular_vectors() -> keras.Model:
    singular = Apply(lambda x: ops.svd(x, full_matrices=False)[0], name="singular")
    return functional(layers.Dense(3, name="dense"), singular, shape=(3, 3))


@verdict(1, "bytes", rungs="2")
def negative_numbers_as_bytes() -> keras.Model:
    as_bytes = Apply(lambda x: ops.cast(ops.cast(100 * x, "uint8"), x.dtype), name="bytes")
    return functional(layers.Dense(4, name="dense"), as_bytes)


@verdict(1, "resize", rungs="2-3", says="interpolation: half-pixel centres")
def bicubic_upsampling() -> keras.Model:
    return functional(
        layers.UpSampling2D(2, interpolation="bicubic", name="resize"), shape=(6, 6, 2)
    )


@verdict(1, "norm/dense/kernel", rungs="4", says="jax is the odd one")
def spectral_normalization() -> keras.Model:
    dense = layers.Dense(6, name="dense")
    return functional(layers.SpectralNormalization(dense, name="norm"))


@verdict(1, "dense/kernel", rungs="4", says="tensorflow is the odd one")
def unit_normalization_of_zeros() -> keras.Model:
    """Its gradient is finite on TensorFlow only."""
    dense = layers.Dense(4, use_bias=False, name="dense")
    zeros = layers.Rescaling(0.0, name="zeros")
    return functional(dense, zeros, layers.UnitNormalization(name="unit"))


@verdict(2, rungs="4")
def stateful_gru() -> keras.Model:
    """PyTorch cannot compute its gradient."""
    sequence = keras.Input(batch_shape=(4, 5, 3))
    return keras.Model(sequence, layers.GRU(4, stateful=True, name="gru")(sequence), name="model")


# ------------------------------------------------------------------ mistakes of users


def noisy(x: Tensor) -> Tensor:
    return x + ops.convert_to_tensor(
        np.random.default_rng().normal(size=x.shape[-1]), dtype=x.dtype
    )


@verdict(1, "noise", rungs="2", says="numbers that differ in each process")
def noise_of_numpy() -> keras.Model:
    return functional(layers.Dense(6, name="dense"), Apply(noisy, name="noise"))


@verdict(1, "dense/kernel", rungs="1", says="the builder depends on the backend")
def random_width() -> keras.Model:
    width = int.from_bytes(os.urandom(2), "little") + 1
    return functional(layers.Dense(width, name="dense"))


@verdict(2, rungs="2")
def logarithm_of_negative_numbers() -> keras.Model:
    """Outputs without a finite number neither agree nor differ."""
    return functional(Apply(lambda x: ops.log(-ops.square(x)), name="log"))


@verdict(2, rungs="1-2", inputs=np.array([[1, 5, 7]] * 4, "int32"))
def ids_outside_the_vocabulary() -> keras.Model:
    ids = keras.Input((3,), dtype="int32")
    return keras.Model(ids, layers.Embedding(5, 3, name="embed")(ids), name="model")


class Stopped(layers.Layer):
    """Adds a branch of little weight, whose gradient stops on one backend."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.branch = layers.Dense(4, name="branch")

    def call(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if keras.backend.backend() == "jax":
            y = ops.stop_gradient(y)
        return x + 1e-9 * y


@verdict(1, "stopped/branch/kernel", rungs="4", says="jax is the odd one")
def small_gradient_that_stops() -> keras.Model:
    """It is 1e-9 of the others, so that float32 cannot tell."""
    return functional(layers.Dense(4, name="dense"), Stopped(name="stopped"))


class WithOwnStep(keras.Model):
    def train_step(self, *args: Any) -> Any:
        raise AssertionError("The check does not call this")


@verdict(0, rungs="1-4,6", says="train_step of the model: not called")
def own_training_step() -> keras.Model:
    inputs = keras.Input((6,))
    return WithOwnStep(inputs, layers.Dense(2, name="dense")(inputs), name="model")
