"""Compares the speed of implementations that take turns.

Each contender is a process of its own. The contenders take turns, so that a machine that slows down
slows all of them down. A ratio is the median over the rounds of the reference's seconds divided by
the contender's seconds in the same round.
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


def environment(backend: str | None = None) -> dict[str, str]:
    """Environment variables of a process that may share a GPU with others.

    Args:
        backend: Backend of Keras in the process; by default it is not set.
    """
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return {**variables, "KERAS_BACKEND": backend} if backend else variables


def serve(call: Callable[[], Any], steps: int = 1, skip: int = 0) -> None:
    """Takes the turns of a contender: one for each line of standard input.

    A turn prints the mean seconds of a call. `benchmarks.step_timer.serve_fit` does the same for
    the steps of a Keras `fit`.

    Args:
        call: Function that is timed, such as a training step.
        steps: Number of timed calls in a turn.
        skip: Number of calls before them that are not timed.
    """
    for _ in sys.stdin:
        for _ in range(skip):
            call()
        started = time.perf_counter()
        for _ in range(steps):
            call()
        print((time.perf_counter() - started) / steps, flush=True)


class Contender:
    """Process that takes a turn on request.

    Args:
        arguments: Arguments of Python.
        backend: Backend of Keras; None for a process without Keras.
    """

    def __init__(self, arguments: Sequence[str], backend: str | None):
        self._arguments = arguments
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(backend),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def turn(self) -> float:
        """Takes a turn and returns the seconds of a step.

        Raises:
            RuntimeError: If the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("turn\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(
                f"A contender ended with exit status {self._process.wait()}: "
                f"python {' '.join(self._arguments)}"
            )
        return float(answer)

    def stop(self) -> None:
        """Ends the process, which closes by itself when its standard input does."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def race(
    contenders: Mapping[str, Contender], reference: str, warmup: int, rounds: int, examples: int
) -> dict[str, Any]:
    """Times steps, prints a table and returns its figures.

    Args:
        contenders: Contenders by name. Their processes are ended.
        reference: Name of the contender that the ratios refer to.
        warmup: Number of turns of each contender that are not timed.
        rounds: Number of timed turns of each contender.
        examples: Number of examples, or tokens, in a step.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for contender in contenders.values():
            for _ in range(warmup):
                contender.turn()
        for _ in range(rounds):
            for name, contender in contenders.items():
                seconds[name].append(contender.turn())
    finally:
        for contender in contenders.values():
            contender.stop()
    results = {}
    table = Table("contender", "seconds a step", "examples/s", "ratio", "its quartiles")
    for name, turns in seconds.items():
        typical = statistics.median(turns)
        ratios = [theirs / ours for theirs, ours in zip(seconds[reference], turns, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4) if rounds > 1 else 3 * ratios
        results[name] = {
            "seconds": typical,
            "examples_per_second": examples / typical,
            "ratio": ratio,
            "ratio_quartiles": [low, high],
        }
        table.add_row(
            name,
            f"{typical:.4f}",
            f"{examples / typical:.0f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
        )
    Console().print(table)
    return results


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Adds figures to those that the file already holds."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **figures}, indent=2) + "\n")
