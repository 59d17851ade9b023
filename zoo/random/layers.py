"""Layers that draw random numbers, and count their draws."""

from typing import Any

import keras
import numpy as np
from keras import ops

from zoo.random.generator import bernoulli, fold_in, key
from zoo.validation import Rate, Seed, validated

Tensor = Any

_DRAWS = "draws"  # name of the counter's value in a file


class DrawCounter(keras.layers.Layer):  # type: ignore[misc]
    """Base class of layers and models whose random draws depend on the number of earlier draws.

    The counter is a variable, which training checkpoints, `.keras` files and weights files hold, so
    that training continues with the draws that would have come. It is not a parameter. A file
    without the counter, of an earlier version, leaves it as it is.

    A subclass calls `create_counter` once and has no weights of its own besides those of sublayers.
    """

    def create_counter(self) -> None:
        """Creates the counter, with the value 0."""
        # Keras carries the state of a SeedGenerator through compiled code, and does not count it
        # as a parameter. Only its second number, the counter, is used.
        self.counter = keras.random.SeedGenerator(0, name="counter")

    def next_draw(self) -> Tensor:
        """Returns the number of earlier draws, an integer scalar, and counts one more."""
        return self.counter.next()[1]

    def save_own_variables(self, store: Any) -> None:
        """Writes the counter to Keras' store of this layer, unless the layer was never built."""
        if hasattr(self, "counter"):
            store[_DRAWS] = np.array(ops.convert_to_numpy(self.counter.state)[1], np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Reads the counter from Keras' store of this layer.

        Raises:
            ValueError: If the file's value is not an integer in [0, 2**31).
        """
        if _DRAWS not in store:
            return
        draws = store[_DRAWS]
        is_integer = draws.shape == () and draws.dtype.kind in "iu"
        if not is_integer or not 0 <= int(draws[()]) < 2**31:
            raise ValueError(
                f"The number of draws of the layer {self.name} must be an integer in [0, 2**31). "
                f"Received: {draws[()] if is_integer else f'{draws.dtype} of shape {draws.shape}'}"
            )
        self.counter.state.assign(np.array([0, draws[()]], self.counter.state.dtype))


@keras.saving.register_keras_serializable("zoo")
class Dropout(DrawCounter):
    """Dropout layer with masks that are the same bits on every backend.

    In training the layer sets a fraction `rate` of its inputs to 0 and scales the others by
    1/(1 - rate). The mask depends on the seed, the layer's name and the number of previous training
    calls. The first axis of the inputs must be that of the examples.

    Args:
        rate: Fraction of the inputs that is set to 0, in [0, 1).
        seed: Seed of the dropout masks; layers with different names have different masks.

    Raises:
        ValueError: If `rate` is not in [0, 1) or `seed` is not an integer in [0, 2**32).

    Source: Srivastava et al., "Dropout", JMLR 2014.
    """

    @validated
    def __init__(self, rate: Rate, seed: Seed = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        self.random_key = key(seed, "dropout", self.name)

    def build(self, input_shape: Any) -> None:
        self.create_counter()

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        mask_key = fold_in(self.random_key, self.next_draw())
        keep = ops.logical_not(bernoulli(mask_key, self.rate, ops.shape(inputs), batch_axis=0))
        return ops.where(keep, inputs * (1 / (1 - self.rate)), ops.zeros_like(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
