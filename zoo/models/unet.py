"""The network that sees a noisy image, and says what of it is noise.

It halves the image level by level and doubles it again; on the way up each level is given what it
made on the way down. With levels of c_1, c_2, ... channels, one block each:

    image                     (B, H, W, C)
    conv_in                   (B, H, W, c_1)
    down1, down2, ...         (B, H, W, c_1), (B, H/2, W/2, c_2), ...        residual blocks
    middle1, attention, middle2                                              of the last level
    ..., up2, up1             (B, H, W, c_1)                                 residual blocks
    norm_out, conv_out        (B, H, W, C)

A residual block from a to b channels has

    2·a + 2·b + (9·a + 1)·b + (9·b + 1)·b + (4·c_1 + 1)·2·b       and (a + 1)·b more if a is not b

parameters, and a model as many as its blocks, its convolutions, and attention's: `_count`.

Every residual block is told the time step, by a scale and a shift for each channel. At the last
level the pixels attend to one another and, where there is a text, to its tokens. What a text says
as a whole also goes the time step's way.

Source: the document's section "Modèles de Diffusion"; Ronneberger et al., "U-Net", 2015; Ho et al.,
2020; Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021; Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models", 2022 (attention to a text).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
from keras import ops

from zoo import initializers, random
from zoo.backends import backend
from zoo.layers.attention import sinusoidal_table
from zoo.layers.core import Conv2D, Dense, GroupNormalization
from zoo.layers.transformer_block import TransformerBlock, block_parameter_count
from zoo.registry import register
from zoo.validation import check_dropout, check_sizes

Tensor = Any

_RESIDUAL_INIT_SCALE = 0.1  # of what is added to something: its weights begin that much smaller
HEAD_DIM = 32


@keras.saving.register_keras_serializable("zoo")
class TimeEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """Sines and cosines of a time step: (B,) int in [0, num_steps) to (B, dim).

    Raises:
        ValueError: for a time outside, as `zoo.layers.core.Embedding` does.
    """

    def __init__(self, num_steps: int, dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_steps = num_steps
        self.dim = dim
        self._table = sinusoidal_table(num_steps, dim)

    def call(self, time: Tensor) -> Tensor:
        time = backend.check_token_ids(time, self.num_steps, self.name)
        return ops.take(ops.convert_to_tensor(self._table, dtype=self.compute_dtype), time, axis=0)

    def compute_output_spec(self, time: Tensor) -> Any:
        return keras.KerasTensor((*time.shape, self.dim), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_steps": self.num_steps, "dim": self.dim}


@keras.saving.register_keras_serializable("zoo")
class MaskedMean(keras.layers.Layer):  # type: ignore[misc]
    """The mean of the tokens that count: (B, L, dim), (B, L) bool to (B, dim)."""

    def call(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        weights = ops.cast(padding_mask, x.dtype)[..., None]
        return ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1)

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        return (input_shape[0], input_shape[-1])


@keras.saving.register_keras_serializable("zoo")
class Downsample(keras.layers.Layer):  # type: ignore[misc]
    """The mean of each two by two pixels: (B, H, W, C) to (B, H/2, W/2, C)."""

    def call(self, x: Tensor) -> Tensor:
        # A sum over both axes of two at once reads memory in small steps, which takes far longer.
        _, height, width, channels = x.shape
        above, below = ops.unstack(ops.reshape(x, (-1, height // 2, 2, width, channels)), 2, axis=2)
        x = ops.reshape(above + below, (-1, height // 2, width // 2, 2, channels))
        left, right = ops.unstack(x, 2, axis=3)
        return 0.25 * (left + right)

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        return (batch, height // 2, width // 2, channels)


@keras.saving.register_keras_serializable("zoo")
class Upsample(keras.layers.Layer):  # type: ignore[misc]
    """Each pixel two by two times: (B, H, W, C) to (B, 2·H, 2·W, C).

    A convolution follows it. A transposed convolution would reach some pixels more often than their
    neighbours, and leave a checkerboard.
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
    """Pixels as a row of tokens: (B, H, W, C) to (B, H·W, C)."""

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        return (batch, height * width, channels)


