"""Layers of Keras and their options, each with the verdict that the check must reach."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tests.parity.verdicts import functional, verdict

Tensor = Any


class Apply(layers.Layer):
    """Calls a function."""

    def __init__(self, function: Any, **options: Any):
        super().__init__(**options)
        self._function = function

    def call(self, x: Tensor) -> Tensor:
        return self._function(x)


@verdict(0)
def attention_layers() -> keras.Model:
    query, value = keras.Input((5, 6), name="query"), keras.Input((7, 6), name="value")
    outputs = [
        layers.Attention(use_scale=True, name="dot")([query, value]),
        layers.AdditiveAttention(name="additive")([query, value]),
        layers.MultiHeadAttention(2, 3, name="heads")(query, value),
        layers.MultiHeadAttention(2, 3, name="causal")(query, query, use_causal_mask=True),
    ]
    return keras.Model([query, value], outputs, name="model")


@verdict(0)
def einsum_dense() -> keras.Model:
    shapes = {"output_shape": (None, 3, 2), "bias_axes": "de"}
    return functional(layers.EinsumDense("abc,cde->abde", **shapes, name="einsum"), shape=(5, 4))


@verdict(0, rungs="1-4,7", says="lstm: random numbers come from the backend's own generator in tr")
def recurrent_options() -> keras.Model:
    """Stateful, backwards, with other gates, with dropout, with the states of another layer."""
    sequence = keras.Input(batch_shape=(4, 5, 3))
    x = layers.SimpleRNN(4, stateful=True, return_sequences=True, name="stateful")(sequence)
    x = layers.GRU(4, reset_after=False, return_sequences=True, name="before")(x)
    x, *states = layers.LSTM(4, dropout=0.2, return_sequences=True, return_state=True, name="lstm")(
        x
    )
    x = layers.LSTM(4, go_backwards=True, return_sequences=True, name="backwards")(
        x, initial_state=states
    )
    return keras.Model(sequence, layers.SimpleRNN(3, name="simple")(x), name="model")


@verdict(0)
def masked_sequences() -> keras.Model:
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(30, 6, mask_zero=True, name="embed")(ids)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode="sum", name="both")(x)
    x = layers.TimeDistributed(layers.Dense(3, name="dense"), name="each")(x)
    return keras.Model(ids, layers.GlobalAveragePooling1D(name="pool")(x), name="model")


@verdict(0, rungs="1-4,7")
def batch_norm_with_a_mask() -> keras.Model:
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="embed")(ids)
    return keras.Model(ids, layers.BatchNormalization(name="norm")(x), name="model")


@verdict(0)
def time_distributed_images() -> keras.Model:
    return functional(
        layers.TimeDistributed(layers.Conv2D(3, 3, name="conv"), name="each"),
        layers.TimeDistributed(layers.Flatten(name="flatten"), name="flat"),
        layers.LSTM(3, name="lstm"),
        shape=(3, 6, 6, 1),
    )


@verdict(0, says="flip, rotation, contrast: random numbers come from the backend's own")
def augmentation_layers() -> keras.Model:
    return functional(
        layers.RandomFlip(name="flip"),
        layers.RandomRotation(0.1, name="rotation"),
        layers.RandomContrast(0.2, name="contrast"),
        layers.Conv2D(3, 3, name="conv"),
        shape=(8, 8, 3),
    )


@verdict(0)
def noise_layers() -> keras.Model:
    return functional(
        layers.Dense(8, name="first"),
        layers.GaussianNoise(0.5, name="noise"),
        layers.AlphaDropout(0.3, name="drop"),
        layers.Dense(2, name="last"),
    )


@verdict(0)
def strided_convolutions() -> keras.Model:
    """Odd sizes, even kernels, padding 'same', depthwise, dilated, in groups."""
    return functional(
        layers.Conv2D(4, 3, strides=2, padding="same", name="odd"),
        layers.Conv2D(4, 4, strides=2, padding="same", name="even"),
        layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise"),
        layers.Conv2D(4, 3, groups=2, dilation_rate=2, padding="same", name="grouped"),
        shape=(16, 15, 2),
    )


@verdict(0)
def pooling() -> keras.Model:
    return functional(
        layers.MaxPooling2D(3, strides=2, padding="same", name="max"),
        layers.MaxPooling2D(2, strides=1, padding="same", name="overlapping"),
        layers.AveragePooling2D(2, padding="same", name="average"),
        shape=(13, 14, 2),
    )


@verdict(0, rungs="1-4,7")
def normalization_layers() -> keras.Model:
    adapted = layers.Normalization(axis=-1, name="adapted")
    adapted.adapt(np.arange(24.0).reshape(4, 6))
    return functional(
        adapted,
        layers.Dense(6, name="dense"),
        layers.GroupNormalization(3, name="group"),
        layers.RMSNormalization(name="rms"),
        layers.UnitNormalization(name="unit"),
        shape=(6,),
    )


ACTIVATIONS = [
    *("gelu", "silu", "mish", "celu", "selu", "relu6", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("log_sigmoid", "log_softmax", "squareplus", "soft_shrink", "tanh_shrink", "sparse_plus"),
    *("softplus", "softsign", "exponential"),
]


@verdict(0)
def activation_functions() -> keras.Model:
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="dense")(inputs)
    outputs = [layers.Activation(name, name=name)(x) for name in ACTIVATIONS]
    return keras.Model(inputs, layers.Concatenate(name="all")(outputs), name="model")


def loops(x: Tensor) -> Tensor:
    y = ops.fori_loop(0, 3, lambda _, state: 0.5 * state + x, x)
    z = ops.vectorized_map(lambda row: ops.sum(row) * row, x)
    _, sums = ops.scan(lambda a, b: (a + b, a * b), ops.zeros_like(x[:, 0]), ops.transpose(x))
    return y + z + ops.transpose(sums)


@verdict(0)
def control_flow() -> keras.Model:
    return functional(layers.Dense(4, name="dense"), Apply(loops, name="loops"))


def statistics(x: Tensor) -> Tensor:
    """Numbers of Python are constants in float64, too."""
    grey = ops.sum(x * ops.convert_to_tensor([0.299, 0.587, 0.114, 0.0]), axis=-1)
    return ops.stack([grey, ops.quantile(x, 0.3, axis=-1), ops.std(x, axis=-1)], axis=-1)


@verdict(0)
def constants() -> keras.Model:
    return functional(layers.Dense(4, name="dense"), Apply(statistics, name="statistics"))


@verdict(0)
def sorted_numbers() -> keras.Model:
    """Ties in a sort, an argsort and an argmax."""
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="dense")(inputs)
    outputs = [
        Apply(lambda x: ops.sort(ops.repeat(x, 2, axis=-1)), name="sort")(x),
        Apply(lambda x: ops.argsort(ops.sign(x)), name="argsort")(x),
        Apply(lambda x: ops.argmax(ops.sign(x), axis=-1), name="argmax")(x),
    ]
    return keras.Model(inputs, outputs, name="model")


@verdict(0)
def spectrograms() -> keras.Model:
    return functional(
        layers.STFTSpectrogram(frame_length=16, frame_step=8, fft_length=16, name="spectrum"),
        shape=(64, 1),
    )


@verdict(0, inputs=np.arange(4 * 6 * 6 * 3).reshape(4, 6, 6, 3).astype("uint8"))
def images_of_bytes() -> keras.Model:
    image = keras.Input((6, 6, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)
    return keras.Model(image, layers.Conv2D(2, 3, name="conv")(x), name="model")


@verdict(0)
def categories() -> keras.Model:
    """Numbers in intervals, and ids as several ones."""
    number, ids = keras.Input((1,), name="number"), keras.Input((3,), dtype="int32", name="ids")
    bins = layers.Discretization([-0.5, 0.0, 0.5], output_mode="one_hot", name="bins")(number)
    encoded = layers.CategoryEncoding(7, output_mode="multi_hot", name="encoding")(ids)
    x = layers.Concatenate(name="both")([bins, encoded])
    return keras.Model([number, ids], layers.Dense(2, name="head")(x), name="model")


@verdict(0)
def in_bfloat16() -> keras.Model:
    """Layers with sixteen bits on every backend."""
    return functional(
        layers.Dense(16, activation="relu", dtype="mixed_bfloat16", name="hidden"),
        layers.LayerNormalization(dtype="mixed_bfloat16", name="norm"),
        layers.Dense(3, dtype="float32", name="head"),
        shape=(32,),
    )


@verdict(0, rungs="10")
def nearly_equal_features() -> keras.Model:
    """Their difference amplifies the rounding of bfloat16 to 3 %, above the usual tolerance."""
    model = functional(layers.Dense(2, name="features"), layers.Dense(1, name="difference"))
    first = np.random.default_rng(0).uniform(0.5, 1.5, (8, 1))
    kernels = np.hstack([first, 1.1 * first]), np.array([[1.0], [-1.0]])
    model.set_weights([kernels[0], np.zeros(2), kernels[1], np.zeros(1)])
    return model


@verdict(0)
def in_float16() -> keras.Model:
    return functional(
        layers.Dense(16, activation="tanh", dtype="float16", name="hidden"),
        layers.Dense(3, dtype="float32", name="head"),
    )


@verdict(0)
def several_outputs() -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(5, kernel_regularizer="l2", name="shared")(inputs)
    outputs = {
        "value": layers.Dense(2, name="value")(x),
        "class": layers.Dense(3, activation="softmax", name="class")(x),
    }
    return keras.Model(inputs, outputs, name="model")


@verdict(0, rungs="1-4,6")
def frozen_layers() -> keras.Model:
    limit = keras.constraints.MaxNorm(1.0)
    return functional(
        layers.Dense(4, trainable=False, name="frozen"),
        layers.BatchNormalization(trainable=False, name="norm"),
        layers.Dense(3, kernel_constraint=limit, name="limited"),
    )


# ------------------------------------------------------------------ float32 written into a layer

IN_FLOAT32 = "computed in float32 in a float64 model"


class RMSNormInFloat32(layers.Layer):
    def build(self, shape: tuple[int, ...]) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Tensor) -> Tensor:
        y = ops.cast(x, "float32")
        y = y * ops.rsqrt(ops.mean(ops.square(y), -1, keepdims=True) + 1e-6)
        return ops.cast(y, x.dtype) * self.scale


@verdict(0, says=f"norm: {IN_FLOAT32}")
def norm_in_float32() -> keras.Model:
    return functional(
        layers.Dense(8, name="hidden"), RMSNormInFloat32(name="norm"), layers.Dense(2, name="head")
    )


def rotated(x: Tensor) -> Tensor:
    """Rotary embedding with angles in float32, as published code has it."""
    width, length = x.shape[-1], x.shape[1]
    frequencies = 10000.0 ** (-ops.arange(0, width, 2, dtype="float32") / width)
    angles = ops.expand_dims(ops.arange(length, dtype="float32"), -1) * frequencies
    cosine, sine = ops.cast(ops.cos(angles), x.dtype), ops.cast(ops.sin(angles), x.dtype)
    first, second = ops.split(x, 2, -1)
    return ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


@verdict(0, says=f"rotary: {IN_FLOAT32}")
def rotary_angles_in_float32() -> keras.Model:
    return functional(layers.Dense(8, name="hidden"), Apply(rotated, name="rotary"), shape=(12, 8))


@verdict(1, "norm", "jax is the odd one", rungs="2-3")
def fault_beside_float32() -> keras.Model:
    """Rounding to float32 does not hide a mistake of a thousandth."""

    def softmax(x: Tensor) -> Tensor:
        wrong = 1.001 if keras.backend.backend() == "jax" else 1.0
        return ops.cast(ops.softmax(ops.cast(x, "float32")) * wrong, x.dtype)

    return functional(layers.Dense(8, name="hidden"), Apply(softmax, name="norm"))


@verdict(0, says=f"mel: {IN_FLOAT32}")
def mel_spectrogram() -> keras.Model:
    mel = layers.MelSpectrogram(
        fft_length=64, sequence_stride=32, sampling_rate=8000, num_mel_bins=8, name="mel"
    )
    return functional(mel, shape=(256,))


# ------------------------------------------------------------------ what is easily overlooked


@verdict(1, "stats", "torch is the odd one", rungs="2-3")
def small_columns_beside_large_ones() -> keras.Model:
    """A fault of a thousandth in probabilities, beside squares of up to 1e8."""

    def statistics(x: Tensor) -> Tensor:
        wrong = 1.001 if keras.backend.backend() == "torch" else 1.0
        return ops.concatenate([1e7 * ops.square(x[:, :36]), wrong * ops.sigmoid(x[:, 36:])], -1)

    return functional(layers.Dense(40, name="dense"), Apply(statistics, name="stats"))


@verdict(2, rungs="2-3")
def outputs_without_elements() -> keras.Model:
    return functional(Apply(lambda x: x[:, :0], name="nothing"))


class BatchNorm(layers.BatchNormalization):
    """Keeps an unbiased variance on one backend."""

    def call(self, x: Tensor, training: bool = False, mask: Tensor = None) -> Tensor:
        y = super().call(x, training=training)
        if training and keras.backend.backend() == "torch":
            self.moving_variance.assign(self.moving_variance * 1.0033)
        return y


@verdict(1, "norm/moving_variance", "biased or an unbiased variance", rungs="7")
def moving_variance() -> keras.Model:
    return functional(layers.Dense(6, name="dense"), BatchNorm(name="norm"))
