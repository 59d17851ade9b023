"""Layers of image-to-image networks: resampling, time embedding, and pixels as tokens."""

from typing import Any

import keras
from keras import ops

from zoo.layers.attention import sinusoidal_table
from zoo.layers.core import check_token_ids
from zoo.validation import Size, Timesteps, validated

Tensor = Any


@keras.saving.register_keras_serializable("zoo")
class TimeEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """Sinusoidal embedding of diffusion time steps, (B,) int in [0, num_steps) to (B, dim).

    Args:
        num_steps: Number of time steps T.
        dim: Width of the embedding.

    Raises:
        ValueError: When called with a time step outside [0, num_steps). Compiled code raises the
            backend's own error with the same text; XLA on TensorFlow drops the check.
    """

    @validated
    def __init__(self, num_steps: Timesteps, dim: Size, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_steps = num_steps
        self.dim = dim
        self._table = sinusoidal_table(num_steps, dim)

    def call(self, time: Tensor) -> Tensor:
        time = check_token_ids(time, self.num_steps, self.name)
        return ops.take(ops.convert_to_tensor(self._table, dtype=self.compute_dtype), time, axis=0)

    def compute_output_spec(self, time: Tensor) -> Any:
        return keras.KerasTensor((*time.shape, self.dim), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_steps": self.num_steps, "dim": self.dim}


@keras.saving.register_keras_serializable("zoo")
class MaskedMean(keras.layers.Layer):  # type: ignore[misc]
    """Mean over the unmasked tokens, (B, L, dim) and a padding mask (B, L) bool to (B, dim)."""

    def call(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        weights = ops.expand_dims(ops.cast(padding_mask, x.dtype), -1)
        return ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1)

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        return (input_shape[0], input_shape[-1])


@keras.saving.register_keras_serializable("zoo")
class Downsample(keras.layers.Layer):  # type: ignore[misc]
    """Average pooling of 2×2 pixels, (B, H, W, C) to (B, H/2, W/2, C)."""

    def call(self, x: Tensor) -> Tensor:
        # One sum over both axes of size two reads memory in small steps and takes far longer.
        _, height, width, channels = x.shape
        upper, lower = ops.unstack(ops.reshape(x, (-1, height // 2, 2, width, channels)), 2, axis=2)
        x = ops.reshape(upper + lower, (-1, height // 2, width // 2, 2, channels))
        left, right = ops.unstack(x, 2, axis=3)
        return 0.25 * (left + right)

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        return (batch, height // 2, width // 2, channels)


@keras.saving.register_keras_serializable("zoo")
class Upsample(keras.layers.Layer):  # type: ignore[misc]
    """Nearest-neighbour upsampling by two, (B, H, W, C) to (B, 2·H, 2·W, C).

    A convolution follows this layer. A transposed convolution would cover some pixels more often
    than their neighbours and produce a checkerboard pattern.
    """

    def call(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        x = ops.reshape(ops.stack([x, x], axis=3), (-1, height, 2 * width, channels))
        return ops.reshape(ops.stack([x, x], axis=2), (-1, 2 * height, 2 * width, channels))

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        return (batch, 2 * height, 2 * width, channels)


@keras.saving.register_keras_serializable("zoo")
class Flatten(keras.layers.Layer):  # type: ignore[misc]
    """Flattening of the pixels to a sequence of tokens, (B, H, W, C) to (B, H·W, C)."""

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        return (batch, height * width, channels)
