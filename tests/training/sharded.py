"""Trains a small GPT whose weights two devices divide, and on one device; prints what came out."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import gpt
from zoo.training import AdamW, Batches, CrossEntropy, StepCheckpoint, Trainer, sharded_model

IDS = np.random.default_rng(1).integers(0, 20, (24, 8), dtype=np.int32)
STEPS = 5


def train(folder: Path, epochs: int = STEPS) -> tuple[list[float], Trainer]:
    """Losses of single steps and the trainer, with checkpoints in a folder."""
    network = gpt(20, 8, num_layers=1, num_heads=2, hidden_dim=8, dropout=0.2)
    trainer = Trainer(network)
    trainer.compile(AdamW(1e-2, 0.1, global_clipnorm=1.0), CrossEntropy())
    batches = Batches((IDS, np.roll(IDS, -1, 1)), 7, seed=3, steps_per_epoch=1)
    history = trainer.fit(batches, epochs=epochs, verbose=0, checkpoint=StepCheckpoint(folder))
    return history.history["loss"], trainer


def run(folder: Path) -> dict[str, Any]:
    with sharded_model(devices=2):
        sharded, trainer = train(folder / "sharded")
        parts = {
            variable.path: variable.value.addressable_shards[0].data.shape
            for variable in (*trainer.trainable_variables, *trainer.optimizer.variables)
        }
        train(folder / "begun", 3)
    single, expected = train(folder / "single")
    resumed, _ = train(folder / "begun")
    pairs = zip(trainer.network.get_weights(), expected.network.get_weights(), strict=True)
    try:
        sharded_model(devices=3).__enter__()
    except ValueError as error:
        text = str(error)
    return {
        "single": single, "sharded": sharded, "resumed": resumed, "parts": parts, "error": text,
        "weights": max(float(np.abs(a - b).max()) for a, b in pairs),
        "devices": len(jax.devices()),
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        json.dump(run(Path(folder)), sys.stdout)
