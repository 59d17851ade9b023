"""Models as users write them, each with the verdict that the check must reach.

`verdicts_models.py`, `verdicts_layers.py` and `verdicts_reports.py` have more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

Tensor = Any


class Verdict(NamedTuple):
    """What the check must say about a model.

    Attributes:
        build: Builder of the model.
        exit_status: 0 if the backends agree, 1 if they differ, 2 if nothing can be compared.
        where: Layer, weight or value of the first difference.
        says: Part of the explanation or of a note.
        options: Arguments of `check`; by default, rungs 1 to 4 are checked.
    """

    build: Callable[[], keras.Model]
    exit_status: int
    where: str
    says: str
    options: dict[str, Any]


VERDICTS: dict[str, Verdict] = {}


def verdict(
    exit_status: int, where: str = "", says: str = "", **options: Any
) -> Callable[..., Any]:
    """Registers a builder in `VERDICTS`."""

    def register(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
        VERDICTS[build.__name__] = Verdict(build, exit_status, where, says, options)
        return build

    return register


def functional(*hidden: layers.Layer, shape: tuple[int, ...] = (8,)) -> keras.Model:
    inputs = x = keras.Input(shape)
    for layer in hidden:
        x = layer(x)
    return keras.Model(inputs, x, name="model")


# ------------------------------------------------------------------ subclasses


class Subclass(keras.Model):
    """Layers in `__init__`, and no `build`."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, activation="tanh", name="hidden")
        self.head = layers.Dense(2, name="head")

    def call(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


@verdict(0, rungs="1-7,9", input_shape=(16,))
def subclass() -> keras.Model:
    return Subclass()


@verdict(0, input_shape=(16,))
def subclass_that_calls_itself_built() -> keras.Model:
    model = Subclass()
    model.build((None, 16))
    return model


class OfTwoInputs(Subclass):
    def call(self, x: dict[str, Tensor]) -> Tensor:
        return self.head(self.hidden(ops.concatenate([x["left"], x["right"]], axis=-1)))


@verdict(0, inputs={"left": np.ones((4, 3), "float32"), "right": np.ones((4, 2), "float32")})
def subclass_of_two_inputs() -> keras.Model:
    return OfTwoInputs()


# ------------------------------------------------------------------ nothing to compare


@verdict(0)
def without_weights() -> keras.Model:
    """The outputs are compared."""
    return functional(layers.Rescaling(2.0, name="twice"))


@verdict(2, rungs="7")
def without_state() -> keras.Model:
    return functional(layers.Dense(2, name="dense"))


# ------------------------------------------------------------------ losses of layers


class Penalty(layers.Layer):
    def call(self, x: Tensor) -> Tensor:
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


@verdict(0, rungs="1-4,6")
def with_added_loss() -> keras.Model:
    hidden = layers.Dense(16, activation="relu", name="hidden")
    return functional(hidden, Penalty(name="penalty"), layers.Dense(3, name="head"))


@verdict(0, rungs="1-4,6")
def with_activity_regularizer() -> keras.Model:
    penalty = keras.regularizers.L2(0.05)
    hidden = layers.Dense(16, activity_regularizer=penalty, name="hidden")
    return functional(hidden, layers.Dense(3, name="head"))


class UnequalPenalty(layers.Layer):
    def call(self, x: Tensor) -> Tensor:
        factor = 0.2 if keras.backend.backend() == "jax" else 0.1
        self.add_loss(factor * ops.mean(ops.square(x)))
        return x


@verdict(1, "loss")
def with_unequal_added_losses() -> keras.Model:
    return functional(layers.Dense(3, name="head"), UnequalPenalty(name="penalty"))


# ------------------------------------------------------------------ huge numbers


class Masked(layers.Layer):
    """Replaces the first score by a huge number; on one backend the others are off."""

    def __init__(self, value: float, **options: Any):
        super().__init__(**options)
        self._value = value

    def call(self, x: Tensor) -> Tensor:
        x = x * 1.001 if keras.backend.backend() == "torch" else x
        return ops.concatenate([ops.full_like(x[..., :1], self._value), x[..., 1:]], axis=-1)


@verdict(1, "scores", rungs="2")
def beside_a_mask() -> keras.Model:
    return functional(layers.Dense(5, name="dense"), Masked(-1e9, name="scores"))


@verdict(1, "scores", rungs="2")
def beside_a_mask_for_float16() -> keras.Model:
    return functional(layers.Dense(5, name="dense"), Masked(-6e4, name="scores"))


@verdict(1, "scores", rungs="3")
def beside_the_largest_number() -> keras.Model:
    return functional(layers.Dense(5, name="dense"), Masked(-3e38, name="scores"))


class Exponential(layers.Layer):
    """Huge numbers of many sizes, and small ones."""

    def call(self, x: Tensor) -> Tensor:
        return ops.concatenate([x[..., :2], 1e7 * x[..., 2:]], axis=-1)


@verdict(0)
def with_columns_of_different_units() -> keras.Model:
    return functional(
        layers.Dense(5, name="first"), Exponential(name="units"), layers.Dense(3, name="last")
    )


# ------------------------------------------------------------------ float32 on one backend


@verdict(0)
def bilinear_upsampling() -> keras.Model:
    """TensorFlow resizes in float32."""
    return functional(
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.UpSampling2D(2, interpolation="bilinear", name="up"),
        layers.Flatten(name="flatten"),
        layers.Dense(3, name="head"),
        shape=(8, 8, 3),
    )


class Rounded(layers.Layer):
    def call(self, x: Tensor) -> Tensor:
        if keras.backend.backend() == "torch":
            return ops.cast(ops.cast(x, "float32") * 1.0001, x.dtype)
        return x


@verdict(1, "rounded", rungs="3")
def mistake_in_float32() -> keras.Model:
    """A layer that computes in float32 on one backend may be wrong all the same."""
    return functional(layers.Dense(4, name="dense"), Rounded(name="rounded"))
