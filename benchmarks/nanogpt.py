"""Trains a straightforward GPT in PyTorch with the setting of recipes/shakespeare.py.

    python -m benchmarks.nanogpt
    python recipes/shakespeare.py --split first_90

nanoGPT's setting for a CPU: 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no
dropout, characters, the first 90 % of the text for training. Prints the loss on the rest.
`python -m benchmarks.all --rows shakespeare` compares the speed of a step with the zoo's.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import tyro
from torch import nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
LEARNING_RATE, WARMUP = 1e-3, 100


@dataclass(frozen=True)
class Config:
    """Train the GPT in plain PyTorch."""

    steps: int = 2000
    """Number of training steps."""
    seed: int = 0
    """Seed of the initial weights and of the places of the training windows."""


class Block(nn.Module):
    """GPT-2's block: x (B, T, width) to (B, T, width)."""

    def __init__(self, width: int, heads: int, approximate: str) -> None:
        super().__init__()
        self.heads, self.approximate = heads, approximate
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: torch.Tensor, cache: torch.Tensor | None = None, start: int = 0
    ) -> torch.Tensor:
        """Applies the block, with cached keys and values (2, B, heads, capacity, dim) if given."""
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        if cache is not None:
            cache[:, :, :, start : start + x.shape[1]] = torch.stack([k, v])
            k, v = cache[:, :, :, : start + x.shape[1]]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate=self.approximate))


class GPT(nn.Module):
    """Token ids (B, T) to logits (B, T, vocabulary_size).

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        context: Number of tokens of the longest input.
        layers: Number of blocks.
        heads: Number of heads of attention.
        width: Width of a token's vector.
        approximate: GELU: "none", or "tanh" as in GPT-2.
    """

    def __init__(
        self,
        vocabulary_size: int,
        context: int = CONTEXT,
        layers: int = LAYERS,
        heads: int = HEADS,
        width: int = WIDTH,
        approximate: str = "none",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, approximate) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                is_residual = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * layers) if is_residual else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, ids: torch.Tensor, caches: Sequence[torch.Tensor] | None = None, start: int = 0
    ) -> torch.Tensor:
        """Logits of the next tokens, from the position `start` on if there are caches."""
        x = self.embedding(ids) + self.positions.weight[start : start + ids.shape[1]]
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks)):
            x = block(x, cache, start)
        return self.norm(x) @ self.embedding.weight.T


def mean_loss(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the tokens of windows (B, CONTEXT + 1), in nats a token."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def learning_rate(step: int, steps: int) -> float:
    """Learning rate that rises for WARMUP of the steps and then falls to a tenth."""
    if step < WARMUP:
        return LEARNING_RATE * step / WARMUP
    decay = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))
    return LEARNING_RATE * (0.1 + 0.9 * decay)


def make_step(model: nn.Module, steps: int) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Function of a step's number and windows (B, CONTEXT + 1) that trains and gives the loss.

    Args:
        model: Model that is trained.
        steps: Number of steps of the whole training.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))

    def step(number: int, windows: torch.Tensor) -> torch.Tensor:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, steps)
        loss = mean_loss(model, windows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def random_windows(ids: torch.Tensor) -> torch.Tensor:
    """BATCH windows of CONTEXT + 1 tokens at random places of a text, (N,)."""
    starts = torch.randint(len(ids) - CONTEXT, (BATCH,))
    return torch.stack([ids[start : start + CONTEXT + 1] for start in starts])


def main(config: Config) -> float:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # `zoo.datasets` imports Keras
    from zoo.datasets import shakespeare, tokenizer

    torch.manual_seed(config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    characters = tokenizer.Tokenizer.characters(shakespeare.tokenizer_documents("first_90"))
    parts = shakespeare.encode_split(characters, scheme="first_90")
    train, held_out = (
        torch.from_numpy(parts[name].astype("int64")).to(device) for name in ("train", "test")
    )
    model = GPT(len(characters)).to(device)
    step = make_step(model, config.steps)
    started = time.perf_counter()
    for number in range(config.steps):
        loss = step(number, random_windows(train))
    loss.item()  # waits for a GPU
    seconds = time.perf_counter() - started
    count = (len(held_out) - 1) // CONTEXT
    starts = torch.arange(count) * CONTEXT
    with torch.no_grad():
        losses = [
            mean_loss(model, torch.stack([held_out[s : s + CONTEXT + 1] for s in chunk]))
            * len(chunk)
            for chunk in starts.split(256)
        ]
    result = float(torch.stack(losses).sum() / count)
    print(f"validation loss {result:.4f} nats a character after {seconds:.0f} s of training")
    return result


if __name__ == "__main__":
    main(tyro.cli(Config))
