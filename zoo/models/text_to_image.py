"""Images from a text: the network reads what it is to see in the noise.

    context, padding_mask = text_encoder(prompt)
    predicted = unet({image, time, context, padding_mask})

Trained with and without the prompt, it says how much the prompt matters, and may be made to believe
that it matters more (classifier-free guidance):

    predicted = nothing + guidance_scale·(asked - nothing)

where `nothing` is what it predicts of an empty prompt, or of a negative one: what the image is not
to be.

Source: the document's section "Modèles de Diffusion"; Ho and Salimans, "Classifier-Free Diffusion
Guidance", 2022; Rombach et al., 2022.
"""

from collections.abc import Sequence
from typing import Any

import keras

from zoo.models.text_encoder import text_encoder, text_encoder_parameter_count
from zoo.models.unet import unet
from zoo.registry import get, register


def _count(
    vocabulary_size: int,
    max_length: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    **network: Any,
) -> int:
    text = text_encoder_parameter_count(
        vocabulary_size, max_length, num_layers, num_heads, hidden_dim
    )
    return text + get("unet").count(**{**network, "context_dim": hidden_dim})


@register(
    section="Modèles de Diffusion",
    recipe="recipes/text_to_image.py",
    parameters="see zoo/models/unet.py",
    count=_count,
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
    vocabulary_size: int = 32,
    max_length: int = 16,
    num_layers: int = 1,
    num_heads: int = 2,
    hidden_dim: int = 64,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    channels: Sequence[int] = (32, 64, 128),
    num_blocks: int = 1,
    num_steps: int = 1000,
    num_groups: int = 8,
    dropout: float = 0.0,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "text_to_image",
) -> keras.Model:
    """Sees a noisy image and a prompt, and predicts the noise, the image, or v.

    Args:
        vocabulary_size: how many tokens there are in prompts; 0 is padding, 1 stands first.
        max_length: tokens of the longest prompt.
        num_layers: blocks of the text encoder.
        num_heads: of each of its attentions; a divisor of `hidden_dim`.
        hidden_dim: width of a token's vector in it.
        input_shape: (H, W, C) of an image; H and W can be halved once for each level but the first.
        channels: of each level of the U-Net, multiples of `num_groups`.
        num_blocks: residual blocks of each level, on the way down and on the way up.
        num_steps: T, the steps of the schedule.
        num_groups: of channels that are normalised together.
        dropout: fraction dropped within a residual block, in [0, 1).
        seed: of the initial weights and the dropout masks; the same on every backend.
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from {"image": (B, H, W, C), "time": (B,) int in [0, num_steps),
        "prompt": (B, L) int} to (B, H, W, C).

    Raises:
        ValueError: as `text_encoder` and `unet` do.
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
