"""The latent space of an autoencoder, standardised to zero mean and unit variance."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops

from zoo.backends import backend
from zoo.datasets.images import check_images
from zoo.diffusion.losses import pixels
from zoo.validation import Images, each, number, validated

Tensor = Any


class LatentScaler:
    """Encodes images to standardised latents, each channel of mean 0 and variance 1, and back.

    Args:
        model: Autoencoder with the layers "encoder" and "decoder".
        mean: Mean of each latent channel.
        std: Standard deviation of each latent channel.
    """

    @validated
    def __init__(
        self,
        model: keras.Model,
        mean: Annotated[Sequence[float], each(number(), 1)],
        std: Annotated[Sequence[float], each(number("(0, inf)"), 1)],
    ):
        names = [layer.name for layer in model.layers]
        if not {"encoder", "decoder"} <= set(names):
            raise ValueError(
                "`model` must have the layers encoder and decoder, as an autoencoder has. "
                f"Received: model={model.name} with the layers {', '.join(names)}"
            )
        self.model = model
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._encode, self._decode = (
            backend.inference_function(part, lambda x, part=part: part(pixels(x), training=False))
            for part in (model.get_layer("encoder"), model.get_layer("decoder"))
        )

    @classmethod
    @validated
    def from_images(cls, model: keras.Model, images: Images) -> "LatentScaler":
        """Builds a scaler from the latents of sample images.

        Args:
            model: Autoencoder with the layers "encoder" and "decoder".
            images: Images that the mean and standard deviation are computed from,
                (N, H, W, C) uint8.
        """
        latents = cls(model, (0.0,), (1.0,)).encode(images).astype(np.float64)
        mean, std = latents.mean(axis=(0, 1, 2)), latents.std(axis=(0, 1, 2))
        return cls(model, mean.tolist(), std.tolist())

    @validated
    def encode(self, images: Images) -> np.ndarray:
        """Encodes images, (N, H, W, C) uint8, to (N, h, w, latent_channels) in Keras' floatx.

        Raises:
            ValueError: if `images` are not (N, H, W, C) uint8.
        """
        check_images(images)
        latents = _in_batches(self._encode, images)
        return np.asarray((latents - self.mean) / self.std, keras.config.floatx())

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents, (N, h, w, latent_channels), to images of about [-1, 1]."""
        unscaled = latents * self.std + self.mean
        return _in_batches(self._decode, unscaled.astype(keras.config.floatx()))


def _in_batches(
    function: Callable[..., Tensor], array: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    batches = [array[first : first + batch_size] for first in range(0, len(array), batch_size)]
    return np.concatenate([ops.convert_to_numpy(function(batch)) for batch in batches])
