"""Models that people publish, in small, each with the verdict that the check must reach.

Most are examples of keras.io, whose backends agree. `tests.parity.verdicts` has the registry.
"""

from typing import Any

import keras
from keras import layers, ops

from tests.parity.verdicts import functional, verdict

Tensor = Any


@verdict(0, rungs="1-3")
def mobilenet() -> keras.Model:
    return keras.applications.MobileNet((32, 32, 3), alpha=0.25, weights=None, classes=4)


@verdict(0, says="drop: random numbers come from the backend's own generator in training")
def mnist_convnet() -> keras.Model:
    return functional(
        layers.Conv2D(4, 3, activation="relu", name="conv1"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.Conv2D(8, 3, activation="relu", name="conv2"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.Flatten(name="flatten"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(4, activation="softmax", name="head"),
        shape=(12, 12, 1),
    )


class Patches(layers.Layer):
    def call(self, images: Tensor) -> Tensor:
        patches = ops.image.extract_patches(images, size=4)
        return ops.reshape(patches, (-1, patches.shape[1] * patches.shape[2], patches.shape[3]))


class PatchEncoder(layers.Layer):
    def __init__(self, num_patches: int, dim: int, **options: Any):
        super().__init__(**options)
        self.num_patches = num_patches
        self.projection = layers.Dense(dim, name="projection")
        self.position = layers.Embedding(num_patches, dim, name="position")

    def call(self, patches: Tensor) -> Tensor:
        positions = ops.expand_dims(ops.arange(0, self.num_patches, 1), 0)
        return self.projection(patches) + self.position(positions)


@verdict(0)
def vision_transformer() -> keras.Model:
    image = keras.Input((12, 12, 3))
    x = PatchEncoder(9, 8, name="encoder")(Patches(name="patches")(image))
    y = layers.LayerNormalization(epsilon=1e-6, name="norm1")(x)
    y = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")(y, y)
    x = layers.Add(name="add1")([y, x])
    y = layers.LayerNormalization(epsilon=1e-6, name="norm2")(x)
    y = layers.Dense(16, activation="gelu", name="hidden")(y)
    y = layers.Dense(8, activation="gelu", name="outer")(layers.Dropout(0.1, name="drop")(y))
    x = layers.Flatten(name="flatten")(layers.Add(name="add2")([y, x]))
    return keras.Model(image, layers.Dense(3, name="head")(x), name="model")


class TokenAndPosition(layers.Layer):
    def __init__(self, length: int, vocabulary_size: int, dim: int, **options: Any):
        super().__init__(**options)
        self.token = layers.Embedding(vocabulary_size, dim, name="token")
        self.position = layers.Embedding(length, dim, name="position")

    def call(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position(ops.arange(0, ops.shape(ids)[-1], 1))


class TransformerBlock(layers.Layer):
    """Sublayers that no `build` mentions, one of them a model."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, **options: Any):
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(num_heads, dim, name="attention")
        self.feedforward = keras.Sequential(
            [layers.Dense(hidden_dim, activation="relu"), layers.Dense(dim)], name="feedforward"
        )
        self.norm1 = layers.LayerNormalization(epsilon=1e-6, name="norm1")
        self.norm2 = layers.LayerNormalization(epsilon=1e-6, name="norm2")

    def call(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x))
        return self.norm2(x + self.feedforward(x))


@verdict(0)
def text_transformer() -> keras.Model:
    ids = keras.Input((10,), dtype="int32")
    x = TokenAndPosition(10, 50, 8, name="embed")(ids)
    x = layers.GlobalAveragePooling1D(name="pool")(TransformerBlock(8, 2, 16, name="block")(x))
    return keras.Model(ids, layers.Dense(2, activation="softmax", name="head")(x), name="model")


@verdict(0)
def bidirectional_lstm() -> keras.Model:
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(30, 8, name="embed")(ids)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both1")(x)
    x = layers.Bidirectional(layers.LSTM(4), name="both2")(x)
    return keras.Model(ids, layers.Dense(1, activation="sigmoid", name="head")(x), name="model")


@verdict(0)
def convolutional_autoencoder() -> keras.Model:
    return functional(
        layers.Conv2D(4, 3, activation="relu", padding="same", name="conv1"),
        layers.MaxPooling2D(2, padding="same", name="pool"),
        layers.Conv2DTranspose(
            4, 3, strides=2, activation="relu", padding="same", name="transpose"
        ),
        layers.Conv2D(1, 3, activation="sigmoid", padding="same", name="conv2"),
        shape=(8, 8, 1),
    )


@verdict(0)
def segmentation_network() -> keras.Model:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(image)
    x = shortcut = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm1")(x))
    x = layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = layers.BatchNormalization(name="norm2")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool")(x)
    residual = layers.Conv2D(8, 1, strides=2, padding="same", name="residual")(shortcut)
    x = layers.Conv2DTranspose(4, 3, padding="same", name="up")(
        layers.Add(name="add")([x, residual])
    )
    x = layers.UpSampling2D(4, name="resize")(x)
    outputs = layers.Conv2D(2, 3, activation="softmax", padding="same", name="head")(x)
    return keras.Model(image, outputs, name="model")


def depth_to_space(x: Tensor) -> Tensor:
    height, width = x.shape[1:3]
    x = ops.transpose(ops.reshape(x, (-1, height, width, 2, 2)), (0, 1, 3, 2, 4))
    return ops.reshape(x, (-1, 2 * height, 2 * width, 1))


@verdict(0)
def super_resolution() -> keras.Model:
    return functional(
        layers.Conv2D(
            4, 5, padding="same", activation="tanh", kernel_initializer="orthogonal", name="conv1"
        ),
        layers.Conv2D(4, 3, padding="same", name="conv2"),
        layers.Lambda(depth_to_space, name="depth_to_space"),
        shape=(6, 6, 1),
    )


@verdict(0)
def next_frame() -> keras.Model:
    return functional(
        layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True, name="lstm"),
        layers.BatchNormalization(name="norm"),
        layers.Conv3D(1, 3, padding="same", activation="sigmoid", name="head"),
        shape=(4, 6, 6, 1),
    )


@verdict(0)
def wavenet() -> keras.Model:
    wave = keras.Input((16, 2))
    x = layers.Conv1D(4, 2, padding="causal", name="first")(wave)
    for dilation in (1, 2, 4):
        gates = [
            layers.Conv1D(
                4,
                2,
                padding="causal",
                dilation_rate=dilation,
                activation=activation,
                name=f"{activation}{dilation}",
            )(x)
            for activation in ("tanh", "sigmoid")
        ]
        y = layers.Conv1D(4, 1, name=f"mix{dilation}")(
            layers.Multiply(name=f"gated{dilation}")(gates)
        )
        x = layers.Add(name=f"add{dilation}")([x, y])
    return keras.Model(wave, x, name="model")


class FourierMixing(layers.Layer):
    def call(self, x: Tensor) -> Tensor:
        return ops.fft2((x, ops.zeros_like(x)))[0]


@verdict(0)
def fnet() -> keras.Model:
    return functional(
        layers.Dense(8, name="first"),
        FourierMixing(name="fourier"),
        layers.LayerNormalization(name="norm"),
        layers.Dense(3, name="last"),
        shape=(6, 4),
    )


class Distance(layers.Layer):
    def call(self, x: Tensor, y: Tensor) -> Tensor:
        squares = ops.sum(ops.square(x - y), axis=1, keepdims=True)
        return ops.sqrt(ops.maximum(squares, keras.config.epsilon()))


@verdict(0)
def siamese() -> keras.Model:
    """A model that is called twice."""
    branch = keras.Sequential(
        [layers.Dense(8, activation="relu", name="hidden"), layers.Dense(4, name="embedding")],
        name="branch",
    )
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    distances = Distance(name="distance")(branch(left), branch(right))
    x = layers.BatchNormalization(name="norm")(distances)
    return keras.Model(
        [left, right], layers.Dense(1, activation="sigmoid", name="head")(x), name="model"
    )


@verdict(0)
def discriminator() -> keras.Model:
    return functional(
        layers.Conv2D(4, 3, strides=2, padding="same", name="conv1"),
        layers.LeakyReLU(negative_slope=0.2, name="relu1"),
        layers.Conv2D(8, 4, strides=2, padding="same", name="conv2"),
        layers.LeakyReLU(negative_slope=0.2, name="relu2"),
        layers.GlobalMaxPooling2D(name="pool"),
        layers.Dense(1, name="head"),
        shape=(12, 12, 3),
    )


class Messages(layers.Layer):
    """Sums of the neighbours in a graph of four nodes."""

    def call(self, nodes: Tensor) -> Tensor:
        sources = ops.convert_to_tensor([0, 1, 2, 3, 3, 1], "int32")
        targets = ops.convert_to_tensor([1, 0, 3, 2, 0, 2], "int32")
        return ops.segment_sum(ops.take(nodes, sources, axis=0), targets, num_segments=4)


@verdict(0)
def graph_network() -> keras.Model:
    return functional(
        layers.Dense(6, name="first"), Messages(name="messages"), layers.Dense(3, name="last")
    )


class Experts(layers.Layer):
    """Two of four experts for each example."""

    def build(self, shape: Any) -> None:
        self.gate = self.add_weight(shape=(shape[-1], 4), name="gate")
        self.experts = self.add_weight(shape=(4, shape[-1], 5), name="experts")

    def call(self, x: Tensor) -> Tensor:
        probabilities, chosen = ops.top_k(ops.softmax(ops.matmul(x, self.gate)), 2)
        one_hot = ops.one_hot(chosen, 4, dtype=x.dtype)
        weights = ops.sum(one_hot * probabilities[..., None], axis=-2)
        return ops.einsum("be,bi,eio->bo", weights, x, self.experts)


@verdict(0)
def mixture_of_experts() -> keras.Model:
    return functional(Experts(name="experts"), layers.Dense(2, name="head"))


@verdict(0)
def text_reader() -> keras.Model:
    """Convolutions whose columns are the steps of a recurrent network, as in keras.io's OCR."""
    return functional(
        layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
        layers.MaxPooling2D(2, name="pool"),
        layers.Reshape((4, 16), name="columns"),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both"),
        layers.Dense(5, activation="softmax", name="head"),
        shape=(8, 8, 1),
    )
