"""Times a training step of recipes/shakespeare.py on each backend against a GPT in plain PyTorch.

    python -m benchmarks.shakespeare_step --only torch jax

4 layers, 4 heads, width 128, context 64, batch 12, AdamW with clipped gradients. The plain code is
that of benchmarks/nanogpt.py; the zoo's steps are those of `Trainer.fit`. All of them use the GPU
if there is one.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contenders import BACKENDS, Contender, race, serve, write_json

VOCABULARY = 96  # about the characters of Shakespeare's works
TOKENS = 100_000
TRAINING_STEPS = 2000  # of the learning rate's schedule


@dataclass(frozen=True)
class Config:
    """Time training steps of contenders that take turns."""

    rounds: int = 10
    """Number of timed turns of each contender."""
    steps: int = 20
    """Number of timed steps in a turn, after one that is not timed."""
    warmup: int = 2
    """Number of turns of each contender before the timed ones."""
    only: tuple[str, ...] = BACKENDS
    """Backends of the zoo that take part."""
    tf32: Literal["default", "off"] = "default"
    """Precision of float32 products on a GPU: the library's default, or TF32 turned off."""
    worker: str | None = None
    """Internal: the contender that this process is."""
    json: Path | None = None
    """JSON file to which the figures are added."""


def token_ids() -> np.ndarray:
    """Random token ids, (TOKENS,)."""
    return np.random.default_rng(0).integers(0, VOCABULARY, TOKENS)


def plain_step() -> Callable[[], Any]:
    """Training step of the plain code, on the GPU if there is one."""
    import torch

    from benchmarks import nanogpt

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.from_numpy(token_ids()).to(device)
    step = nanogpt.make_step(nanogpt.GPT(VOCABULARY).to(device), TRAINING_STEPS)
    number = iter(range(10**9))
    return lambda: step(min(next(number), TRAINING_STEPS), nanogpt.random_windows(ids)).item()


def zoo_training() -> tuple[Any, Any]:
    """Compiled trainer of the recipe's GPT, and batches of windows of random tokens."""
    from zoo import Trainer, gpt
    from zoo.datasets.token_windows import TokenWindows
    from zoo.training import AdamW, Batches, CrossEntropy
    from zoo.training.optimizers import learning_rate_schedule

    length, batch_size = 64, 12
    trainer = Trainer(gpt(VOCABULARY, length, num_layers=4, num_heads=4, hidden_dim=128))
    rate = learning_rate_schedule("warmup_cosine", 1e-3, TRAINING_STEPS)
    trainer.compile(AdamW(rate, decay=0.1, beta_2=0.99, global_clipnorm=1.0), CrossEntropy())
    return trainer, Batches(TokenWindows(token_ids(), length, stride=1), batch_size, seed=0)


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from benchmarks.step_timer import serve_fit
        from zoo.backends import backend

        backend.keep_malloc_pages()  # in each contender
        if config.tf32 == "off":
            backend.disable_tf32()
        if config.worker == "plain":
            serve(plain_step(), config.steps, skip=1)
        else:
            serve_fit(*zoo_training(), config.steps)
        return {}
    if not importlib.util.find_spec("torch"):
        raise SystemExit("The plain code needs PyTorch: install the extra `torch`")
    command = ["-m", "benchmarks.shakespeare_step", "--steps", str(config.steps)]
    command += ["--tf32", config.tf32, "--worker"]
    contenders = {"plain torch": Contender([*command, "plain"], "torch")}
    for name in config.only:
        if importlib.util.find_spec(name):
            contenders[f"zoo {name}"] = Contender([*command, "zoo"], name)
    results = race(contenders, "plain torch", config.warmup, config.rounds, examples=12 * 64)
    if config.json:
        write_json(config.json, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
