"""Small models with a mistake on one backend, and models with harmless differences.

`FAULTY` is the backend with the mistake. The decorator of each faulty builder defines the rung and
the location at which the check must report the fault.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from zoo import random
from zoo.training import optimizers

Tensor = Any

FAULTY = "jax"


class Fault(NamedTuple):
    """Planted fault, with the rung and the location at which the check must report it."""

    build: Callable[[], keras.Model]
    rung: int
    where: str
    comparison: str  # part of the row's comparison
    options: dict[str, Any]


FAULTS: dict[str, Fault] = {}
HARMLESS: dict[str, Callable[[], keras.Model]] = {}


def faulty() -> bool:
    return keras.backend.backend() == FAULTY


def fault(rung: int, where: str, comparison: str = "", **options: Any) -> Callable[..., Any]:
    """Registers a builder in `FAULTS`."""

    def register(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
        FAULTS[build.__name__] = Fault(build, rung, where, comparison, options)
        return build

    return register


def harmless(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Registers a builder in `HARMLESS`."""
    HARMLESS[build.__name__] = build
    return build


def between_dense_layers(*middle: keras.layers.Layer, shape: tuple[int, ...] = (8,)) -> keras.Model:
    # The same weights in every test run.
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Dense(8, activation="tanh", name="first"),
            *middle,
            layers.Dense(4, name="last"),
        ],
        name="model",
    )


# ------------------------------------------------------------------ faults


class HalfGradient(layers.Dense):
    def call(self, inputs: Tensor) -> Tensor:
        products = ops.matmul(inputs, self.kernel)
        return (ops.stop_gradient(products) if faulty() else products) + self.bias


@fault(4, "middle/kernel")
def stray_stop_gradient() -> keras.Model:
    return between_dense_layers(HalfGradient(8, name="middle"))


@fault(2, "norm")
def different_epsilon() -> keras.Model:
    norm = layers.LayerNormalization(epsilon=1e-3 if faulty() else 1e-5, name="norm")
    return between_dense_layers(norm)


@fault(3, "norm")
def epsilon_too_small_for_float32_to_show() -> keras.Model:
    norm = layers.LayerNormalization(epsilon=1e-7 if faulty() else 1e-8, name="norm")
    return between_dense_layers(norm)


class Transposed(layers.Dense):
    def call(self, inputs: Tensor) -> Tensor:
        kernel = ops.transpose(self.kernel) if faulty() else self.kernel
        return ops.matmul(inputs, kernel) + self.bias


@fault(2, "middle")
def transposed_kernel() -> keras.Model:
    return between_dense_layers(Transposed(8, name="middle"))


@fault(2, "pad")
def wrong_padding_side() -> keras.Model:
    """Pads as `padding="same"` does with stride 2: one more on the right."""
    pad = layers.ZeroPadding1D((1, 0) if faulty() else (0, 1), name="pad")
    conv = layers.Conv1D(8, 3, strides=2, name="conv")
    return between_dense_layers(pad, conv, shape=(8, 3))


