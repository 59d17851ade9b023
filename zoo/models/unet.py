"""U-Net: the denoising network of a diffusion model.

The downward path halves the resolution from level to level, and the upward path doubles it again.
Skip connections concatenate the outputs of the downward path to the inputs of the upward path. With
levels of c_1, c_2, ... channels and one residual block each:

    image                     (B, H, W, C)
    conv_in                   (B, H, W, c_1)
    down1, down2, ...         (B, H, W, c_1), (B, H/2, W/2, c_2), ...        residual blocks
    middle1, attention, middle2                                              at the last level
    ..., up2, up1             (B, H, W, c_1)                                 residual blocks
    norm_out, conv_out        (B, H, W, C)

A residual block from a to b channels has

    2·a + 2·b + (9·a + 1)·b + (9·b + 1)·b + (4·c_1 + 1)·2·b       and (a + 1)·b more if a is not b

parameters. `parameter_count` adds the convolutions and attention blocks.

The time step modulates each residual block by a scale and a shift of each channel. At the last
level, pixels have self-attention and, in a conditional model, cross-attention to the tokens of the
context. The mean of the context's tokens is added to the time embedding.

Source: the document's section "Modèles de Diffusion"; Ronneberger et al., "U-Net", 2015; Ho et al.,
2020; Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021; Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models", 2022 (cross-attention to a text).
"""

from itertools import pairwise
from typing import Any

import keras

from zoo import initializers, random
from zoo.layers.core import Conv2D, Dense, GroupNormalization
from zoo.layers.image import Downsample, Flatten, MaskedMean, TimeEmbedding, Upsample
from zoo.layers.transformer_block import TransformerBlock, block_parameter_count
from zoo.registry import register
from zoo.validation import (
    Blocks,
    DType,
    ImageShape,
    Index,
    Levels,
    Name,
    Rate,
    Seed,
    Size,
    Source,
    Timesteps,
    validated,
)

Tensor = Any

_RESIDUAL_INIT_SCALE = 0.1  # scale of the initial weights of a layer that ends a residual branch
HEAD_DIM = 32  # width of an attention head


