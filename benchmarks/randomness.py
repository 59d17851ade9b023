"""Sends the zoo's random bits through dieharder, the classical battery of tests.

    KERAS_BACKEND=torch python -m benchmarks.randomness --tests 0 1 2 3 8 100 101 102

Debian's package `dieharder` has the program; all of its tests take an hour or two a stream. Each
stream is made as training makes its numbers:

    long    2**24 numbers of each step, a large layer's
    steps   4,096 numbers of each step, a small layer's
    seeds   4,096 numbers of each of the neighbouring seeds 0, 1, 2, ...
    few     256 numbers of each step, a bias vector's or an augmentation's
"""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import tyro

from zoo import random


@dataclass(frozen=True)
class Config:
    """Test the generator with dieharder."""

    streams: tuple[str, ...] = ("long", "steps", "seeds", "few")
    """Which streams to test."""
    tests: tuple[int, ...] = ()
    """Numbers of dieharder's tests; by default all."""


def blocks(stream: str) -> Iterator[np.ndarray]:
    """Random bits without end."""
    root = random.key(0, stream)
    for number in count():
        if stream == "seeds":
            yield random.bits(random.key(number, stream), 4096)
        elif stream == "few":
            keys = (random.fold_in(root, step) for step in range(512 * number, 512 * (number + 1)))
            yield np.concatenate([random.bits(key, 256) for key in keys])
        else:
            yield random.bits(random.fold_in(root, number), 2**24 if stream == "long" else 4096)


def test(stream: str, arguments: list[str]) -> list[str]:
    """Runs dieharder on a stream until it has had enough; returns its lines of results."""
    command = ["dieharder", "-g", "200", "-D", "default", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for block in blocks(stream):
            process.stdin.write(block.tobytes())
    except BrokenPipeError:
        pass
    output = process.stdout.read().decode()
    return [line for line in output.splitlines() if line.count("|") == 5 and "ntup" not in line]


def main(config: Config) -> None:
    if shutil.which("dieharder") is None:
        raise SystemExit("dieharder is not installed; Debian's package of that name has it")
    runs = [["-d", str(number)] for number in config.tests] or [["-a"]]
    for stream in config.streams:
        lines = [line for arguments in runs for line in test(stream, arguments)]
        verdicts = [line.split("|")[-1].strip() for line in lines]
        for line, verdict in zip(lines, verdicts):
            if verdict != "PASSED":
                print(line)
        counts = ", ".join(f"{verdicts.count(v)} {v.lower()}" for v in sorted(set(verdicts)))
        print(f"{stream}: {counts}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
