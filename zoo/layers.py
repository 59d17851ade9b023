"""Layers that two families or more use.

They are Keras' own layers, with the same weights and the same numbers; only how they are computed
is chosen for each backend, in `zoo.backends`.
"""

from typing import Any

import keras

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
