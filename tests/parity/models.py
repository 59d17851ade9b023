"""Models and functions that the tests of the check run in workers."""

import os
import time
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from zoo import random

Tensor = Any


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """Custom layer with a trainable factor per channel."""

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=shape[-1:], initializer="ones", name="factor")

    def call(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


def two_inputs(dropout: bool = False) -> keras.Model:
    """Model with an image and token IDs, batch normalization and a custom layer."""
    image = keras.Input((12, 12, 3), name="image")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = Scale(name="scale")(ops.relu(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(0.5, name="drop")(x)
    y = layers.Embedding(20, 8, name="embed")(tokens)
    y = layers.GRU(8, name="gru")(y)
    x = layers.Concatenate(name="both")([x, y])
    return keras.Model({"image": image, "tokens": tokens}, layers.Dense(4, name="last")(x))


def two_named_inputs() -> keras.Model:
    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="right")
    x = layers.Concatenate(name="both")([left, right])
    return keras.Model({"left": left, "right": right}, layers.Dense(2, name="head")(x))


class TwoTexts(keras.Model):
    """Subclass that reads token ids from a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = layers.Embedding(50, 4, name="embed")
        self.head = layers.Dense(2, name="head")

    def call(self, texts: dict[str, Tensor]) -> Tensor:
        means = [ops.mean(self.embed(texts[name]), axis=1) for name in ("a", "b")]
        return self.head(ops.concatenate(means, axis=-1))


def one_input() -> keras.Model:
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Normalization(name="normal")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(x)
    x = Scale(name="scale")(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(ops.gelu(x))
    return keras.Model(image, layers.Dense(4, name="last")(x), name="one_input")


def with_backends_own_randomness() -> keras.Model:
    return two_inputs(dropout=True)


def with_stochastic_depth() -> keras.Model:
    """Model that drops whole examples of a batch of four, so that two samples are often equal."""
    image = keras.Input((4, 4, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.Dropout(0.1, noise_shape=(None, 1, 1, 1), name="depth")(x)
    return keras.Model(image, layers.Flatten(name="flat")(x), name="model")


class Sampling(layers.Layer):
    """Noise in inference mode, too, as in Keras' example of a variational autoencoder."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs: Tensor) -> Tensor:
        return inputs + keras.random.normal(ops.shape(inputs), seed=self.seed_generator)


def with_sampling() -> keras.Model:
    inputs = keras.Input((4,), name="inputs")
    x = Sampling(name="sampling")(layers.Dense(4, name="dense")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="last")(x), name="model")


def stacked_cells() -> keras.Model:
    cells = [layers.LSTMCell(4, name="one"), layers.GRUCell(4, dropout=0.5, name="two")]
    sequence = keras.Input((5, 3), name="sequence")
    return keras.Model(sequence, layers.RNN(cells, name="stacked")(sequence), name="model")


def in_float32_at_the_end() -> keras.Model:
    inputs = keras.Input((4,), name="inputs")
    x = layers.Dense(8, name="dense")(inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float32", name="last")(x), name="model")


def with_an_unused_weight() -> keras.Model:
    inputs = keras.Input((4,), name="inputs")
    x = layers.Dense(3, name="used")(inputs)
    unused = layers.Dense(3, name="unused")(inputs)
    return keras.Model(inputs, x + 0 * ops.stop_gradient(unused), name="model")


def renamed_on_jax() -> keras.Model:
    name = "other" if on("jax") else "dense"
    return keras.Sequential([keras.Input((3,)), layers.Dense(2, name=name)], name="small")


def not_a_number() -> keras.Model:
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, name="dense"), layers.Lambda(_nan, name="nan")]
    )


def _nan(x: Tensor) -> Tensor:
    return ops.sqrt(-1 - ops.square(x))


def stateful() -> keras.Model:
    sequence = keras.Input(batch_shape=(4, 5, 3), name="sequence")
    x = layers.LSTM(6, stateful=True, name="lstm")(sequence)
    return keras.Model(sequence, layers.Dense(2, name="last")(x), name="model")


def generator() -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(16, 8, name="embed")(ids)
    x = layers.GRU(8, return_sequences=True, name="gru")(x)
    return keras.Model(ids, layers.Dense(16, name="logits")(x), name="generator")


def keras_adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(1e-3)


def tokens_and_noise(model: keras.Model) -> dict[str, Any]:
    """Generates greedy tokens after a prompt, and portable noise."""
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    for _ in range(5):
        logits = ops.convert_to_numpy(model(ids))
        ids = np.concatenate([ids, logits[:, -1:].argmax(-1).astype(np.int32)], axis=1)
    noise = random.normal(random.key(0, "noise"), (2, 4, 4, 3))
    return {"tokens": ids, "image": noise}


def on(*names: str) -> bool:
    return keras.backend.backend() in names


def small() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")], name="small")


def _raise_error() -> None:
    raise ValueError("unreadable")


class Unreadable:
    def __reduce__(self) -> Any:
        return _raise_error, ()


def unreadable() -> Unreadable:
    return Unreadable()


def without_input() -> keras.Model:
    return keras.Sequential([layers.Dense(2, name="dense")], name="small")


def crashes_on_jax() -> keras.Model:
    if on("jax"):
        print("about to exit", flush=True)
        os._exit(7)
    return small()


def raises_on_jax() -> keras.Model:
    if on("jax"):
        raise KeyError("no such key")
    return small()


def killed_on_jax() -> keras.Model:
    if on("jax"):
        os.kill(os.getpid(), 9)
    return small()


def hangs_on_jax() -> keras.Model:
    if on("jax"):
        print("waiting forever", flush=True)
        time.sleep(1000)
    return small()


def out_of_memory_on_jax() -> keras.Model:
    if on("jax"):
        np.ones(2**50)
    return small()


def wider_on_jax() -> keras.Model:
    width = 3 if on("jax") else 2
    return keras.Sequential([keras.Input((3,)), layers.Dense(width, name="dense")], name="small")


def not_a_model() -> Any:
    return layers.Dense(2)
