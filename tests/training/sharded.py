"""Trains a small GPT whose weights two devices divide, and on one device; prints what came out."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo import gpt
from zoo.training import AdamW, Batches, CrossEntropy, StepCheckpoint, Trainer, sharded_model

IDS = np.random.default_rng(1).integers(0, 20, (22, 8), dtype=np.int32)
STEPS = 5  # the fourth batch has one example, and none for the second worker


def train(
    folder: Path, epochs: int = STEPS, gradient_accumulation: int = 1
) -> tuple[list[float], Trainer]:
    """Losses of single steps and the trainer, with checkpoints in a folder."""
    network = gpt(20, 8, num_layers=1, num_heads=2, hidden_dim=8, dropout=0.2)
    trainer = Trainer(network)
    trainer.compile(AdamW(1e-2, 0.1, global_clipnorm=1.0), CrossEntropy())
    batches = Batches((IDS, np.roll(IDS, -1, 1)), 7, seed=3, steps_per_epoch=1)
    history = trainer.fit(
        batches, epochs=epochs, verbose=0, checkpoint=StepCheckpoint(folder),
        gradient_accumulation=gradient_accumulation,
    )  # fmt: skip
    return history.history["loss"], trainer


def shape_of_part(variable: Any) -> list[int]:
    """Shape of a device's part of a variable."""
    if keras.backend.backend() == "jax":
        return list(variable.value.addressable_shards[0].data.shape)
    from zoo.backends import torch_sharding

    with torch_sharding.updating():
        value = variable.value
        return list(getattr(value, "to_local", lambda: value)().shape)


def error(action: Any) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def refused_on_pytorch() -> dict[str, str]:
    """Texts of the errors of trainings whose weights cannot be divided among workers."""
    batches = Batches((IDS.astype(np.float32), IDS[:, :1]), 7, seed=3)

    def fit(network: keras.Model, optimizer: Any, *callbacks: Any) -> None:
        trainer = Trainer(network)
        trainer.compile(optimizer, "mean_squared_error")
        trainer.fit(batches, verbose=0, callbacks=list(callbacks))

    unbuilt = keras.Sequential([keras.layers.Dense(1)], name="unbuilt")
    built = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    saving = keras.callbacks.ModelCheckpoint("best.keras")
    return {
        "unbuilt": error(lambda: fit(unbuilt, "sgd")),
        "optimizer": error(lambda: fit(built, keras.optimizers.Adafactor())),
        "callback": error(lambda: fit(built, "sgd", saving)),
    }


def run(folder: Path) -> dict[str, Any] | None:
    results: dict[str, Any] = {}
    with sharded_model(devices=2):
        results["sharded"], trainer = train(folder / "sharded")
        variables = *trainer.trainable_variables, *trainer.optimizer.variables
        results["parts"] = {variable.path: shape_of_part(variable) for variable in variables}
        whole = sum(math.prod(variable.shape) for variable in variables)
        results["share"] = sum(map(math.prod, results["parts"].values())) / whole
        weights = trainer.network.get_weights()
        rank = os.environ.get("ZOO_RANK", "0")
        trainer.network.save_weights(folder / f"{rank}.weights.h5")
        predictions = trainer.predict(Batches((IDS,)), verbose=0)
        train(folder / "begun", 3)
        results["continued"], _ = train(folder / "begun", 4)
        results["accumulated"], _ = train(folder / "accumulated", gradient_accumulation=2)
        if keras.backend.backend() == "torch":
            results["errors"] = refused_on_pytorch()
    if rank != "0":
        return None
    results["single"], expected = train(folder / "single")
    results["resumed"], _ = train(folder / "begun")
    pairs = zip(weights, expected.network.get_weights(), strict=True)
    results["weights"] = max(float(np.abs(a - b).max()) for a, b in pairs)
    wanted = expected.predict(Batches((IDS,)), verbose=0)
    expected.network.load_weights(folder / "0.weights.h5")
    results["file"] = all(map(np.array_equal, weights, expected.network.get_weights()))
    results["predictions"] = float(np.abs(predictions - wanted).max())
    if keras.backend.backend() == "jax":
        results["errors"] = {"devices": error(lambda: sharded_model(devices=3).__enter__())}
    return results


if __name__ == "__main__":
    results = run(Path(sys.argv[1]))
    if results is not None:
        json.dump(results, sys.stdout)
