"""The latent space of an autoencoder, scaled to unit variance."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo.backends import backend
from zoo.datasets.images import check_images
from zoo.diffusion.losses import pixels

Tensor = Any


class LatentScaler:
    """To and from the latents of an autoencoder, each channel of mean 0 and variance 1.

    Args:
        model: the autoencoder.
        mean, std: of each channel's latents.
    """

    def __init__(self, model: keras.Model, mean: Sequence[float], std: Sequence[float]):
        self.model = model
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._encode, self._decode = (
            backend.inference_function(part, lambda x, part=part: part(pixels(x), training=False))
            for part in (model.get_layer("encoder"), model.get_layer("decoder"))
        )

    @classmethod
    def from_images(cls, model: keras.Model, images: np.ndarray) -> "LatentScaler":
        """With the mean and deviation of the latents of images, (N, H, W, C) uint8."""
        plain = cls(model, (0.0,), (1.0,)).encode(images).astype(np.float64)
        mean, std = plain.mean(axis=(0, 1, 2)), plain.std(axis=(0, 1, 2))
        return cls(model, mean.tolist(), std.tolist())

    def encode(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, C) uint8 to (N, h, w, latent_channels) in Keras' floatx."""
        check_images(images)
        latents = _in_batches(self._encode, images)
        return np.asarray((latents - self.mean) / self.std, keras.config.floatx())

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """And back, to numbers in about [-1, 1]."""
        plain = latents * self.std + self.mean
        return _in_batches(self._decode, plain.astype(keras.config.floatx()))


def _in_batches(forward: Callable[..., Tensor], rows: np.ndarray, size: int = 256) -> np.ndarray:
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return np.concatenate([ops.convert_to_numpy(forward(part)) for part in parts])
