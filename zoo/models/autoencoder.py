"""Autoencoder of images for latent diffusion.

    encoder     (B, H, W, C) -> (B, H/f, W/f, latent_channels)       f = 2^(levels - 1)
    decoder     (B, H/f, W/f, latent_channels) -> (B, H, W, C)

A latent diffusion model is trained on the latents. Each channel of the latents is scaled to mean 0
and variance 1 over the training images. The decoder decodes sampled latents to images.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
section 3.1.
"""

from itertools import pairwise
from typing import Any

import keras

from zoo.models.unet import UNetLayers, check_levels, residual_parameter_count
from zoo.registry import register
from zoo.validation import DType, ImageShape, Levels, Name, Seed, Size, Source, validated

Tensor = Any


@validated
def parameter_count(
    input_shape: ImageShape, channels: Levels, latent_channels: Size, **_: object
) -> int:
    """Returns the parameter count of an `autoencoder` with these arguments."""

    def conv(inputs: int, filters: int) -> int:
        return (9 * inputs + 1) * filters

    first, last = channels[0], channels[-1]
    encoder = conv(input_shape[-1], first) + 2 * last + conv(last, latent_channels)
    decoder = conv(latent_channels, last) + 2 * first + conv(first, input_shape[-1])
    for inputs, filters in zip((first, *channels), channels):
        encoder += residual_parameter_count(inputs, filters)
        decoder += residual_parameter_count(filters, filters)
    decoder += sum(conv(inputs, filters) for filters, inputs in pairwise(channels))
    return encoder + decoder


@register(
    section="Modèles de Diffusion",
    recipe="recipes/diffusion.py",
    parameter_formula="see zoo/models/autoencoder.py",
    parameter_count=parameter_count,
    loss="mean_squared_error",
    examples={"": {"input_shape": (8, 8, 1), "channels": (8, 16), "latent_channels": 2}},
)
def autoencoder(
    input_shape: ImageShape = (28, 28, 1),
    channels: Levels = (16, 32),
    latent_channels: Size = 2,
    num_groups: Size = 8,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "autoencoder",
    weights: Source | None = None,
) -> keras.Model:
    """Convolutional autoencoder of images.

    Args:
        input_shape: Shape of an image, (H, W, C). H and W must be divisible by 2^(levels - 1).
        channels: Number of channels of each of at most 8 levels, multiples of `num_groups`.
        latent_channels: Number of channels of the latents.
        num_groups: Number of groups in group normalization.
        seed: Seed of the initial weights.
        dtype: A dtype or dtype policy; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from images to reconstructions, (B, H, W, C) each, with pixels in
        [-1, 1]: pixel/127.5 - 1. Its layers "encoder" and "decoder" are the models from images to
        latents and from latents to images.

    Raises:
        ValueError: If a size is not at least 1, `input_shape` is not divisible as required, or
            `channels` are no multiples of `num_groups`.
    """
    check_levels(input_shape, channels, num_groups)
    layers = UNetLayers(seed, dtype, num_groups=num_groups)

    image = keras.Input(input_shape, name="image")
    x = layers.conv(image, channels[0], "encoder_in")
    for level, filters in enumerate(channels, 1):
        if level > 1:
            x = layers.downsample(x, f"encoder{level}_downsample")
        x = layers.residual(x, filters, f"encoder{level}")
    x = layers.norm(x, "encoder_norm")
    x = layers.conv(x, latent_channels, "encoder_out")
    encoder = keras.Model(image, x, name="encoder")

    latents = keras.Input(tuple(x.shape[1:]), name="latents")
    x = layers.conv(latents, channels[-1], "decoder_in")
    for level, filters in reversed(list(enumerate(channels, 1))):
        if level < len(channels):
            x = layers.upsample(x, filters, f"decoder{level}_conv")
        x = layers.residual(x, filters, f"decoder{level}")
    x = layers.norm(x, "decoder_norm")
    decoder = keras.Model(latents, layers.conv(x, input_shape[-1], "decoder_out"), name="decoder")

    image = keras.Input(input_shape, name="image")
    return keras.Model(image, decoder(encoder(image)), name=name)
