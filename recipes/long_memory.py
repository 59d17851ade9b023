"""Shows that a plain RNN loses what it saw long ago while LSTM and GRU keep it, and why.

    KERAS_BACKEND=torch python recipes/long_memory.py --quick

The first step of a sequence shows one of eight symbols, every later one a distractor; at the end
the network names the symbol. Each cell learns each length from fresh weights and with the same
settings, gates opened at first (`zoo.rnn.open_gates`). `memory.png` shows recall by length, and the
gradient that reaches each step. Run it again with the same `--run-dir` to go on where it stopped.

@@TIMES@@

Source: the document's section "Mémoire à Long Terme et Unité Récurrente Gâtée"; Bengio, Simard and
Frasconi, "Learning Long-Term Dependencies with Gradient Descent is Difficult", 1994.
"""

import itertools
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tyro
from rich.console import Console

from zoo import backends, cli, evaluation, random, training
from zoo.datasets import Recall
from zoo.optimizers import Adam
from zoo.rnn import open_gates, rnn_classifier
from zoo.runs import Run

CELLS = "simple_rnn", "lstm", "gru"
SYMBOLS = 8


@dataclass(frozen=True)
class Config:
    """Train a plain RNN, an LSTM and a GRU to recall the first of many steps."""

    lengths: tuple[int, ...] | None = None
    """Steps of a sequence, growing; by default 5 10 20 40 80 160, with --quick 5 20 80."""
    steps: int | None = None
    """Training steps of each cell at each length; by default 600, with --quick 400."""
    batch_size: int = 32
    """Sequences of a training step."""
    units: int = 64
    """Of each cell's state."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    test_examples: int = 1000
    """Sequences that recall is measured on, at each length."""
    seed: int = 0
    """Of initial weights, sequences and their order; the same run on every backend."""
    run_dir: Path | None = None
    """Where results and checkpoints go; by default a new folder in runs/."""
    checkpoint_steps: int = 200
    """A checkpoint every so many steps, besides one at the end of each training."""
    deterministic: bool = False
    """Turn on the backend's deterministic switches; slower on some devices."""
    quick: bool = False
    """A short run: fewer lengths and steps, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"lengths": (5, 20, 80), "steps": 400}
        chosen = quick if self.quick else {"lengths": (5, 10, 20, 40, 80, 160), "steps": 600}
        for name, value in chosen.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("steps", "batch_size", "test_examples", "checkpoint_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if not self.lengths or list(self.lengths) != sorted({1, *self.lengths} - {1}):
            raise ValueError(f"`lengths` must grow, from 2 on. Received: lengths={self.lengths}")


NOT_RESULTS = ("run_dir", "quick", "checkpoint_steps", "deterministic")


def learn(config: Config, cell: str, length: int, run: Run, console: Console) -> dict[str, Any]:
    """Trains one cell at one length, or goes on with it, and returns what came of it."""
    if run.metrics:
        return run.metrics
    train = Recall(config.seed, "train", length, config.steps * config.batch_size, SYMBOLS)
    test = Recall(config.seed, "test", length, config.test_examples, SYMBOLS)
    x, y = test(np.arange(len(test)))
    model = rnn_classifier(x.shape[1:], SYMBOLS, cell, config.units, seed=config.seed)
    open_gates(model, length)
    forward = backends.backend.forward(model, lambda x: model(x, training=False))

    def evaluate() -> dict[str, float]:
        logits = keras.ops.convert_to_numpy(forward(x)).astype(np.float64)
        loss, accuracy = evaluation.loss_and_accuracy(logits, y)
        return {"test_loss": loss, "test_accuracy": accuracy}

    def gradient() -> list[float]:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
        by_input = backends.input_gradients(model, x[:200], y[:200], loss)
        return np.linalg.norm(by_input, axis=-1).mean(axis=0).tolist()

    console.print(f"{cell}, {length} steps")
    before = gradient()
    state = training.fit(
        model,
        Adam(config.learning_rate, global_clipnorm=1.0),
        training.label_objective(model),
        train,
        run,
        epochs=1,
        batch_size=config.batch_size,
        seed=config.seed,
        evaluate=evaluate,
        checkpoint_steps=config.checkpoint_steps,
        console=console,
    )
    model.save_weights(run.path / "model.weights.h5")
    results = {
        **state.history[-1],
        "gradient": {"before": before, "after": gradient()},
        "backends": state.backends,
        "parameters": model.count_params(),
        "examples_per_second": state.examples_per_second,
        "wall_seconds": state.wall_seconds,
    }
    run.write_metrics(results)
    return results


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, and returns its metrics."""
    console = Console()
    path = config.run_dir or Path("runs") / f"long_memory-{datetime.now():%Y%m%d-%H%M%S}"
    decisive = {k: v for k, v in asdict(config).items() if k not in NOT_RESULTS}
    run = Run(path, {"recipe": "long_memory", **decisive})
    if run.metrics:
        console.print(f"The run in {path} is finished: recall {run.metrics['test_accuracy']}")
        return run.metrics
    if config.deterministic:
        backends.backend.make_deterministic()
    random.key(config.seed)  # refuses a wrong one before anything is written
    run.begin()
    console.print(f"With {backends.name}; Ctrl-C stops, `--run-dir {path}` goes on")
    rows, parts = [], []
    for cell, length in itertools.product(CELLS, config.lengths):
        part = {"cell": cell, "length": length}
        parts.append(learn(config, cell, length, Run(path / cell / str(length), part), console))
        numbers = ("loss", "accuracy", "test_loss", "test_accuracy")
        rows.append(part | {name: parts[-1][name] for name in numbers})
        run.write_history(rows)
    recall = {c: [row["test_accuracy"] for row in rows if row["cell"] == c] for c in CELLS}
    longest = dict(zip(CELLS, parts[len(config.lengths) - 1 :: len(config.lengths)]))
    gradients = {cell: part["gradient"] for cell, part in longest.items()}
    figure = evaluation.plot_memory(config.lengths, recall, 1 / SYMBOLS, gradients)
    figure.savefig(path / "memory.png", dpi=120)
    names = ("parameters", "test_loss", "test_accuracy", "examples_per_second")
    metrics = {
        "recipe": "long_memory",
        "model": "rnn_classifier",
        **training.environment(),
        "backends": list(dict.fromkeys(name for part in parts for name in part["backends"])),
        "seed": config.seed,
        "train_examples": config.steps * config.batch_size,
        "test_examples": config.test_examples,
        "epochs": 1,
        **{name: {cell: part[name] for cell, part in longest.items()} for name in names},
        "lengths": list(config.lengths),
        "recall": recall,
        "gradient_ratio": {  # of the first step to the last
            cell: {time: norms[0] / norms[-1] for time, norms in times.items()}
            for cell, times in gradients.items()
        },
        "wall_seconds": sum(part["wall_seconds"] for part in parts),
    }
    run.write_metrics(metrics)
    console.print(f"Results are in {path}")
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
