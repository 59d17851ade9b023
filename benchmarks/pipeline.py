"""Measures the share of a training step that the input pipeline takes.

    KERAS_BACKEND=jax python -m benchmarks.pipeline

Rotation, brightness, contrast and normalization are part of the compiled training step. Here they
are compiled alone, with the gathering of the batch, and timed between the steps of `Trainer.fit`.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tyro
from keras import ops

from benchmarks.contenders import write_json
from benchmarks.step_timer import time_fit
from benchmarks.train_step import zoo_training
from zoo import Trainer, random
from zoo.backends import backend, name
from zoo.training import Batches


@dataclass(frozen=True)
class Config:
    """Time the augmentation of a batch between whole training steps."""

    rounds: int = 30
    """Number of timed calls of each."""
    batch_size: int = 64
    """Number of images in a step."""
    json: Path | None = None
    """JSON file to which the figures are added."""


def augmentation(trainer: Trainer, batches: Batches) -> Callable[[], Any]:
    """Function that gathers and augments the next batch."""
    layer = trainer.preprocessing

    def augment(images: Any, step: Any) -> Any:
        pixels = layer.augment(images, random.fold_in(layer.random_key, step))
        return ops.sum(layer.normalize(pixels))  # reads all pixels

    compiled = backend.inference_function(keras.Model(), augment)
    number = iter(range(10**9))

    def call() -> float:
        step = next(number)
        images, _ = batches[step]
        return float(compiled(images, np.int32(step)))

    return call


def main(config: Config) -> dict[str, Any]:
    trainer, batches = zoo_training(config.batch_size)
    augment = augmentation(trainer, batches)
    for _ in range(3):
        augment()
    calls: list[float] = []

    def between() -> None:
        started = time.perf_counter()
        augment()
        calls.append(time.perf_counter() - started)

    warmup = 2
    steps = time_fit(trainer, batches, warmup + config.rounds, steps=1, between=between)
    step, call = (statistics.median(seconds[warmup:]) for seconds in (steps, calls))
    print(
        f"{name}: augmentation {1000 * call:.1f} ms ({config.batch_size / call:,.0f} images/s), "
        f"step {1000 * step:.0f} ms, share {call / step:.1%}"
    )
    result = {
        "augmentation_images_per_second": config.batch_size / call,
        "share_of_step": call / step,
    }
    if config.json:
        write_json(config.json, {name: result})
    return result


if __name__ == "__main__":
    main(tyro.cli(Config))
