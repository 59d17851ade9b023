"""`zoo.text_to_image` in plain PyTorch: network, training step and sampler.

benchmarks/diffusion_speed.py compares the zoo with it. With the zoo's weights, see `load`, the
outputs are the same. Images are (B, C, H, W). Prompts are (B, L), begin with 1 and are padded with
0. Each level of the U-Net has one residual block.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

GROUPS, HEAD_DIM = 8, 32
PROMPT_DROPOUT = 0.1  # fraction of the training images without a prompt


# ------------------------------------------------------------------ the network


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        projected = self.query(x), self.key(context), self.value(context)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(y.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, inner: int, heads: int, cross: bool = False):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        if cross:
            self.cross_attention_norm = nn.LayerNorm(dim)
            self.cross_attention = Attention(dim, heads)
        self.feed_forward_norm = nn.LayerNorm(dim)
        up, down = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.feed_forward = nn.Sequential(OrderedDict(up=up, gelu=nn.GELU(), down=down))

    def forward(self, x: Tensor, mask: Tensor | None, *context: Tensor) -> Tensor:
        """x: (B, T, dim); mask: (B, 1, 1, T); context: (B, S, dim) and its padding mask, if any."""
        normalized = self.attention_norm(x)
        x = x + self.attention(normalized, normalized, mask)
        if context:
            x = x + self.cross_attention(self.cross_attention_norm(x), *context)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TextEncoder(nn.Module):
    def __init__(self, vocabulary_size: int, max_length: int, layers: int, heads: int, dim: int):
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, dim)
        self.word_positions = nn.Embedding(max_length, dim)
        self.text_block = nn.ModuleList(
            TransformerBlock(dim, 4 * dim, heads) for _ in range(layers)
        )
        self.text_norm = nn.LayerNorm(dim)

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded tokens, (B, L, dim), and their padding mask, (B, 1, 1, L)."""
        mask = (prompt != 0)[:, None, None]
        x = self.words(prompt) + self.word_positions.weight[: prompt.shape[1]]
        for block in self.text_block:
            x = block(x, mask)
        return self.text_norm(x), mask


