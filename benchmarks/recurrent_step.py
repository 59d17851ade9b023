"""Times a training step of a recurrent language model: PyTorch's own code, stock Keras, the zoo.

    python -m benchmarks.recurrent_step --cell lstm

Vocabulary 5,000, width 256, 64 tokens, batch 32, Adam. Stock Keras is the same model made of Keras'
own layers, loss and optimizer, in the same compiled step.
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


@dataclass(frozen=True)
class Config:
    """Time training steps, the contenders in turn."""

    cell: Literal["lstm", "gru", "simple_rnn"] = "lstm"
    """Of the recurrent layer."""
    rounds: int = 20
    """Timed steps of each contender."""
    warmup: int = 3
    """Steps before that."""
    batch_size: int = 32
    """Sequences of a step."""
    length: int = 64
    """Tokens of a sequence."""
    only: tuple[str, ...] = BACKENDS
    """Backends that take part, beside PyTorch's own code."""
    worker: str | None = None
    """Internal: be one contender and take a step for each line of standard input."""
    json: Path | None = None
    """Also write the figures to this file."""


def batch(config: Config) -> np.ndarray:
    """(B, T + 1) int32."""
    generator = np.random.default_rng(0)
    shape = config.batch_size, config.length + 1
    return generator.integers(0, VOCABULARY, shape).astype(np.int32)


def native_step(config: Config) -> Callable[[], Any]:
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
    ids = torch.from_numpy(batch(config)).long()

    def step() -> float:
        logits = model(ids[:, :-1])
        targets = ids[:, 1:].reshape(-1)
        loss = nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def keras_step(config: Config, stock: bool) -> Callable[[], Any]:
    import keras

    import zoo
    from zoo.backends import backend
    from zoo.training import losses
    from zoo.training.optimizers import Adam

    model = zoo.rnn_language_model(VOCABULARY, config.cell, WIDTH, WIDTH)
    optimizer = Adam(1e-3)
    objective = losses.language_objective(model)
    if stock:
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
        optimizer = keras.optimizers.Adam(1e-3)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def objective(ids: Any, step: Any) -> Any:
            return loss(ids[:, 1:], model(ids[:, :-1], training=True)), {}

    optimizer.build(model.trainable_variables)
    step = backend.train_step(model, optimizer, objective)
    ids = backend.on_device(batch(config))
    return lambda: float(step(ids, np.int32(0))["loss"])


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from zoo.backends import backend

        backend.keep_malloc_pages()  # for all alike
        kind = config.worker.split()[0]
        native = kind == "native"
        serve(native_step(config) if native else keras_step(config, stock=kind == "stock"))
        return {}
    installed = [name for name in config.only if importlib.util.find_spec(name)]
    names = [f"{kind} {name}" for name in installed for kind in ("stock", "zoo")]
    command = ["-m", "benchmarks.recurrent_step", "--cell", config.cell]
    command += ["--batch-size", str(config.batch_size), "--length", str(config.length), "--worker"]
    contenders = {
        name: Contender([*command, name], name.split()[1]) for name in ["native torch", *names]
    }
    results = race(contenders, "native torch", config.warmup, config.rounds, config.batch_size)
    if config.json:
        write_json(config.json, {config.cell: results})
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
