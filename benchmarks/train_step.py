"""Times a training step of `cnn_48x48` on each installed backend against the document's own code.

    python -m benchmarks.train_step --rounds 10

A step of the zoo is one of `Trainer.fit` over `Batches` and includes the augmentation of its batch.
The document's step begins with a batch that is ready. A recipe keeps the C library from returning
large freed blocks to the system, which helps the document's code as much: on a CPU the table has
the document's code both ways.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contenders import BACKENDS, Contender, race, serve, write_json

DOCUMENT = ("document", "document, freed memory kept")


@dataclass(frozen=True)
class Config:
    """Time training steps of contenders that take turns."""

    rounds: int = 10
    """Number of timed turns of each contender."""
    steps: int = 4
    """Number of timed steps in a turn, after one that is not timed."""
    warmup: int = 2
    """Number of turns of each contender before the timed ones."""
    batch_size: int = 64
    """Number of images in a step."""
    only: tuple[str, ...] = BACKENDS
    """Backends of the zoo that take part."""
    references: tuple[str, ...] = DOCUMENT
    """Variants of the document's code that take part, "document" first."""
    tf32: Literal["default", "off"] = "default"
    """Precision of float32 products on a GPU: the library's default, or TF32 turned off."""
    worker: str | None = None
    """Internal: the contender that this process is."""
    json: Path | None = None
    """JSON file to which the figures are added."""


def document_step(config: Config, keep_memory: bool) -> Callable[[], Any]:
    """Training step of the document's code, on the GPU if there is one."""
    if keep_memory or config.tf32 == "off":
        os.environ["KERAS_BACKEND"] = "torch"
        from zoo.backends import backend

        if keep_memory:
            backend.keep_malloc_pages()
        if config.tf32 == "off":
            backend.disable_tf32()
    import torch

    from benchmarks.document import MY_NET, make_step

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = make_step(MY_NET(10).to(device))
    x = torch.randn(config.batch_size, 3, 48, 48, device=device)
    y = torch.arange(config.batch_size, device=device) % 10
    return lambda: step(x, y)


def zoo_training(batch_size: int) -> tuple[Any, Any]:
    """Compiled trainer of `cnn_48x48`, and batches of random images."""
    import zoo
    from zoo.backends import backend
    from zoo.datasets.augmentation import ImageAugmentation
    from zoo.training import Adam, Batches, CrossEntropy

    backend.keep_malloc_pages()
    trainer = zoo.Trainer(zoo.cnn_48x48(10), ImageAugmentation((0.1307,), (0.3081,)))
    trainer.compile(Adam(1e-3, l2=1e-4), CrossEntropy(), metrics=["accuracy"])
    images = np.random.default_rng(0).integers(0, 256, (1024, 48, 48, 1)).astype(np.uint8)
    labels = (np.arange(1024) % 10).astype(np.int32)
    return trainer, Batches((images, labels), batch_size, seed=0)


def main(config: Config) -> dict[str, Any]:
    if config.worker in DOCUMENT:
        step = document_step(config, keep_memory=config.worker == DOCUMENT[1])
        serve(step, config.steps, skip=1)
        return {}
    if config.worker:
        from benchmarks.step_timer import serve_fit
        from zoo.backends import backend

        if config.tf32 == "off":
            backend.disable_tf32()
        serve_fit(*zoo_training(config.batch_size), config.steps)
        return {}
    if not importlib.util.find_spec("torch"):
        raise SystemExit("The document's code needs PyTorch: install the extra `torch`")
    names = [*config.references, *(name for name in config.only if importlib.util.find_spec(name))]
    command = ["-m", "benchmarks.train_step", "--batch-size", str(config.batch_size)]
    command += ["--steps", str(config.steps), "--tf32", config.tf32, "--worker"]
    contenders = {
        name: Contender([*command, name], None if name in DOCUMENT else name) for name in names
    }
    results = race(contenders, "document", config.warmup, config.rounds, config.batch_size)
    if config.json:
        write_json(config.json, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
