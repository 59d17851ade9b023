"""Times a training step of a recurrent language model: PyTorch's own code, stock Keras, the zoo.

    python -m benchmarks.recurrent_step --cell lstm

Vocabulary 5,000, width 256, 64 tokens, batch 32, Adam. Stock Keras is the same model of Keras' own
layers, with Keras' loss, optimizer and training step. Both Keras models are timed within `fit`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contenders import BACKENDS, Contender, race, serve, write_json

VOCABULARY, WIDTH = 5000, 256
EXAMPLES = 512


@dataclass(frozen=True)
class Config:
    """Time training steps of contenders that take turns."""

    cell: Literal["lstm", "gru", "simple_rnn"] = "lstm"
    """Cell of the recurrent layer."""
    rounds: int = 10
    """Number of timed turns of each contender."""
    steps: int = 4
    """Number of timed steps in a turn, after one that is not timed."""
    warmup: int = 2
    """Number of turns of each contender before the timed ones."""
    batch_size: int = 32
    """Number of sequences in a step."""
    length: int = 64
    """Number of tokens in a sequence."""
    only: tuple[str, ...] = BACKENDS
    """Backends that take part, beside PyTorch's own code."""
    worker: str | None = None
    """Internal: the contender that this process is."""
    json: Path | None = None
    """JSON file to which the figures are added."""


def token_ids(config: Config, examples: int) -> np.ndarray:
    """Random token ids, (examples, T + 1) int32."""
    shape = examples, config.length + 1
    return np.random.default_rng(0).integers(0, VOCABULARY, shape).astype(np.int32)


def native_step(config: Config) -> Callable[[], Any]:
    """Training step in PyTorch's own code."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "simple_rnn": nn.RNN}

    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.rnn = kinds[config.cell](WIDTH, WIDTH, batch_first=True)
            self.output = nn.Linear(WIDTH, VOCABULARY)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.output(self.rnn(self.embedding(ids))[0])

    model = LanguageModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ids = torch.from_numpy(token_ids(config, config.batch_size)).long()

    def step() -> float:
        logits = model(ids[:, :-1])
        targets = ids[:, 1:].reshape(-1)
        loss = nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def stock_model(config: Config) -> Any:
    """Compiled model of Keras' own layers, loss and optimizer."""
    import keras

    kinds = {
        "lstm": keras.layers.LSTM,
        "gru": keras.layers.GRU,
        "simple_rnn": keras.layers.SimpleRNN,
    }
    layers = [
        keras.layers.Embedding(VOCABULARY, WIDTH),
        kinds[config.cell](WIDTH, return_sequences=True),
        keras.layers.Dense(VOCABULARY),
    ]
    model = keras.Sequential([keras.Input((None,), dtype="int32"), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def zoo_trainer(config: Config) -> Any:
    """Compiled trainer of the zoo's model."""
    import zoo
    from zoo.training import Adam, CrossEntropy

    trainer = zoo.Trainer(zoo.rnn_language_model(VOCABULARY, config.cell, WIDTH, WIDTH))
    trainer.compile(Adam(1e-3), CrossEntropy())
    return trainer


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from benchmarks.step_timer import serve_fit
        from zoo.backends import backend
        from zoo.training import Batches

        backend.keep_malloc_pages()  # in each contender
        kind = config.worker.split()[0]
        if kind == "native":
            serve(native_step(config), config.steps, skip=1)
        else:
            model = stock_model(config) if kind == "stock" else zoo_trainer(config)
            ids = token_ids(config, EXAMPLES)
            batches = Batches((ids[:, :-1], ids[:, 1:]), config.batch_size, seed=0)
            serve_fit(model, batches, config.steps)
        return {}
    installed = [name for name in config.only if importlib.util.find_spec(name)]
    names = [f"{kind} {name}" for name in installed for kind in ("stock", "zoo")]
    command = ["-m", "benchmarks.recurrent_step", "--cell", config.cell]
    command += ["--batch-size", str(config.batch_size), "--length", str(config.length)]
    command += ["--steps", str(config.steps), "--worker"]
    contenders = {
        name: Contender([*command, name], name.split()[1]) for name in ["native torch", *names]
    }
    results = race(contenders, "native torch", config.warmup, config.rounds, config.batch_size)
    if config.json:
        write_json(config.json, {config.cell: results})
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
