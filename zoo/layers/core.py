"""Layers and arguments that two families or more use.

The layers are Keras' own, with the same weights and the same numbers; only how they are computed is
chosen for each backend, in `zoo.backends`.
"""

from typing import Any

import keras
from keras import ops

from zoo import initializers
from zoo.backends import backend

Tensor = Any


@keras.saving.register_keras_serializable("zoo")
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D`: (B, H, W, C) to (B, H', W', filters)."""

    def call(self, inputs: Tensor) -> Tensor:
        return backend.conv2d(self, inputs)


@keras.saving.register_keras_serializable("zoo")
class MaxPooling2D(keras.layers.MaxPooling2D):  # type: ignore[misc]
    """`keras.layers.MaxPooling2D`: (B, H, W, C) to (B, H', W', C)."""

    def call(self, inputs: Tensor) -> Tensor:
        return backend.max_pool2d(self, inputs)


@keras.saving.register_keras_serializable("zoo")
class GroupNormalization(keras.layers.GroupNormalization):  # type: ignore[misc]
    """`keras.layers.GroupNormalization` and what follows it: (B, H, W, C) to the same.

    Called with a second tensor, (B, 2·C), the first half of which scales each image's channels by 1
    more, and the second is added to them ("adaptive": Dhariwal and Nichol, 2021).

    Args:
        groups: of channels.
        activation: of Keras', by its name; by default none.
        epsilon: added to the variance.
    """

    def __init__(
        self, groups: int, activation: str | None = None, epsilon: float = 1e-5, **kwargs: Any
    ):
        super().__init__(groups, epsilon=epsilon, **kwargs)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Any, *_: Any) -> None:
        super().build(input_shape)

    def call(self, inputs: Tensor, scale_shift: Tensor | None = None) -> Tensor:
        return self.activation(backend.group_norm(self, inputs, scale_shift))

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "activation": activation}


@keras.saving.register_keras_serializable("zoo")
class Dense(keras.layers.Dense):  # type: ignore[misc]
    """`keras.layers.Dense` that keeps its dtype without a bias, too: (..., inputs) to (..., units).

    Two float64 tensors give Keras a float32 one on PyTorch and JAX.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return ops.cast(backend.dense(self, inputs), self.compute_dtype)


@keras.saving.register_keras_serializable("zoo")
class Embedding(keras.layers.ReversibleEmbedding):  # type: ignore[misc]
    """`keras.layers.ReversibleEmbedding` that refuses ids outside the vocabulary.

    (B, T) to (B, T, width) and, called with `reverse=True`, (B, T, width) to (B, T, vocabulary).

    What a backend does with such an id is its own: an error without a word of the id, NaN, another
    row.

    Raises:
        ValueError: where the ids are known; the text names one and the size. In compiled code it is
            the backend's own error with the same text; XLA on TensorFlow drops the check.
    """

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        if not reverse:
            inputs = backend.check_token_ids(inputs, self.input_dim, self.name)
        return ops.cast(super().call(inputs, reverse=reverse), self.compute_dtype)

    def look_up(self, ids: Tensor) -> Tensor:
        """For ids that were checked: the check makes JAX take its slow way into compiled code."""
        return super().call(ids)


def dense_projection(
    owner: Any, name: str, inputs: int, units: int, stddev: float | None
) -> keras.layers.Layer:
    """A built `Dense` within a layer that has `use_bias`, `seed` and `stream`; normal weights."""
    layer = Dense(
        units,
        use_bias=owner.use_bias,
        kernel_initializer=initializers.Normal(owner.seed, f"{owner.stream}/{name}", stddev),
        dtype=owner.dtype_policy,
        name=name,
    )
    layer.build((None, None, inputs))
    return layer


def call_built(layer: keras.layers.Layer, *inputs: Tensor, **options: Any) -> Tensor:
    """Calls a layer that is built and lies in another one.

    What Keras does around a layer's `call` takes longer than a small one's arithmetic where steps
    are not compiled, and within another layer it is of no use unless numbers have to be cast.
    """
    if layer.compute_dtype == layer.variable_dtype:
        return layer.call(*inputs, **options)
    return layer(*inputs, **options)
