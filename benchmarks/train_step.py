"""Times a training step of `cnn_48x48` on each installed backend against the document's own code.

    python -m benchmarks.train_step --rounds 30

Each contender is a process of its own. They take their steps in turn, one at a time, so that a
machine that slows down slows all of them down; a ratio is the median over the rounds of the
document's seconds divided by the contender's in the same round. The zoo's step includes the
augmentation of its batch; the document's begins with a batch that is ready. The zoo keeps the C
library from handing large freed blocks back to the system, which helps the document's code as much:
it stands in the table both ways.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BACKENDS = ("tensorflow", "torch", "jax")
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
        from zoo.backends.common import keep_freed_memory

        keep_freed_memory()
    import torch

    from benchmarks.document import MY_NET, make_step

    torch.manual_seed(0)
    step = make_step(MY_NET(10))
    x = torch.randn(batch_size, 3, 48, 48)
    y = torch.arange(batch_size) % 10
    return lambda: step(x, y)


def zoo_step(batch_size: int) -> Callable[[], Any]:
    import zoo
    from zoo import training
    from zoo.augment import ImageTransform
    from zoo.backends import backend
    from zoo.backends.common import keep_freed_memory
    from zoo.optimizers import Adam

    keep_freed_memory()
    model, optimizer = zoo.cnn_48x48(10), Adam(l2=1e-4)
    optimizer.build(model.trainable_variables)
    objective = training.classification_objective(model, ImageTransform((0.1307,), (0.3081,)), 0)
    step = backend.train_step(model, optimizer, objective)
    generator = np.random.default_rng(0)
    images = backend.on_device(generator.integers(0, 256, (1024, 48, 48, 1)).astype(np.uint8))
    labels = backend.on_device((np.arange(1024) % 10).astype(np.int32))
    indices = np.arange(batch_size, dtype=np.int32)
    number = iter(range(10**9))
    return lambda: float(step(images, labels, indices, np.int32(next(number)))["loss"])


def work(contender: str, batch_size: int) -> None:
    """Takes a step for each line that comes in and answers with its seconds."""
    if contender in DOCUMENT:
        step = document_step(batch_size, keep_memory=contender == DOCUMENT[1])
    else:
        step = zoo_step(batch_size)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Adds figures to those that the file holds already."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **figures}, indent=2) + "\n")


class Contender:
    """A worker process."""

    def __init__(self, name: str, batch_size: int):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if name not in DOCUMENT:
            environment["KERAS_BACKEND"] = name
        command = [sys.executable, __file__, "--worker", name, "--batch-size", str(batch_size)]
        self.process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.seconds: list[float] = []

    def step(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        work(config.worker, config.batch_size)
        return {}
    names = [*DOCUMENT, *(name for name in BACKENDS if importlib.util.find_spec(name))]
    if "torch" not in names:
        raise SystemExit("The document's code needs PyTorch: install the extra `torch`")
    contenders = {name: Contender(name, config.batch_size) for name in names}
    for contender in contenders.values():
        for _ in range(config.warmup):
            contender.step()
    for _ in range(config.rounds):
        for contender in contenders.values():
            contender.seconds.append(contender.step())
    for contender in contenders.values():
        contender.stop()

    reference = contenders["document"].seconds
    results = {}
    table = Table("contender", "seconds a step", "images/s", "ratio", "its quartiles")
    for name, contender in contenders.items():
        seconds = statistics.median(contender.seconds)
        ratios = [ours / theirs for ours, theirs in zip(reference, contender.seconds)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        results[name] = {
            "seconds": seconds,
            "images_per_second": config.batch_size / seconds,
            "ratio": ratio,
            "ratio_quartiles": [low, high],
        }
        table.add_row(
            name,
            f"{seconds:.3f}",
            f"{config.batch_size / seconds:.0f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
        )
    Console().print(table)
    if config.json:
        write_json(config.json, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
