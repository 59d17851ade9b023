"""Models of a user's own, which the tests export by their addresses."""

from pathlib import Path

import keras
from keras import ops

from zoo.export import ExportReport, export
from zoo.layers.recurrent import GRU
from zoo.parity import Workers


def two_inputs() -> keras.Model:
    """Classifier of an image and a sequence of numbers, with two outputs."""
    image = keras.Input((8, 8, 3), name="image")
    steps = keras.Input((None, 4), name="steps")
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv")(image)
    x = keras.layers.Concatenate()([keras.layers.Flatten()(x), keras.layers.GRU(6)(steps)])
    labels = keras.layers.Dense(3, activation="softmax", name="label")(x)
    score = keras.layers.Dense(1, name="score")(x)
    return keras.Model([image, steps], [labels, score], name="two_inputs")


def mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)


def export_from_here(folder: Path) -> list[ExportReport]:
    """Exports models that the running backend creates, as its users do."""
    with Workers(["torch"], min_backends=1) as workers:
        return [
            export(model, folder / f"{model.name}.onnx", "onnx", workers=workers)
            for model in (mobilenet(), two_inputs())
        ]


def gru() -> keras.Model:
    steps = keras.Input((None, 4), name="steps")
    recurrent = GRU(6, name="gru", bias_initializer=keras.initializers.RandomNormal(seed=1))
    return keras.Model(steps, keras.layers.Dense(3, name="output")(recurrent(steps)))


def image_classifier() -> keras.Model:
    image = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    return keras.Model(image, keras.layers.Dense(3, name="output")(keras.layers.Flatten()(x)))


class SignOfSum(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose operations depend on the values of its inputs."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x if ops.convert_to_numpy(ops.sum(x)) > 0 else -x

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, x.dtype)


def value_dependent() -> keras.Model:
    x = keras.Input((4,), name="x")
    return keras.Model(x, SignOfSum(name="sign")(x))


def fixed_batch() -> keras.Model:
    x = keras.Input(batch_shape=(2, 4), name="x")
    return keras.Model(x, keras.layers.Dense(3, name="output")(x))
