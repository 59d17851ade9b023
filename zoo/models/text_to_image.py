"""Text-to-image diffusion model: a U-Net conditioned on an encoded prompt.

    context, padding_mask = text_encoder(prompt)
    predicted = unet({image, time, context, padding_mask})

A model that is trained with prompts and with empty prompts can sample with classifier-free
guidance:

    predicted = unconditional + guidance_scale·(conditional - unconditional)

The prediction `unconditional` belongs to the empty prompt or to a negative prompt, which names what
the image should not show.

Source: the document's section "Modèles de Diffusion"; Ho and Salimans, "Classifier-Free Diffusion
Guidance", 2022; Rombach et al., 2022.
"""

from typing import Any

import keras

from zoo.models.text_encoder import text_encoder, text_encoder_parameter_count
from zoo.models.unet import unet
from zoo.registry import get, register
from zoo.validation import (
    Blocks,
    DType,
    ImageShape,
    Layers,
    Levels,
    Name,
    Rate,
    Seed,
    Size,
    Source,
    Timesteps,
    Vocabulary,
    validated,
)


@validated
def parameter_count(
    vocabulary_size: Vocabulary,
    max_length: Size,
    num_layers: Layers,
    num_heads: Size,
    hidden_dim: Size,
    **unet_arguments: Any,
) -> int:
    """Returns the parameter count of a `text_to_image` model with these arguments."""
    encoder_parameters = text_encoder_parameter_count(
        vocabulary_size, max_length, num_layers, num_heads, hidden_dim
    )
    unet_arguments["context_dim"] = hidden_dim
    return encoder_parameters + get("unet").parameter_count(**unet_arguments)


@register(
    section="Modèles de Diffusion",
    recipe="recipes/text_to_image.py",
    parameter_formula="see zoo/models/unet.py",
    parameter_count=parameter_count,
    loss="mean_squared_error",
    generates="images",
    examples={
        "": {
            "vocabulary_size": 12, "max_length": 8, "hidden_dim": 16, "input_shape": (8, 8, 1),
            "channels": (8, 16), "num_steps": 20,
        },
    },
)  # fmt: skip
def text_to_image(
    vocabulary_size: Vocabulary = 32,
    max_length: Size = 16,
    num_layers: Layers = 1,
    num_heads: Size = 2,
    hidden_dim: Size = 64,
    input_shape: ImageShape = (28, 28, 1),
    channels: Levels = (32, 64, 128),
    num_blocks: Blocks = 1,
    num_steps: Timesteps = 1000,
    num_groups: Size = 8,
    dropout: Rate = 0.0,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "text_to_image",
    weights: Source | None = None,
) -> keras.Model:
    """Text-to-image model: predicts the noise, the image or v from a noisy image and a prompt.

    Args:
        vocabulary_size: Number of tokens in the vocabulary of prompts; id 0 is padding, and id 1
            begins each prompt.
        max_length: Number of tokens of the longest prompt.
        num_layers: Number of transformer blocks of the text encoder.
        num_heads: Number of attention heads of the text encoder, a divisor of `hidden_dim`.
        hidden_dim: Width of a token's vector in the text encoder.
        input_shape: Shape of an image, (H, W, C). H and W must be divisible by 2^(levels - 1).
        channels: Number of channels of each of at most 8 levels of the U-Net, multiples of
            `num_groups`.
        num_blocks: Number of residual blocks at each level, downwards and upwards, at most 8.
        num_steps: Number of time steps T of the noise schedule.
        num_groups: Number of groups in group normalization.
        dropout: Dropout rate within a residual block, in [0, 1).
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from {"image": (B, H, W, C), "time": (B,) int in [0, num_steps),
        "prompt": (B, L) int} to (B, H, W, C). Images without noise have pixels in [-1, 1]:
        pixel/127.5 - 1.

    Raises:
        ValueError: If an argument of the text encoder or the U-Net is invalid. The text names the
            argument.
    """
    encoder = text_encoder(
        vocabulary_size, max_length, num_layers, num_heads, hidden_dim, seed, dtype
    )
    network = unet(
        input_shape, channels, num_blocks, num_steps, hidden_dim, num_groups, dropout, seed, dtype
    )
    image = keras.Input(input_shape, name="image")
    time = keras.Input((), dtype="int32", name="time")
    prompt = keras.Input((None,), dtype="int32", name="prompt")
    context, padding_mask = encoder(prompt)
    predicted = network(
        {"image": image, "time": time, "context": context, "context_mask": padding_mask}
    )
    return keras.Model({"image": image, "time": time, "prompt": prompt}, predicted, name=name)
