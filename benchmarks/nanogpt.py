"""A straightforward GPT in PyTorch, trained as recipes/shakespeare.py trains its own.

    python -m benchmarks.nanogpt
    python recipes/shakespeare.py --split first_90

nanoGPT's setting for a CPU: 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no
dropout, characters, the first 90 % of the text for training. Prints the loss on the rest.
"""

import math
import time
from dataclasses import dataclass

import torch
import tyro
from torch import nn
from torch.nn import functional

from zoo.datasets import shakespeare, tokenizer

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
LEARNING_RATE, WARMUP = 1e-3, 100


@dataclass(frozen=True)
class Config:
    """Train the reference."""

    steps: int = 2000
    """Training steps."""
    seed: int = 0
    """Of initial weights and pieces."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).split(WIDTH, dim=-1)
        q, k, v = (y.view(batch, length, HEADS, -1).transpose(1, 2) for y in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if added else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T


def loss_of(model: nn.Module, pieces: torch.Tensor) -> torch.Tensor:
    """pieces: (B, CONTEXT + 1)."""
    logits = model(pieces[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())


def learning_rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return LEARNING_RATE * step / WARMUP
    falling = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))
    return LEARNING_RATE * (0.1 + 0.9 * falling)


def main(config: Config) -> float:
    torch.manual_seed(config.seed)
    vocabulary = tokenizer.Tokenizer.characters(shakespeare.tokenizer_documents("first_90"))
    parts = shakespeare.encode_split(vocabulary, scheme="first_90")
    train, rest = (torch.from_numpy(parts[name].astype("int64")) for name in ("train", "test"))
    model = GPT(len(vocabulary))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    started = time.perf_counter()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps)
        places = torch.randint(len(train) - CONTEXT, (BATCH,))
        loss = loss_of(model, torch.stack([train[p : p + CONTEXT + 1] for p in places]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - started
    count = (len(rest) - 1) // CONTEXT
    places = torch.arange(count) * CONTEXT
    with torch.no_grad():
        losses = [
            loss_of(model, torch.stack([rest[p : p + CONTEXT + 1] for p in some])) * len(some)
            for some in places.split(256)
        ]
    result = float(torch.stack(losses).sum() / count)
    print(f"validation loss {result:.4f} nats a character after {seconds:.0f} s of training")
    return result


if __name__ == "__main__":
    main(tyro.cli(Config))