class PixelAttention(TransformerBlock):
    """Self-attention of the pixels and cross-attention to a text."""

    def __init__(self, channels: int, context_dim: int):
        super().__init__(channels, 2 * channels, max(channels // HEAD_DIM, 1), cross=True)
        self.context = nn.Linear(context_dim, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H·W, C)
        pixels = super().forward(pixels, None, self.context(context), mask)
        return pixels.transpose(1, 2).reshape(x.shape)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Residual(nn.Module):
    """Residual block scaled and shifted by the time embedding; the last level has attention."""

    def __init__(
        self, inputs: int, outputs: int, time_dim: int, attention: nn.Module | None = None
    ):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, outputs), conv(outputs, outputs)
        self.time = nn.Linear(time_dim, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = attention

    def forward(self, x: Tensor, time_embedding: Tensor, *text: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time_embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        h = self.skip(x) + h
        return h if self.attention is None else self.attention(h, *text)


class UNet(nn.Module):
    def __init__(self, depth: int, channels: Sequence[int], steps: int, context_dim: int):
        super().__init__()
        first, last, time_dim = channels[0], channels[-1], 4 * channels[0]
        self.register_buffer("times", sinusoids(steps, first), persistent=False)
        self.time1, self.time2 = nn.Linear(first, time_dim), nn.Linear(time_dim, time_dim)
        self.context_whole = nn.Linear(context_dim, time_dim)
        self.conv_in = conv(depth, first)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip((first, *channels), channels), 1):
            for blocks, width in (self.down, inputs), (self.up, 2 * outputs):
                attention = PixelAttention(last, context_dim) if level == len(channels) else None
                blocks.append(Residual(width, outputs, time_dim, attention))
        self.up_conv = nn.ModuleList(conv(upper, lower) for lower, upper in pairwise(channels))
        self.middle1, self.middle2 = (Residual(last, last, time_dim) for _ in range(2))
        self.middle_attention = PixelAttention(last, context_dim)
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, first), conv(first, depth)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x: (B, C, H, W); t: (B,); context and mask: outputs of the text encoder."""
        text = context, mask
        padding_mask = mask.flatten(1)[..., None].to(context.dtype)  # (B, L, 1)
        mean = (context * padding_mask).sum(1) / padding_mask.sum(1)
        time = self.time2(F.silu(self.time1(self.times[t])))
        time = F.silu(time + self.context_whole(mean))
        x, skips = self.conv_in(x), []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x, time, *text)
            skips.append(x)
        x = self.middle2(self.middle_attention(self.middle1(x, time), *text), time)
        for level, block in reversed(list(enumerate(self.up))):
            if level < len(self.up_conv):
                x = self.up_conv[level](F.interpolate(x, scale_factor=2))
            x = block(torch.cat([x, skips[level]], dim=1), time, *text)
        return self.conv_out(F.silu(self.norm_out(x)))


class TextToImage(nn.Module):
    """Text encoder and U-Net, with the arguments of `zoo.text_to_image`."""

    def __init__(
        self,
        vocabulary_size: int = 32,
        max_length: int = 16,
        num_layers: int = 1,
        num_heads: int = 2,
        hidden_dim: int = 64,
        input_shape: tuple[int, int, int] = (28, 28, 1),
        channels: Sequence[int] = (32, 64, 128),
        num_steps: int = 1000,
    ):
        super().__init__()
        self.text = TextEncoder(vocabulary_size, max_length, num_layers, num_heads, hidden_dim)
        self.unet = UNet(input_shape[-1], channels, num_steps, hidden_dim)
        for name, table in zip(("signal", "sigma"), cosine_schedule(num_steps)):
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        return self.unet(x, t, *self.text(prompt))


def sinusoids(length: int, dim: int) -> Tensor:
    """Alternating sines and cosines of falling frequency, (length, dim)."""
    frequencies = 10000 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def cosine_schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Factors of the image and of the noise after each step, (steps,) each."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()


# ------------------------------------------------------------------ the zoo's weights

_KINDS = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "table": "weight",
          "beta": "bias", "bias": "bias"}  # fmt: skip


def load(model: TextToImage, weights: Mapping[str, np.ndarray]) -> None:
    """Assigns the weights of a `zoo.text_to_image`.

    Args:
        model: Model of the same size.
        weights: Weights by the paths of the zoo's variables. The names are the same here, except
            for separators and for levels and blocks, which are numbered from 0.

    Raises:
        ValueError: If there are weights that the model lacks.
    """
    arrays = {}
    for path, array in weights.items():
        parts, _, kind = path.rpartition("/")
        parts = re.sub(r"^up(\d+)_conv$", r"up_conv\1", parts)
        parts = re.sub(r"^(down|up|up_conv|text_block)(\d+)(_1)?", _numbered_from_0, parts)
        if kind == "kernel":  # (..., inputs, outputs) -> (outputs, inputs, ...)
            array = np.moveaxis(array, (-1, -2), (0, 1))
        arrays[_without_separators(parts + _KINDS[kind])] = torch.tensor(array)
    state = {
        name: arrays.pop(_without_separators(name.partition(".")[2])).reshape(value.shape)
        for name, value in model.state_dict().items()
    }
    if arrays:
        raise ValueError(f"`weights` has some that the model lacks. Received: {', '.join(arrays)}")
    model.load_state_dict(state)


def _numbered_from_0(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2]) - 1}"


def _without_separators(name: str) -> str:
    return re.sub(r"[./_]", "", name)


# ------------------------------------------------------------------ training


def training_inputs(
    images: Tensor, labels: Tensor, prompts: Tensor, steps: int
) -> tuple[Tensor, ...]:
    """Draws the inputs of `Trainer.step`: images, time steps, noise and prompts.

    Args:
        images: Images, (B, C, H, W) uint8.
        labels: Labels of the images, (B,).
        prompts: Token ids of the prompts of each class, (classes, prompts, L).
        steps: Number of time steps of the schedule.
    """
    size, device = len(images), images.device
    x0 = images / 127.5 - 1
    offsets = torch.arange(size, device=device) / size
    t = ((torch.rand(1, device=device) + offsets) % 1 * steps).long()
    prompt = prompts[labels, torch.randint(prompts.shape[1], (size,), device=device)]
    prompt[torch.rand(size, device=device) < PROMPT_DROPOUT, 1:] = 0
    return x0, t, torch.randn_like(x0), prompt


class Trainer:
    """Adam on the squared error of v, with an exponential average of the weights."""

    def __init__(self, model: TextToImage, learning_rate: float = 1e-3, momentum: float = 0.999):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(momentum))

    def loss(self, x0: Tensor, t: Tensor, noise: Tensor, prompt: Tensor) -> Tensor:
        tables = self.model.signal, self.model.sigma
        signal, sigma = (table[t][:, None, None, None] for table in tables)
        predicted = self.model(signal * x0 + sigma * noise, t, prompt)
        return F.mse_loss(predicted, signal * noise - sigma * x0)

    def step(self, x0: Tensor, t: Tensor, noise: Tensor, prompt: Tensor) -> float:
        loss = self.loss(x0, t, noise, prompt)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()


# ------------------------------------------------------------------ sampling


@torch.no_grad()
def sample(
    model: TextToImage, prompt: Tensor, noise: Tensor, steps: int = 50, guidance_scale: float = 2.0
) -> Tensor:
    """Samples images with DDIM and classifier-free guidance.

    Args:
        model: Trained model.
        prompt: Token ids, (B, L).
        noise: Initial noise, (B, C, H, W).
        steps: Number of sampling steps; it divides the number of time steps.
        guidance_scale: Weight of the prompt.

    Returns:
        (B, C, H, W).
    """
    signal, sigma = model.signal, model.sigma
    stride = len(signal) // steps
    empty = prompt.clone()
    empty[:, 1:] = 0
    text = model.text(torch.cat([empty, prompt]))
    x = noise
    for t in range(len(signal) - 1, -1, -stride):
        time = torch.full((2 * len(x),), t, device=x.device)
        unconditional, conditional = model.unet(torch.cat([x, x]), time, *text).chunk(2)
        v = unconditional + guidance_scale * (conditional - unconditional)
        x0 = (signal[t] * x - sigma[t] * v).clamp(-1, 1)
        predicted_noise = (x - signal[t] * x0) / sigma[t]
        s = t - stride
        x = x0 if s < 0 else signal[s] * x0 + sigma[s] * predicted_noise
    return x