class UNetLayers:
    """Makes the layers that an image goes through; each has a name, and weights of the seed's.

    Args:
        seed, dtype: of all layers.
        dropout: in a residual block.
        num_groups: of the normalisations.
    """

    def __init__(self, seed: int, dtype: Any, dropout: float = 0.0, num_groups: int = 8):
        self.seed = seed
        self.dtype = dtype
        self.dropout = dropout
        self.num_groups = num_groups

    def conv(self, x: Tensor, filters: int, name: str, small: bool = False) -> Tensor:
        """A convolution of 3×3 pixels."""
        stddev = (_RESIDUAL_INIT_SCALE if small else 1) / (3 * 3 * x.shape[-1]) ** 0.5
        layer = Conv2D(
            filters, 3, padding="same", data_format="channels_last",
            kernel_initializer=initializers.Normal(self.seed, f"{name}/kernel", stddev),
            dtype=self.dtype, name=name,
        )  # fmt: skip
        return layer(x)

    def dense(self, x: Tensor, units: int, name: str, activation: Any = None) -> Tensor:
        kernel = initializers.Normal(self.seed, f"{name}/kernel")
        layer = Dense(units, activation, kernel_initializer=kernel, dtype=self.dtype, name=name)
        return layer(x)

    def norm(self, x: Tensor, name: str, scale_shift: Tensor | None = None) -> Tensor:
        """With a scale and a shift for each channel, scale_shift: (B, 2·C), if they are."""
        layer = GroupNormalization(self.num_groups, "silu", dtype=self.dtype, name=name)
        return layer(x) if scale_shift is None else layer(x, scale_shift)

    def halve(self, x: Tensor, name: str) -> Tensor:
        return Downsample(dtype=self.dtype, name=name)(x)

    def double(self, x: Tensor, filters: int, name: str) -> Tensor:
        return self.conv(Upsample(dtype=self.dtype, name=f"{name}_double")(x), filters, name)

    def residual(self, x: Tensor, filters: int, name: str, time: Tensor | None = None) -> Tensor:
        """Two convolutions, added to what came in. `time`: (B, dim), if they are scale_shift."""
        h = self.conv(self.norm(x, f"{name}_norm1"), filters, f"{name}_conv1")
        scale_shift = None if time is None else self.dense(time, 2 * filters, f"{name}_time")
        h = self.norm(h, f"{name}_norm2", scale_shift)
        if self.dropout:
            h = random.Dropout(self.dropout, self.seed, dtype=self.dtype, name=f"{name}_dropout")(h)
        h = self.conv(h, filters, f"{name}_conv2", small=True)
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
        """A transformer's block over the pixels, with attention to a text if there is one."""
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


def residual_parameter_count(inputs: int, filters: int, time_dim: int = 0) -> int:
    """Parameters of a residual block, in closed form."""
    norms = 2 * inputs + 2 * filters
    convs = (9 * inputs + 1) * filters + (9 * filters + 1) * filters
    scale_shift = (time_dim + 1) * 2 * filters if time_dim else 0
    skip = (inputs + 1) * filters if inputs != filters else 0
    return norms + convs + scale_shift + skip


