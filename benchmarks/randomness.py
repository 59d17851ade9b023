"""Tests the zoo's random bits with dieharder, the classical battery of tests.

    KERAS_BACKEND=torch python -m benchmarks.randomness --tests 0 1 2 3 8 100 101 102

Debian's package `dieharder` has the program; all of its tests take an hour or two for a stream.
Each stream is made in the way that training makes its numbers:

    long    2**24 numbers of each step, as for a large layer
    steps   4,096 numbers of each step, as for a small layer
    seeds   4,096 numbers of each of the neighbouring seeds 0, 1, 2, ...
    few     256 numbers of each step, as for a bias vector or an augmentation
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
    """Test the random number generator with dieharder."""

    streams: tuple[str, ...] = ("long", "steps", "seeds", "few")
    """Names of the streams to test."""
    tests: tuple[int, ...] = ()
    """Numbers of dieharder's tests; by default all."""


def blocks(stream: str) -> Iterator[np.ndarray]:
    """Yields blocks of random bits of an endless stream."""
    root = random.key(0, stream)
    for number in count():
        if stream == "seeds":
            yield random.bits(random.key(number, stream), 4096)
        elif stream == "few":
            keys = (random.fold_in(root, step) for step in range(512 * number, 512 * (number + 1)))
            yield np.concatenate([random.bits(key, 256) for key in keys])
        else:
            yield random.bits(random.fold_in(root, number), 2**24 if stream == "long" else 4096)


def run_dieharder(stream: str, arguments: list[str]) -> list[str]:
    """Feeds a stream to dieharder until the program ends; returns its lines of results."""
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
    batteries = [["-d", str(number)] for number in config.tests] or [["-a"]]
    for stream in config.streams:
        lines = [line for arguments in batteries for line in run_dieharder(stream, arguments)]
        verdicts = [line.split("|")[-1].strip() for line in lines]
        for line, verdict in zip(lines, verdicts, strict=True):
            if verdict != "PASSED":
                print(line)
        counts = ", ".join(f"{verdicts.count(v)} {v.lower()}" for v in sorted(set(verdicts)))
        print(f"{stream}: {counts}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
