"""Measures what the data costs: the share of a training step that augmentation takes.

    KERAS_BACKEND=jax python -m benchmarks.pipeline

Gathering a batch from the resident images, rotation, brightness, contrast and normalisation are
part of the compiled training step; here they are compiled alone and timed beside it, in turn.
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
from benchmarks.train_step import zoo_step
from zoo import random
from zoo.backends import backend, name
from zoo.datasets.augmentation import ImageTransform


@dataclass(frozen=True)
class Config:
    """Time the augmentation of a batch against the whole training step."""

    rounds: int = 30
    """Timed calls of each."""
    batch_size: int = 64
    """Images of a step."""
    json: Path | None = None
    """Also write the figures to this file."""


def augmentation(batch_size: int) -> Callable[[], Any]:
    transform = ImageTransform((0.1307,), (0.3081,))
    key = random.key(0, "augmentation")

    def augment(images: Any, indices: Any, step: Any) -> Any:
        batch = ops.take(images, indices, axis=0)
        # The sum stands for whoever reads the pixels, and waits for them.
        return ops.sum(transform.training(batch, random.fold_in(key, step)))

    forward = backend.inference_function(keras.Model(), augment)
    generator = np.random.default_rng(0)
    images = backend.on_device(generator.integers(0, 256, (1024, 48, 48, 1)).astype(np.uint8))
    indices = np.arange(batch_size, dtype=np.int32)
    number = iter(range(10**9))
    return lambda: float(forward(images, indices, np.int32(next(number))))


def main(config: Config) -> dict[str, Any]:
    calls = {"augmentation": augmentation(config.batch_size), "step": zoo_step(config.batch_size)}
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(config.rounds):
        for what, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[what].append(time.perf_counter() - started)
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    share = medians["augmentation"] / medians["step"]
    print(
        f"{name}: augmentation {1000 * medians['augmentation']:.1f} ms "
        f"({config.batch_size / medians['augmentation']:,.0f} images/s), step "
        f"{1000 * medians['step']:.0f} ms, share {share:.1%}"
    )
    result = {
        "augmentation_images_per_second": config.batch_size / medians["augmentation"],
        "share_of_step": share,
    }
    if config.json:
        write_json(config.json, {name: result})
    return result


if __name__ == "__main__":
    main(tyro.cli(Config))
