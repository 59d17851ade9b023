"""A smaller space to draw in: an image goes in, and comes back from fewer numbers.

    encoder     (B, H, W, C) -> (B, H/f, W/f, latent_channels)       f = 2^(levels - 1)
    decoder     and back

What a diffusion model is trained on then are the latents, each channel brought to mean 0 and
variance 1 over the training images; the decoder makes images of what it draws.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
section 3.1.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras

from zoo.models.unet import UNetLayers, check_network, residual_parameter_count
from zoo.registry import register
from zoo.validation import check_sizes

Tensor = Any


def _count(
    input_shape: tuple[int, int, int], channels: Sequence[int], latent_channels: int, **_: object
) -> int:
    def conv(inputs: int, filters: int) -> int:
        return (9 * inputs + 1) * filters

    first, last = channels[0], channels[-1]
    encoder = conv(input_shape[-1], first) + 2 * last + conv(last, latent_channels)
    decoder = conv(latent_channels, last) + 2 * first + conv(first, input_shape[-1])
    for before, after in zip((first, *channels), channels):
        encoder += residual_parameter_count(before, after)
        decoder += residual_parameter_count(after, after)
    decoder += sum(conv(upper, lower) for lower, upper in pairwise(channels))
    return encoder + decoder


@register(
    section="Modèles de Diffusion",
    recipe="recipes/diffusion.py",
    parameters="see zoo/models/autoencoder.py",
    count=_count,
    loss="mean_squared_error",
    examples={"": {"input_shape": (8, 8, 1), "channels": (8, 16), "latent_channels": 2}},
)
def autoencoder(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    channels: Sequence[int] = (16, 32),
    latent_channels: int = 2,
    num_groups: int = 8,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "autoencoder",
) -> keras.Model:
    """Takes an image apart and puts it together again.

    Args:
        input_shape: (H, W, C) of an image; H and W can be halved once for each level but the first.
        channels: of each level, multiples of `num_groups`.
        latent_channels: of what it is taken apart into.
        num_groups: of channels that are normalised together.
        seed: of the initial weights.
        dtype: a dtype or dtype policy; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model of images, (B, H, W, C), to the same; its layers "encoder" and "decoder"
        are models to and from the latents.

    Raises:
        ValueError: for a size that is not at least 1, an image that cannot be halved, or channels
            that are no multiples of `num_groups`.
    """
    check_network(input_shape, channels, num_groups)
    check_sizes(latent_channels=latent_channels)
    blocks = UNetLayers(seed, dtype, num_groups=num_groups)

    image = keras.Input(input_shape, name="image")
    x = blocks.conv(image, channels[0], "encoder_in")
    for level, filters in enumerate(channels, 1):
        if level > 1:
            x = blocks.halve(x, f"encoder{level}_halve")
        x = blocks.residual(x, filters, f"encoder{level}")
    x = blocks.norm(x, "encoder_norm")
    x = blocks.conv(x, latent_channels, "encoder_out")
    encoder = keras.Model(image, x, name="encoder")

    latents = keras.Input(tuple(x.shape[1:]), name="latents")
    x = blocks.conv(latents, channels[-1], "decoder_in")
    for level, filters in reversed(list(enumerate(channels, 1))):
        if level < len(channels):
            x = blocks.double(x, filters, f"decoder{level}_conv")
        x = blocks.residual(x, filters, f"decoder{level}")
    x = blocks.norm(x, "decoder_norm")
    decoder = keras.Model(latents, blocks.conv(x, input_shape[-1], "decoder_out"), name="decoder")

    whole = keras.Input(input_shape, name="image")
    return keras.Model(whole, decoder(encoder(whole)), name=name)
