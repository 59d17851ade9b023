"""Times a training step of `cnn_48x48` on each installed backend against the document's own code.

    python -m benchmarks.train_step --rounds 30

The zoo's step includes the augmentation of its batch; the document's begins with a batch that is
ready. The zoo keeps the C library from handing large freed blocks back to the system, which helps
the document's code as much: it stands in the table both ways.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.contenders import BACKENDS, Contender, race, serve, write_json

DOCUMENT = ("document", "document, freed memory kept")


@dataclass(frozen=True)
class Config:
    """Time training steps, the contenders in turn."""

    rounds: int = 30
    """Timed steps of each contender."""
    warmup: int = 5
    """Steps before that."""
    batch_size: int = 64
    """Images of a step."""
    worker: str | None = None
    """Internal: be one contender and take a step for each line of standard input."""
    json: Path | None = None
    """Also write the figures to this file."""


def document_step(batch_size: int, keep_memory: bool) -> Callable[[], Any]:
    if keep_memory:
        os.environ["KERAS_BACKEND"] = "torch"
        from zoo.backends import backend

        backend.keep_malloc_pages()
    import torch

    from benchmarks.document import MY_NET, make_step

    torch.manual_seed(0)
    step = make_step(MY_NET(10))
    x = torch.randn(batch_size, 3, 48, 48)
    y = torch.arange(batch_size) % 10
    return lambda: step(x, y)


def zoo_step(batch_size: int) -> Callable[[], Any]:
    import zoo
    from zoo.backends import backend
    from zoo.datasets.augmentation import ImageTransform
    from zoo.training import losses
    from zoo.training.optimizers import Adam

    backend.keep_malloc_pages()
    model, optimizer = zoo.cnn_48x48(10), Adam(l2=1e-4)
    optimizer.build(model.trainable_variables)
    objective = losses.classification_objective(model, ImageTransform((0.1307,), (0.3081,)), 0)
    step = backend.train_step(model, optimizer, objective)
    generator = np.random.default_rng(0)
    images = backend.on_device(generator.integers(0, 256, (1024, 48, 48, 1)).astype(np.uint8))
    labels = backend.on_device((np.arange(1024) % 10).astype(np.int32))
    indices = np.arange(batch_size, dtype=np.int32)
    number = iter(range(10**9))
    return lambda: float(step(images, labels, indices, np.int32(next(number)))["loss"])


def main(config: Config) -> dict[str, Any]:
    if config.worker in DOCUMENT:
        serve(document_step(config.batch_size, keep_memory=config.worker == DOCUMENT[1]))
        return {}
    if config.worker:
        serve(zoo_step(config.batch_size))
        return {}
    names = [*DOCUMENT, *(name for name in BACKENDS if importlib.util.find_spec(name))]
    if "torch" not in names:
        raise SystemExit("The document's code needs PyTorch: install the extra `torch`")
    command = ("-m", "benchmarks.train_step", "--batch-size", str(config.batch_size), "--worker")
    contenders = {
        name: Contender([*command, name], None if name in DOCUMENT else name) for name in names
    }
    results = race(contenders, "document", config.warmup, config.rounds, config.batch_size)
    if config.json:
        write_json(config.json, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
