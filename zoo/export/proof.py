"""Proof of a file: it runs without Keras, on sizes that the export has not seen, and agrees."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo import random
from zoo.backends import file_runtime
from zoo.export.evaluation import Evaluation, Metrics
from zoo.export.formats import Format
from zoo.export.source import Source
from zoo.export.tasks import Arrays
from zoo.parity.report import Row, Status

BATCH_SIZES = (1, 3, 17)  # the example of the export has 20 rows
LENGTHS = (1, 7, 12)  # of the dynamic axes besides; the example's are 21, 22, ...
TIMED = (1, 32)  # batch sizes whose duration is measured
_TIMED_LENGTH = 12
_LAST_LINES = 6


@dataclass(frozen=True)
class Batch:
    """Inputs of one comparison.

    Attributes:
        title: Sizes in words.
        arrays: The inputs, in the model's order.
    """

    title: str
    arrays: Arrays


def batches(source: Source, seed: int) -> tuple[list[Batch], list[Batch]]:
    """Random inputs of the batches to compare, and of those to measure.

    Args:
        source: The model; weights alone have no inputs, and nothing to measure.
        seed: Seed of the inputs.
    """
    if not source.specs:
        return [Batch(f"{len(source.outputs)} weights", [])], []
    key = random.key(seed)
    sizes = [*zip(BATCH_SIZES, LENGTHS), *((size, _TIMED_LENGTH) for size in TIMED)]
    drawn = [
        _draw(source, random.fold_in(key, number), size, length)
        for number, (size, length) in enumerate(sizes)
    ]
    return drawn[: len(BATCH_SIZES)], drawn[len(BATCH_SIZES) :]


def _draw(source: Source, key: random.Key, batch_size: int, length: int) -> Batch:
    axes = [a for entry in source.axes.values() for a in entry.shape[1:] if isinstance(a, str)]
    # Axes that may differ do: length, length + 1, ...
    sizes = {
        axis: min(length + i, source.limits.get(axis, length + i))
        for i, axis in enumerate(dict.fromkeys(axes))
    }
    title = ", ".join([f"batch {batch_size}", *(f"{axis} {n}" for axis, n in sizes.items())])
    sizes["batch"] = batch_size
    arrays = []
    for number, (name, spec) in enumerate(source.specs.items()):
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in source.axes[name].shape)
        arrays.append(spec.draw(random.fold_in(key, number), shape))
    return Batch(title, arrays)


@dataclass(frozen=True)
class FileResult:
    """What the process without Keras has found.

    Attributes:
        runtime: Name and version of the runtime.
        load_seconds: Seconds of loading the file.
        call_seconds: Seconds of a call by the batch size; None where the file refuses the batch.
        outputs: Outputs of each compared batch, or the text of the error.
        metrics: Metrics of the evaluation, or the text of the error; None without an evaluation.
    """

    runtime: str
    load_seconds: float
    call_seconds: dict[int, float | None]
    outputs: list[Arrays | str]
    metrics: Metrics | str | None


def run_file(
    path: Path,
    entry: Format,
    source: Source,
    compared: list[Batch],
    timed: list[Batch],
    evaluation: Evaluation | None,
    folder: Path,
    time_limit: float,
) -> FileResult:
    """Runs a file in a fresh process without Keras.

    Raises:
        RuntimeError: If the file cannot be loaded. The text has the last lines of the error.
    """
    evaluated = [] if evaluation is None else evaluation.batches
    run = [*(batch.arrays for batch in compared), *evaluated]
    for number, arrays in enumerate([*run, *(batch.arrays for batch in timed)]):
        np.savez(folder / f"in-{number}.npz", *arrays)
    request = {
        "format": entry.name,
        "path": str(path),
        "inputs": list(source.specs),
        "outputs": list(source.outputs),
        "run": len(run),
        "timed": len(timed),
    }
    run_alone(file_runtime.__file__, request, folder, time_limit)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    errors = {int(number): text for number, text in result["errors"].items()}

    def read(number: int) -> Arrays:
        with np.load(folder / f"out-{number}.npz") as stored:
            return [stored[name] for name in stored.files]

    outputs = [errors[n] if n in errors else read(n) for n in range(len(compared))]
    metrics: Metrics | str | None = None
    if evaluation is not None:
        numbers = range(len(compared), len(run))
        refused = [errors[n] for n in numbers if n in errors]
        metrics = refused[0] if refused else evaluation.metrics(map(read, numbers))
    call_seconds = dict(zip(TIMED, result["call_seconds"]))
    return FileResult(result["runtime"], result["load_seconds"], call_seconds, outputs, metrics)


def run_alone(program: str, request: Mapping[str, Any], folder: Path, time_limit: float) -> None:
    """Runs a program of `zoo.backends` on a folder with a request, in a fresh process.

    Raises:
        RuntimeError: If the program fails. The text has the last lines of the error.
    """
    (folder / "request.json").write_text(json.dumps(request), "utf-8")
    try:
        process = subprocess.run(
            # -P: the folder of the program has modules with the names of the backends.
            [sys.executable, "-P", program, str(folder)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            timeout=time_limit,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"No result within {time_limit:g} s") from None
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise RuntimeError("\n".join([f"Exit status {process.returncode}", *lines]))


def compare(
    source: Source,
    entry: Format,
    tolerance: float,
    compared: list[Batch],
    file_outputs: list[Arrays | str],
    answers: Mapping[str, list[Arrays | str]],
) -> Iterator[Row]:
    """Compares the file's outputs with those of the model on each backend."""
    for batch, from_file, *from_backends in zip(compared, file_outputs, *answers.values()):
        for name, expected in zip(answers, from_backends):
            between = entry.runtime, name
            if isinstance(expected, str):  # such as one step, where a convolution needs three
                detail = f"The model refuses such inputs: {expected}"
                yield Row(batch.title, between, "float32", "ruled out", detail=detail)
            elif isinstance(from_file, str):
                yield Row(batch.title, between, "float32", "differs", detail=from_file)
            else:
                yield _row(source.outputs, tolerance, batch.title, between, from_file, expected)