class UNetLayers:
    """Factory of named layers for image networks with common options.

    Each method creates layers and applies them to a tensor. Initial weights depend on the seed and
    the layer's name only.

    Args:
        seed: Seed of the initial weights and dropout masks.
        dtype: A dtype or dtype policy of all layers.
        dropout: Dropout rate within a residual block, in [0, 1).
        num_groups: Number of groups in group normalization.
    """

    @validated
    def __init__(self, seed: Seed, dtype: DType | None, dropout: Rate = 0.0, num_groups: Size = 8):
        self.seed = seed
        self.dtype = dtype
        self.dropout = dropout
        self.num_groups = num_groups

    def conv(self, x: Tensor, filters: int, name: str, init_scale: float = 1.0) -> Tensor:
        """Applies a 3×3 convolution with initial weights scaled by `init_scale`."""
        stddev = init_scale / (3 * 3 * x.shape[-1]) ** 0.5
        layer = Conv2D(
            filters, 3, padding="same", data_format="channels_last",
            kernel_initializer=initializers.Normal(self.seed, f"{name}/kernel", stddev),
            dtype=self.dtype, name=name,
        )  # fmt: skip
        return layer(x)

    def dense(self, x: Tensor, units: int, name: str, activation: Any = None) -> Tensor:
        """Applies a dense layer."""
        kernel = initializers.Normal(self.seed, f"{name}/kernel")
        layer = Dense(units, activation, kernel_initializer=kernel, dtype=self.dtype, name=name)
        return layer(x)

    def norm(self, x: Tensor, name: str, scale_shift: Tensor | None = None) -> Tensor:
        """Applies group normalization and SiLU, modulated by an optional scale_shift, (B, 2·C)."""
        layer = GroupNormalization(self.num_groups, "silu", dtype=self.dtype, name=name)
        return layer(x) if scale_shift is None else layer(x, scale_shift)

    def downsample(self, x: Tensor, name: str) -> Tensor:
        """Halves the resolution."""
        return Downsample(dtype=self.dtype, name=name)(x)

    def upsample(self, x: Tensor, filters: int, name: str) -> Tensor:
        """Doubles the resolution and applies a 3×3 convolution."""
        return self.conv(Upsample(dtype=self.dtype, name=f"{name}_upsample")(x), filters, name)

    def residual(
        self, x: Tensor, filters: int, name: str, time_embedding: Tensor | None = None
    ) -> Tensor:
        """Applies a residual block of two convolutions, modulated by an optional time embedding."""
        h = self.conv(self.norm(x, f"{name}_norm1"), filters, f"{name}_conv1")
        scale_shift = None
        if time_embedding is not None:  # (B, dim) -> (B, 2·filters)
            scale_shift = self.dense(time_embedding, 2 * filters, f"{name}_time")
        h = self.norm(h, f"{name}_norm2", scale_shift)
        if self.dropout:
            h = random.Dropout(self.dropout, self.seed, dtype=self.dtype, name=f"{name}_dropout")(h)
        h = self.conv(h, filters, f"{name}_conv2", _RESIDUAL_INIT_SCALE)
        if x.shape[-1] != filters:
            x = self.dense(x, filters, f"{name}_skip")
        return keras.layers.Add(dtype=self.dtype, name=f"{name}_add")([x, h])

    def attention(
        self,
        x: Tensor,
        name: str,
        context: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Applies a transformer block to the pixels.

        Args:
            x: Feature map, (B, H, W, C).
            name: Name of the block.
            context: Vectors that cross-attention reads, (B, L, context_dim); None for a block
                without cross-attention.
            padding_mask: Boolean mask of the context, (B, L), false at padding.
        """
        shape, channels = x.shape[1:], x.shape[-1]
        x = Flatten(dtype=self.dtype, name=f"{name}_flatten")(x)
        if context is not None:
            context = self.dense(context, channels, f"{name}_context")
        block = TransformerBlock(
            2 * channels, "gelu", max(channels // HEAD_DIM, 1),
            cross_attention=context is not None, seed=self.seed, dtype=self.dtype, name=name,
        )  # fmt: skip
        x = block(x) if context is None else block(x, context, context_mask=padding_mask)
        return keras.layers.Reshape(shape, dtype=self.dtype, name=f"{name}_reshape")(x)


@validated
def residual_parameter_count(inputs: Size, filters: Size, time_dim: Index = 0) -> int:
    """Returns the parameter count of a residual block in closed form.

    Args:
        inputs: Number of input channels.
        filters: Number of output channels.
        time_dim: Width of the time embedding; 0 for a block without time embedding.
    """
    norms = 2 * inputs + 2 * filters
    convs = (9 * inputs + 1) * filters + (9 * filters + 1) * filters
    scale_shift = (time_dim + 1) * 2 * filters if time_dim else 0
    skip = (inputs + 1) * filters if inputs != filters else 0
    return norms + convs + scale_shift + skip


@validated
def parameter_count(
    input_shape: ImageShape,
    channels: Levels,
    num_blocks: Blocks,
    context_dim: Size | None,
    **_: object,
) -> int:
    """Returns the parameter count of a `unet` with these arguments."""
    time_dim = 4 * channels[0]
    last = channels[-1]

    def block(inputs: int, filters: int) -> int:
        return residual_parameter_count(inputs, filters, time_dim)

    def attention() -> int:
        heads = max(last // HEAD_DIM, 1)
        if context_dim is None:
            return block_parameter_count(last, 2 * last, heads)
        context_dense = (context_dim + 1) * last
        return context_dense + block_parameter_count(last, 2 * last, heads, cross_attention=True)

    total = (channels[0] + 1) * time_dim + (time_dim + 1) * time_dim
    if context_dim is not None:
        total += (context_dim + 1) * time_dim
    total += (9 * input_shape[-1] + 1) * channels[0]  # conv_in
    for inputs, filters in zip((channels[0], *channels), channels):
        total += block(inputs, filters) + (num_blocks - 1) * block(filters, filters)
        total += num_blocks * block(2 * filters, filters)  # upward path
    total += 2 * num_blocks * attention()
    total += 2 * block(last, last) + attention()  # middle
    for filters, inputs in pairwise(channels):  # convolution after each upsampling
        total += (9 * inputs + 1) * filters
    return total + 2 * channels[0] + (9 * channels[0] + 1) * input_shape[-1]


@register(
    section="Modèles de Diffusion",
    recipe="recipes/diffusion.py",
    parameter_formula="see zoo/models/unet.py",
    parameter_count=parameter_count,
    loss="mean_squared_error",
    generates="images",
    examples={
        "": {"input_shape": (8, 8, 1), "channels": (8, 16), "num_steps": 20, "dropout": 0.1},
        "colour": {"input_shape": (4, 8, 3), "channels": (16,), "num_blocks": 2, "num_steps": 20},
    },
)  # fmt: skip
def unet(
    input_shape: ImageShape = (28, 28, 1),
    channels: Levels = (32, 64, 128),
    num_blocks: Blocks = 1,
    num_steps: Timesteps = 1000,
    context_dim: Size | None = None,
    num_groups: Size = 8,
    dropout: Rate = 0.0,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "unet",
    weights: Source | None = None,
) -> keras.Model:
    """U-Net: predicts the noise, the image or v from a noisy image and its time step.

    Args:
        input_shape: Shape of an image, (H, W, C). H and W must be divisible by 2^(levels - 1).
        channels: Number of channels of each of at most 8 levels, multiples of `num_groups`. The
            last one must be at most 32, or a multiple of 32, the width of an attention head.
        num_blocks: Number of residual blocks at each level, downwards and upwards, at most 8.
        num_steps: Number of time steps T of the noise schedule.
        context_dim: Width of the context's tokens; None for a model without cross-attention.
        num_groups: Number of groups in group normalization.
        dropout: Dropout rate within a residual block, in [0, 1).
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from {"image": (B, H, W, C), "time": (B,) int in [0, num_steps)} to
        predictions, (B, H, W, C). Images without noise have pixels in [-1, 1]: pixel/127.5 - 1.
        With a `context_dim`, the model has two more inputs: "context",
        (B, L, context_dim), and "context_mask", (B, L) bool, false at padding. Each row of the mask
        must contain at least one token.

    Raises:
        ValueError: If a size is not at least 1, `input_shape` is not divisible as required,
            `channels` are no multiples of `num_groups` or, in attention, of 32, or `dropout` lies
            outside [0, 1).
    """
    check_levels(input_shape, channels, num_groups)
    last = channels[-1]
    if last > HEAD_DIM and last % HEAD_DIM:
        raise ValueError(
            f"The last of `channels` must be a multiple of {HEAD_DIM}, the width of an attention "
            f"head, or less. Received: channels={tuple(channels)}"
        )
    layers = UNetLayers(seed, dtype, dropout, num_groups)
    image = keras.Input(input_shape, name="image")
    time = keras.Input((), dtype="int32", name="time")
    inputs = {"image": image, "time": time}
    context: tuple[Tensor, ...] = ()
    if context_dim is not None:
        inputs["context"] = keras.Input((None, context_dim), name="context")
        inputs["context_mask"] = keras.Input((None,), dtype="bool", name="context_mask")
        context = inputs["context"], inputs["context_mask"]

    time_embedding = TimeEmbedding(num_steps, channels[0], dtype=dtype, name="time_embedding")(time)
    time_embedding = layers.dense(time_embedding, 4 * channels[0], "time1", "silu")
    time_embedding = layers.dense(time_embedding, 4 * channels[0], "time2")
    if context:
        context_mean = MaskedMean(dtype=dtype, name="context_mean")(*context)
        context_mean = layers.dense(context_mean, 4 * channels[0], "context_whole")
        time_embedding = keras.layers.Add(dtype=dtype, name="time_and_context")(
            [time_embedding, context_mean]
        )
    time_embedding = keras.layers.Activation("silu", dtype=dtype, name="time_activation")(
        time_embedding
    )

    def attend(x: Tensor, level: int, name: str) -> Tensor:
        return layers.attention(x, name, *context) if level == len(channels) else x

    x = layers.conv(image, channels[0], "conv_in")
    skips = []
    for level, filters in enumerate(channels, 1):
        if level > 1:
            x = layers.downsample(x, f"down{level}_downsample")
        for number in range(1, num_blocks + 1):
            x = layers.residual(x, filters, f"down{level}_{number}", time_embedding)
            x = attend(x, level, f"down{level}_{number}_attention")
            skips.append(x)
    x = layers.residual(x, last, "middle1", time_embedding)
    x = layers.attention(x, "middle_attention", *context)
    x = layers.residual(x, last, "middle2", time_embedding)
    for level, filters in reversed(list(enumerate(channels, 1))):
        if level < len(channels):
            x = layers.upsample(x, filters, f"up{level}_conv")
        for number in range(1, num_blocks + 1):
            concatenate = keras.layers.Concatenate(dtype=dtype, name=f"up{level}_{number}_join")
            x = concatenate([x, skips.pop()])
            x = layers.residual(x, filters, f"up{level}_{number}", time_embedding)
            x = attend(x, level, f"up{level}_{number}_attention")
    x = layers.norm(x, "norm_out")
    return keras.Model(
        inputs, layers.conv(x, input_shape[-1], "conv_out", _RESIDUAL_INIT_SCALE), name=name
    )


@validated
def check_levels(input_shape: ImageShape, channels: Levels, num_groups: Size) -> None:
    """Checks the relations between the sizes of a network with several resolutions.

    Args:
        input_shape: Shape of an image, (H, W, C).
        channels: Number of channels of each level.
        num_groups: Number of groups in group normalization.

    Raises:
        ValueError: If H or W is not divisible by 2^(levels - 1), or a number of channels is not
            divisible by `num_groups`.
    """
    factor = 2 ** (len(channels) - 1)
    if input_shape[0] % factor or input_shape[1] % factor:
        raise ValueError(
            f"`input_shape` must have a height and a width divisible by {factor}, since "
            f"{len(channels)} levels of `channels` halve them {len(channels) - 1} times. Received: "
            f"input_shape={tuple(input_shape)}, channels={tuple(channels)}"
        )
    if any(filters % num_groups for filters in channels):
        raise ValueError(
            f"`channels` must be multiples of `num_groups`={num_groups}. Received: "
            f"channels={tuple(channels)}"
        )