def parameter_count(
    input_shape: tuple[int, int, int],
    channels: Sequence[int],
    num_blocks: int,
    context_dim: int | None,
    **_: object,
) -> int:
    time_dim = 4 * channels[0]
    last = channels[-1]

    def block(inputs: int, filters: int) -> int:
        return residual_parameter_count(inputs, filters, time_dim)

    def attention() -> int:
        heads = max(last // HEAD_DIM, 1)
        found = block_parameter_count(
            last, 2 * last, heads, cross_attention=context_dim is not None
        )
        return found + ((context_dim + 1) * last if context_dim is not None else 0)

    total = (channels[0] + 1) * time_dim + (time_dim + 1) * time_dim
    if context_dim is not None:
        total += (context_dim + 1) * time_dim
    total += (9 * input_shape[-1] + 1) * channels[0]  # conv_in
    for before, after in zip((channels[0], *channels), channels):
        total += block(before, after) + (num_blocks - 1) * block(after, after)
        total += num_blocks * block(2 * after, after)  # on the way up
    total += 2 * num_blocks * attention()
    total += 2 * block(last, last) + attention()  # middle
    for lower, upper in pairwise(channels):  # on the way up, after each doubling
        total += (9 * upper + 1) * lower
    return total + 2 * channels[0] + (9 * channels[0] + 1) * input_shape[-1]


@register(
    section="Modèles de Diffusion",
    recipe="recipes/diffusion.py",
    parameters="see zoo/models/unet.py",
    count=parameter_count,
    loss="mean_squared_error",
    generates="images",
    examples={
        "": {"input_shape": (8, 8, 1), "channels": (8, 16), "num_steps": 20, "dropout": 0.1},
        "colour": {"input_shape": (4, 8, 3), "channels": (16,), "num_blocks": 2, "num_steps": 20},
    },
)  # fmt: skip
def unet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    channels: Sequence[int] = (32, 64, 128),
    num_blocks: int = 1,
    num_steps: int = 1000,
    context_dim: int | None = None,
    num_groups: int = 8,
    dropout: float = 0.0,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "unet",
) -> keras.Model:
    """Sees a noisy image, and predicts the noise, the image, or v, as it is trained to.

    Args:
        input_shape: (H, W, C) of an image; H and W can be halved once for each level but the first.
        channels: of each level, multiples of `num_groups`.
        num_blocks: residual blocks of each level, on the way down and on the way up.
        num_steps: T, the steps of the schedule.
        context_dim: width of a text's tokens, if it attends to one.
        num_groups: of channels that are normalised together.
        dropout: fraction dropped within a residual block, in [0, 1).
        seed: of the initial weights and the dropout masks; the same on every backend.
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from {"image": (B, H, W, C), "time": (B,) int in [0, num_steps)} to (B,
        H, W, C). With a `context_dim` it also takes "context", (B, L, context_dim), and
        "context_mask", (B, L) bool, true where there is a token; one at least of each row.

    Raises:
        ValueError: for a size that is not at least 1, an image that cannot be halved, channels that
            are no multiples of `num_groups` or, in attention, of 32, or `dropout` outside [0, 1).
    """
    check_network(input_shape, channels, num_groups, num_blocks=num_blocks, num_steps=num_steps)
    check_dropout(dropout)
    check_sizes(context_dim=1 if context_dim is None else context_dim)
    last = channels[-1]
    if last > HEAD_DIM and last % HEAD_DIM:
        raise ValueError(
            f"The last of `channels` must be a multiple of {HEAD_DIM}, a head's width in "
            f"attention, or less. Received: channels={tuple(channels)}"
        )
    blocks = UNetLayers(seed, dtype, dropout, num_groups)
    image = keras.Input(input_shape, name="image")
    time = keras.Input((), dtype="int32", name="time")
    inputs = {"image": image, "time": time}
    text: tuple[Tensor, ...] = ()
    if context_dim is not None:
        inputs["context"] = keras.Input((None, context_dim), name="context")
        inputs["context_mask"] = keras.Input((None,), dtype="bool", name="context_mask")
        text = inputs["context"], inputs["context_mask"]

    time_embedding = TimeEmbedding(num_steps, channels[0], dtype=dtype, name="time_embedding")(time)
    time_embedding = blocks.dense(time_embedding, 4 * channels[0], "time1", "silu")
    time_embedding = blocks.dense(time_embedding, 4 * channels[0], "time2")
    if text:
        whole = MaskedMean(dtype=dtype, name="context_mean")(*text)
        whole = blocks.dense(whole, 4 * channels[0], "context_whole")
        time_embedding = keras.layers.Add(dtype=dtype, name="time_and_context")(
            [time_embedding, whole]
        )
    time_embedding = keras.layers.Activation("silu", dtype=dtype, name="time_activation")(
        time_embedding
    )

    def attend(x: Tensor, level: int, name: str) -> Tensor:
        return blocks.attention(x, name, *text) if level == len(channels) else x

    x = blocks.conv(image, channels[0], "conv_in")
    kept = []
    for level, filters in enumerate(channels, 1):
        if level > 1:
            x = blocks.halve(x, f"down{level}_halve")
        for number in range(1, num_blocks + 1):
            x = blocks.residual(x, filters, f"down{level}_{number}", time_embedding)
            x = attend(x, level, f"down{level}_{number}_attention")
            kept.append(x)
    x = blocks.residual(x, last, "middle1", time_embedding)
    x = blocks.attention(x, "middle_attention", *text)
    x = blocks.residual(x, last, "middle2", time_embedding)
    for level, filters in reversed(list(enumerate(channels, 1))):
        if level < len(channels):
            x = blocks.double(x, filters, f"up{level}_conv")
        for number in range(1, num_blocks + 1):
            join = keras.layers.Concatenate(dtype=dtype, name=f"up{level}_{number}_join")
            x = blocks.residual(
                join([x, kept.pop()]), filters, f"up{level}_{number}", time_embedding
            )
            x = attend(x, level, f"up{level}_{number}_attention")
    x = blocks.norm(x, "norm_out")
    return keras.Model(inputs, blocks.conv(x, input_shape[-1], "conv_out", small=True), name=name)


def check_network(
    input_shape: Sequence[int], channels: Sequence[int], num_groups: int, **sizes: int
) -> None:
    """Raises ValueError for an image that cannot be halved, or channels that make no groups."""
    check_sizes(num_groups=num_groups, **sizes)
    if len(input_shape) != 3:
        raise ValueError(
            "`input_shape` must be (height, width, channels). "
            f"Received: input_shape={tuple(input_shape)}"
        )
    if not channels:
        raise ValueError("`channels` must name one level at least. Received: channels=()")
    for name, sizes_of in (("input_shape", input_shape), ("channels", channels)):
        for size in sizes_of:
            check_sizes(**{name: size})
    factor = 2 ** (len(channels) - 1)
    if input_shape[0] % factor or input_shape[1] % factor:
        raise ValueError(
            f"`input_shape` must have a height and a width divisible by {factor}, which "
            f"{len(channels)} levels of `channels` halve {len(channels) - 1} times. Received: "
            f"input_shape={tuple(input_shape)}, channels={tuple(channels)}"
        )
    wrong = [count for count in channels if count % num_groups]
    if wrong:
        raise ValueError(
            f"`channels` must be multiples of `num_groups`={num_groups}. Received: "
            f"channels={tuple(channels)}"
        )