def _row(
    names: tuple[str, ...],
    tolerance: float,
    title: str,
    between: tuple[str, ...],
    actual: Arrays,
    expected: Arrays,
) -> Row:
    """Compares the outputs of one batch; the row is of the most distant one."""
    if not any(np.isfinite(array).any() for array in expected):
        detail = "The model's outputs have no finite number"
        return Row(title, between, "float32", "ruled out", detail=detail)
    measured = []
    for name, x, y in zip(names, actual, expected, strict=True):
        if x.shape != y.shape:
            detail = f"{name} must have the shape {y.shape}. Received: {x.shape}"
            return Row(title, between, "float32", "differs", where=name, detail=detail)
        measured.append((relative_distance(x, y), name))
    distance, name = max(measured, key=lambda pair: pair[0])
    status: Status = "agrees" if distance <= tolerance else "differs"
    return Row(title, between, "float32", status, distance, tolerance, name)


def compare_metrics(
    source: Source,
    runtime: str,
    metrics: Metrics | str,
    expected: Mapping[str, Mapping[str, float]],
) -> Iterator[Row]:
    """Compares the metrics of a file with those of the model and of the card.

    Args:
        source: The model.
        runtime: Name of the library that runs the file.
        metrics: Metrics of the file, or the text of the error with which it refuses the inputs.
        expected: Metrics by the name of the backend, or "card".
    """
    for origin, values in expected.items():
        between = runtime, origin
        if isinstance(metrics, str):
            yield Row("metrics", between, "float32", "differs", detail=metrics)
            continue
        for name in (name for name in metrics if name in values):
            actual, value = metrics[name], values[name]
            distance = relative_distance(np.array([actual]), np.array([value]))
            status: Status = "agrees" if distance <= source.change_tolerance else "differs"
            detail = f"{actual:.6g}, and {value:.6g} of {origin}"
            yield Row(
                name, between, "float32", status, distance, source.change_tolerance, detail=detail
            )


def relative_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance of two arrays, relative to the largest magnitude of the expected one.

    It is infinite if only one of the arrays has a number that is not finite in some place.
    """
    x, y = (array.astype(np.float64) for array in (actual, expected))
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        distances = np.where(same, 0.0, np.abs(x - y))
    if not np.isfinite(distances).all():
        return float("inf")
    scale = np.abs(y[np.isfinite(y)]).max(initial=0.0)
    return float(distances.max() / max(scale, np.finfo(np.float32).tiny))
