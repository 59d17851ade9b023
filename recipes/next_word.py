"""Trains a recurrent network to predict the next word of Shakespeare's works.

    KERAS_BACKEND=torch python recipes/next_word.py --cell gru --quick --prompt "To be, or not to"

`--quick` takes QUICK minutes on two CPU cores and reaches a test perplexity of about QUICKP a token,
where the frequencies of single tokens give 543; the full setting takes FULL and reaches FULLP, where
interpolated bigrams give 98. Four plays are held out, two to watch the training by, two to test.
Run it again with the same `--run-dir` to go on where it stopped, or, once it is finished, to ask
for the words after another `--prompt`.

Source: the document's sections on recurrent networks; Zaremba et al., "Recurrent Neural Network
Regularization", 2014.
"""

import math
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tyro
from rich.console import Console

from zoo import backends, cli, language, ngrams, rnn, rnn_language_model, text, training
from zoo.optimizers import Adam, schedule
from zoo.runs import Run


@dataclass(frozen=True)
class Config:
    """Train a recurrent language model on Shakespeare's works, and ask it for the next word."""

    cell: Literal["simple_rnn", "lstm", "gru"] = "lstm"
    """The recurrent layers' cell."""
    prompt: str = "To be, or not to"
    """The words before the next one; a finished run answers another prompt at once."""
    temperature: float = 0.8
    """Of the text that is written at the end: 1 draws as the model predicts, 0 takes the likeliest."""
    top_k: int | None = 40
    """Draw from so many of the likeliest tokens only; None from all."""
    sample_tokens: int = 120
    """Tokens of the text that is written at the end."""
    vocabulary_size: int = 5000
    """Tokens (words and parts of words) of the vocabulary, which is trained on the training works."""
    embedding_dim: int = 256
    """Width of a token's vector."""
    units: int = 256
    """Width of the state."""
    num_layers: int = 1
    """Recurrent layers."""
    dropout: float = 0.3
    """Fraction dropped before each layer and before the output."""
    length: int = 64
    """Tokens that a training example has."""
    epochs: int | None = None
    """Passes over the training works; by default 4, with --quick 1."""
    train_examples: int | None = None
    """Training examples, the first so many; by default all, with --quick 8,000."""
    batch_size: int = 32
    """Examples of a training step."""
    learning_rate: float = 2e-3
    """Adam's step size, at its largest."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """The learning rate over the run; cosine falls to 0 at the end."""
    seed: int = 0
    """Of initial weights, order, dropout and the text that is written; the same on every backend."""
    dtype_policy: Literal["float32", "bfloat16", "mixed_bfloat16"] = "float32"
    """What the network computes in."""
    run_dir: Path | None = None
    """Where results and checkpoints go; by default a new folder in runs/."""
    checkpoint_steps: int = 200
    """A checkpoint every so many steps, besides one after each epoch."""
    deterministic: bool = False
    """Turn on the backend's deterministic switches; slower on some devices."""
    quick: bool = False
    """A short run: 1 epoch over 8,000 examples, where not set otherwise."""

    def __post_init__(self) -> None:
        chosen = {"epochs": 1, "train_examples": 8000} if self.quick else {"epochs": 4}
        for name, value in chosen.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        counts = "epochs train_examples batch_size checkpoint_steps sample_tokens top_k"
        for name in counts.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if not self.temperature >= 0:
            raise ValueError(
                f"`temperature` must be 0 or more. Received: temperature={self.temperature}"
            )


QUESTIONS = ("prompt", "temperature", "top_k", "sample_tokens")
NOT_RESULTS = ("run_dir", "quick", "checkpoint_steps", "deterministic", *QUESTIONS)


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, answers the prompt, and returns the metrics."""
    console = Console()
    path = config.run_dir or Path("runs") / f"next_word-{datetime.now():%Y%m%d-%H%M%S}"
    decisive = {k: v for k, v in asdict(config).items() if k not in NOT_RESULTS}
    run = Run(path, {"recipe": "next_word", **decisive})
    if config.deterministic:
        backends.backend.make_deterministic()
    model = rnn_language_model(
        config.vocabulary_size,
        config.cell,
        config.embedding_dim,
        config.units,
        config.num_layers,
        config.dropout,
        seed=config.seed,
        dtype=config.dtype_policy,
    )
    if run.metrics:
        console.print(
            f"The run in {path} is finished: test perplexity {run.metrics['test_perplexity']:.1f}"
        )
        model.load_weights(path / "model.weights.h5")
    else:
        train(config, run, model, console)
    answer(config, run, model, console)
    return run.metrics or {}
