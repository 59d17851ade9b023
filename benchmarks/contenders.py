"""Training steps against each other, in turn.

Each contender is a process of its own. They take their steps one after the other, so that a machine
that slows down slows all of them down; a ratio is the median over the rounds of the reference's
seconds divided by the contender's in the same round.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BACKENDS = ("tensorflow", "torch", "jax")


def serve(step: Callable[[], Any]) -> None:
    """In a contender: takes a step for each line that comes in and answers with its seconds."""
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


class Contender:
    """A process that takes a step when it is told to.

    Args:
        arguments: of Python.
        backend: that Keras runs on, if it does.
    """

    def __init__(self, arguments: Sequence[str], backend: str | None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if backend is not None:
            environment["KERAS_BACKEND"] = backend
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def step(self) -> float:
        """Its seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def race(
    contenders: Mapping[str, Contender], reference: str, warmup: int, rounds: int, examples: int
) -> dict[str, Any]:
    """Times steps, prints a table and returns its figures.

    Args:
        contenders: by name; they are stopped afterwards.
        reference: what the ratios are to.
        warmup: steps before the timed ones.
        rounds: timed steps of each.
        examples: of a step.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        for _ in range(warmup):
            contender.step()
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender.step())
    for contender in contenders.values():
        contender.stop()
    results = {}
    table = Table("contender", "seconds a step", "examples/s", "ratio", "its quartiles")
    for name, taken in seconds.items():
        typical = statistics.median(taken)
        ratios = [theirs / ours for theirs, ours in zip(seconds[reference], taken)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        results[name] = {
            "seconds": typical,
            "examples_per_second": examples / typical,
            "ratio": ratio,
            "ratio_quartiles": [low, high],
        }
        table.add_row(
            name,
            f"{typical:.3f}",
            f"{examples / typical:.0f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
        )
    Console().print(table)
    return results


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Adds figures to those that the file holds already."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **figures}, indent=2) + "\n")