class GatedCell(layers.Layer):
    """Gated recurrent unit with update gate z and reset gate r."""

    state_size = 8

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 24), name="kernel")
        self.recurrent = self.add_weight(shape=(8, 24), name="recurrent")

    def call(self, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        state = states[0]
        zx, rx, hx = ops.split(ops.matmul(inputs, self.kernel), 3, axis=-1)
        zh, rh, hh = ops.split(ops.matmul(state, self.recurrent), 3, axis=-1)
        if faulty():
            zh, rh = rh, zh
        update, reset = ops.sigmoid(zx + zh), ops.sigmoid(rx + rh)
        state = update * state + (1 - update) * ops.tanh(hx + reset * hh)
        return state, [state]


@fault(2, "recurrent")
def swapped_gate() -> keras.Model:
    return between_dense_layers(layers.RNN(GatedCell(), name="recurrent"), shape=(6, 3))


class Positions(layers.Layer):
    def call(self, inputs: Tensor) -> Tensor:
        length, width = inputs.shape[1:]
        positions = np.arange(length) + (1 if faulty() else 0)
        angles = positions[:, None] / 10_000 ** (np.arange(width) / width)
        return inputs + ops.convert_to_tensor(np.sin(angles), dtype=inputs.dtype)


@fault(2, "positions")
def off_by_one_in_a_positional_table() -> keras.Model:
    return between_dense_layers(Positions(name="positions"), shape=(6, 3))


class Unscaled(random.Dropout):
    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        outputs = super().call(inputs, training)
        return outputs * (1 - self.rate) if training and faulty() else outputs


@fault(2, "drop", comparison="training mode")
def dropout_scaled_wrongly() -> keras.Model:
    return between_dense_layers(Unscaled(0.5, name="drop"))


def with_weight_decay() -> keras.optimizers.Optimizer:
    if faulty():
        return keras.optimizers.AdamW(0.01, weight_decay=0.1)
    return optimizers.Adam(0.01, l2=0.1)


@fault(5, "", comparison="the model's own", optimizer=with_weight_decay)
def decoupled_for_coupled_weight_decay() -> keras.Model:
    return between_dense_layers()


class MaskedMean(layers.Layer):
    def call(self, inputs: Tensor, mask: Tensor) -> Tensor:
        weights = ops.cast(mask, inputs.dtype)[..., None]
        if faulty():
            weights = 1 - weights
        return ops.sum(inputs * weights, axis=1) / (ops.sum(weights, axis=1) + 1)


@fault(2, "pool")
def inverted_mask() -> keras.Model:
    values, mask = keras.Input((6, 3), name="values"), keras.Input((6,), dtype="int32", name="mask")
    x = layers.Dense(8, name="first")(values)
    x = MaskedMean(name="pool")(x, mask)
    return keras.Model([values, mask], layers.Dense(4, name="last")(x), name="model")


class BatchNorm(layers.Layer):
    """Batch normalization with an unbiased variance in the moving statistic or the output."""

    def __init__(self, unbiased: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.unbiased = unbiased

    def build(self, shape: Any) -> None:
        self.mean = self.add_weight(shape=shape[-1:], trainable=False, name="mean")
        self.variance = self.add_weight(
            shape=shape[-1:], trainable=False, name="variance", initializer="ones"
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = ops.moments(inputs, axes=0)
            count = inputs.shape[0]
            unbiased = variance * (count / (count - 1))
            new_variance = unbiased if faulty() and self.unbiased == "statistic" else variance
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
            self.variance.assign(0.9 * self.variance + 0.1 * new_variance)
            if faulty() and self.unbiased == "output":
                variance = unbiased
        return (inputs - mean) / ops.sqrt(variance + 1e-3)


@fault(7, "norm/variance")
def batch_norm_keeps_the_unbiased_variance() -> keras.Model:
    return between_dense_layers(BatchNorm("statistic", name="norm"))


@fault(2, "norm", comparison="training mode")
def batch_norm_divides_by_the_unbiased_variance() -> keras.Model:
    return between_dense_layers(BatchNorm("output", name="norm"))


@fault(2, "drop2", comparison="training mode")
def seed_stream_shared_by_two_layers() -> keras.Model:
    first, second = random.Dropout(0.5, name="drop1"), random.Dropout(0.5, name="drop2")
    if faulty():
        second.random_key = first.random_key
    return between_dense_layers(first, layers.Dense(8, name="middle"), second)


@fault(7, "drop1, drop2", comparison="random streams")
def seed_stream_shared_on_every_backend() -> keras.Model:
    first, second = random.Dropout(0.5, name="drop1"), random.Dropout(0.5, name="drop2")
    second.random_key = first.random_key
    return between_dense_layers(first, layers.Dense(8, name="middle"), second)


class Forgetful(layers.Layer):
    """Layer with a statistic that no checkpoint contains, on every backend."""

    def build(self, shape: Any) -> None:
        # An untracked list, like the states of Keras' recurrent layers.
        self.__dict__["statistics"] = [
            keras.Variable(
                np.zeros(shape[-1]), dtype=self.variable_dtype, trainable=False, name="mean"
            )
        ]

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        statistic = self.statistics[0]
        if not training:
            return inputs - statistic.value
        mean = ops.mean(inputs, axis=0)
        statistic.assign(0.9 * statistic.value + 0.1 * ops.stop_gradient(mean))
        return inputs - mean


@fault(9, "variable norm/mean[0]", comparison="resumed on")
def stale_statistic_after_resume() -> keras.Model:
    return between_dense_layers(Forgetful(name="norm"))


# ------------------------------------------------------------------ harmless differences


class OtherOrder(layers.Dense):
    """Dense layer that sums its products in reverse order, in two parts."""

    def call(self, inputs: Tensor) -> Tensor:
        if not faulty():
            return super().call(inputs)
        half = inputs.shape[-1] // 2
        low = ops.matmul(inputs[..., :half], self.kernel[:half])
        high = ops.matmul(ops.flip(inputs[..., half:], -1), ops.flip(self.kernel[half:], 0))
        return self.bias + high + low


@harmless
def summation_order() -> keras.Model:
    return between_dense_layers(OtherOrder(512, name="wide"), OtherOrder(8, name="narrow"))


class NormByHand(layers.LayerNormalization):
    """Layer normalization from mean and variance instead of the fused kernel."""

    def call(self, inputs: Tensor) -> Tensor:
        if not faulty():
            return super().call(inputs)
        centred = inputs - ops.mean(inputs, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        return centred / ops.sqrt(variance + self.epsilon) * self.gamma + self.beta


class Attention(layers.Layer):
    """Self-attention by the fused kernel or by a softmax of products."""

    def call(self, inputs: Tensor) -> Tensor:
        heads = ops.reshape(inputs, (-1, inputs.shape[1], 2, inputs.shape[2] // 2))
        if not faulty():
            attended = ops.dot_product_attention(heads, heads, heads)
        else:
            logits = ops.einsum("bqhd,bkhd->bhqk", heads, heads) / math.sqrt(heads.shape[-1])
            attended = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(logits), heads)
        return ops.reshape(attended, ops.shape(inputs))


@harmless
def fused_against_unfused() -> keras.Model:
    return between_dense_layers(NormByHand(name="norm"), Attention(name="attention"), shape=(6, 3))


class AsPatches(layers.Conv2D):
    """Convolution as patches and a matrix product."""

    def call(self, inputs: Tensor) -> Tensor:
        if not faulty():
            return super().call(inputs)
        height, width = inputs.shape[1] - 2, inputs.shape[2] - 2
        patches = [inputs[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        kernel = ops.reshape(self.kernel, (-1, self.filters))
        return ops.matmul(ops.concatenate(patches, -1), kernel) + self.bias


@harmless
def convolution_as_patches() -> keras.Model:
    image = keras.Input((10, 10, 3), name="image")
    x = AsPatches(8, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(ops.gelu(x))
    x = random.Dropout(0.5, name="drop")(x)
    return keras.Model(image, layers.Dense(4, name="last")(x), name="model")
