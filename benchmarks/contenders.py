"""Compares the speed of implementations that take turns.

Each contender is a process of its own. The contenders take turns, so that a machine that slows down
slows all of them down. A ratio is that of the seconds of two contenders in the same round.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BACKENDS = ("tensorflow", "torch", "jax")
MIN_ROUNDS = 3


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


def serve(
    call: Callable[[], Any],
    steps: int = 1,
    skip: int = 0,
    wait: Callable[[Any], Any] = lambda result: None,
) -> None:
    """Takes the turns of a contender: one for each line of standard input.

    A turn prints the mean seconds of a call. `benchmarks.step_timer.serve_fit` does the same for
    the steps of a Keras `fit`.

    Args:
        call: Function that is timed, such as a training step.
        steps: Number of timed calls in a turn.
        skip: Number of calls before them that are not timed.
        wait: Function of a call's result that waits until it is computed.
    """
    for _ in sys.stdin:
        for _ in range(skip):
            wait(call())
        started = time.perf_counter()
        for _ in range(steps):
            result = call()
        wait(result)
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
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def race(
    contenders: Mapping[str, Contender], warmup: int, rounds: int, seconds: float = float("inf")
) -> dict[str, list[float]]:
    """Lets contenders take turns and returns the seconds of a step in each round.

    Args:
        contenders: Contenders by name. Their processes are ended.
        warmup: Number of turns of each contender that are not timed.
        rounds: Number of timed turns of each contender.
        seconds: Time after which no further round begins, but for the first three.
    """
    deadline = time.monotonic() + seconds
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for contender in contenders.values():
            for _ in range(warmup):
                contender.turn()
        for number in range(rounds):
            if number >= MIN_ROUNDS and time.monotonic() > deadline:
                break
            for name, contender in contenders.items():
                turns[name].append(contender.turn())
    finally:
        for contender in contenders.values():
            contender.stop()
    return turns


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * list(values)
    return low, median, high


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of how many times faster we are, over the rounds of a race."""
    return quartiles([a / b for a, b in zip(theirs, ours, strict=True)])
