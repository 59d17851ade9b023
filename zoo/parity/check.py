"""The check of one model: workers are asked, their answers compared, a report written."""

import contextlib
import dataclasses
import functools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import combinations
from pathlib import Path
from typing import Any

from zoo.parity import comparisons, tasks
from zoo.parity.case import Case
from zoo.parity.measurements import Measurements
from zoo.parity.report import Report, Row, RungReport
from zoo.parity.rungs import RUNGS, Rung
from zoo.parity.workers import WorkerError, Workers

Progress = Callable[[str, Sequence[RungReport]], None]

_AT_ONCE = 2  # workers; much of what they do is single-threaded


def check(
    build: Any,
    *,
    rungs: str | Sequence[int] = "1-10",
    backends: Sequence[str] | None = None,
    workers: Workers | None = None,
    time_limit: float = 600.0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    **case: Any,
) -> Report:
    """Says whether a Keras model is the same on every backend, and where it begins not to be.

    Args:
        build: makes the model, a function without arguments; or "package.module:function"; or a
            name that `python -m zoo list` shows. It is called in a process of each backend, so it
            must not hold on to tensors or layers.
        rungs: such as "1-6" or "2,4"; see `zoo.parity.RUNGS`.
        backends: two or three of "tensorflow", "torch", "jax"; by default those installed.
        workers: processes kept from an earlier check, in place of `backends` and `time_limit`.
        time_limit: seconds a worker may take for a task.
        folder: where weights, data and every backend's arrays are kept as NumPy files; by default
            a temporary folder that is removed.
        progress: called with a line of text and the rungs that are done.
        **case: how the model is to be built and fed: `arguments` of the builder, and the attributes
            of `zoo.parity.Case`.

    Returns:
        A report. A worker that fails is a row of it.

    Raises:
        ValueError: for an argument that makes no sense; the text says which.
    """
    chosen = parse_rungs(rungs)
    subject = Case.of(build, **case)
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(Workers(backends, time_limit))
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zoo-check-"))
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        return _Check(subject, chosen, workers, path, progress or (lambda *_: None)).run()


def assert_backends_agree(build: Any, **arguments: Any) -> Report:
    """`check` for a test suite.

    Args:
        build: as for `check`.
        **arguments: likewise.

    Returns:
        The report.

    Raises:
        AssertionError: if the backends differ, or a rung could not be checked; the text says which
            rungs, where and how far.
    """
    report = check(build, **arguments)
    if not report.agrees:
        raise AssertionError("\n".join([f"{report.model} {report.verdict}:", *report.troubles]))
    return report


def parse_rungs(text: str | Sequence[int]) -> list[int]:
    """The numbers in "1-4,7"."""
    numbers: set[int] = set()
    try:
        for part in text.split(",") if isinstance(text, str) else map(str, text):
            first, _, last = part.partition("-")
            numbers |= set(range(int(first), int(last or first) + 1))
    except ValueError:
        numbers = set()
    if not numbers or not numbers <= set(RUNGS):
        raise ValueError(
            f"`rungs` must be numbers from {min(RUNGS)} to {max(RUNGS)}, such as 1-6 or 2,4. "
            f"Received: rungs={text}"
        )
    return sorted(numbers)


class _Check:
    def __init__(
        self, case: Case, chosen: Sequence[int], workers: Workers, folder: Path, progress: Progress
    ):
        self._rungs = [RUNGS[number] for number in chosen]
        if case.sample is None and 8 in chosen:
            self._rungs[chosen.index(8)] = dataclasses.replace(RUNGS[8], tasks=())
        self._workers = workers
        self._progress = progress
        precisions = {precision for rung in self._rungs for precision in rung.precisions}
        self._evidence = Measurements(
            case, folder, workers.names, tuple(sorted(precisions)), results={}, errors={}
        )
        self._gone: dict[tuple[str, str], str] = {}  # workers that died or hung, and how
        self._reports: dict[int, RungReport] = {}
        self._comparing = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> Report:
        started = time.perf_counter()
        evidence = self._evidence
        if self._prepare():
            first = [tasks.describe, *self._wanted(exclude=(tasks.describe, tasks.resume))]
            self._everywhere({p: self._of(first, p) for p in evidence.precisions})
            if tasks.resume in self._wanted():
                self._everywhere({p: [self._resume(p)] for p in evidence.precisions})
        self._compare(self._rungs)
        reports = [self._reports[rung.number] for rung in self._rungs]
        return Report(
            model=evidence.case.name,
            environments=self._environments(),
            settings={
                key: value
                for key, value in _settings(evidence.case).items()
                if key in ("examples", "length", "steps", "seed", "loss")
            },
            notes=tuple(self._notes()),
            rungs=tuple(reports),
            layers=self._layers(),
            curves=self._curves(),
            seconds=round(time.perf_counter() - started, 1),
        )

    # -------------------------------------------------------------- asking

    def _prepare(self) -> bool:
        """Any backend may make the weights and data."""
        for name in self._evidence.names:
            self._ask(name, self._evidence.precisions[0], tasks.prepare)
            if self._evidence.done("prepare", self._evidence.precisions[0]):
                return True
        return False

    def _wanted(self, exclude: Sequence[Any] = ()) -> list[Any]:
        found = dict.fromkeys(task for rung in self._rungs for task in rung.tasks)
        return [task for task in found if task not in exclude]

    def _of(self, chosen: Sequence[Any], precision: str) -> list[Any]:
        """The tasks that a rung wants in this precision."""
        return [
            task
            for task in chosen
            if task is tasks.describe
            or any(task in rung.tasks and precision in rung.precisions for rung in self._rungs)
        ]

    def _everywhere(self, chosen: dict[str, list[Any]]) -> None:
        """Each precision's tasks on each backend."""
        places = [(name, p) for p in chosen for name in self._evidence.names]

        def work(place: tuple[str, str]) -> None:
            for task in chosen[place[1]]:
                if not self._stopping.is_set():
                    self._ask(*place, task)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = [pool.submit(work, place) for place in places]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C: nobody waits for the rest
                self._stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                while not all(future.done() for future in futures):
                    self._workers.close()
                    wait(futures, timeout=0.2)
                raise

    def _resume(self, precision: str) -> Callable[..., Any]:
        sources = self._evidence.done("train", precision)

        @functools.wraps(tasks.resume)
        def resume(case: Case, folder: Path) -> Any:
            return tasks.resume(case, folder, sources)

        return resume

    def _ask(self, name: str, precision: str, task: Callable[..., Any]) -> None:
        key = task.__name__, name, precision
        evidence = self._evidence
        with self._comparing:
            if (name, precision) in self._gone:
                evidence.errors[key] = self._gone[name, precision]
                return
            done = [self._reports[number] for number in sorted(self._reports)]
            self._progress(f"{name}, {precision}: {task.__name__.replace('_', ' ')}", done)
        result = error = None
        try:
            result = self._workers[name, precision](task, evidence.case, evidence.folder)
        except WorkerError as raised:
            error = raised
        with self._comparing:
            if error is None:
                evidence.results[key] = result
            else:
                evidence.errors[key] = str(error)
                # A compiler that fails says nothing of the rest.
                if error.ended and task is not tasks.variants:
                    self._gone[name, precision] = str(error)
            self._compare([rung for rung in self._rungs if self._can_be_compared(rung)])

    # -------------------------------------------------------------- answering

    def _can_be_compared(self, rung: Rung) -> bool:
        """Whether each of its tasks has come to an end everywhere, in all precisions it runs in."""
        evidence = self._evidence
        return all(
            (task.__name__, name, precision) in {**evidence.results, **evidence.errors}
            for precision in evidence.precisions
            for task in self._of(rung.tasks, precision)
            for name in evidence.names
        )

    def _compare(self, wanted: Sequence[Rung]) -> None:
        for rung in wanted:
            if rung.number not in self._reports:
                rows = tuple(self._rows_or_failure(rung))
                self._reports[rung.number] = RungReport(rung.number, rung.title, rung.reason, rows)

    def _rows_or_failure(self, rung: Rung) -> Iterator[Row]:
        try:
            yield from self._rows(rung)
        except Exception as error:  # models that differ much cannot always be compared
            detail = f"could not be compared: {type(error).__name__}: {error}"
            yield Row(rung.title, self._evidence.names, "", "failed", detail=detail)

    def _rows(self, rung: Rung) -> Iterator[Row]:
        evidence = self._evidence
        if rung.number == 8 and evidence.case.sample is None:
            detail = "no `sample` was given: the model generates nothing"
            yield Row("generated", evidence.names, "", "ruled out", detail=detail)
            return
        if not evidence.results:
            for (task, name, precision), error in evidence.errors.items():
                yield Row(task, (name,), precision, "failed", detail=error)
            return
        live, silenced = self._found("live"), self._found("silenced")
        if (live and rung.number not in (1, 5)) or (silenced and rung.number == 6):
            detail = "these layers draw numbers of the backend's own generator"
            where = ", ".join(live or silenced)
            yield Row(rung.title, evidence.names, "", "ruled out", where=where, detail=detail)
            return
        wanted = {task.__name__ for task in rung.tasks}
        for (task, name, precision), error in evidence.errors.items():
            if task in wanted and precision in rung.precisions:
                what = task.replace("_", " ")
                yield Row(what, (name,), precision, "failed", detail=error)
        yield from rung.compare(evidence)

    def _found(self, what: str) -> list[str]:
        """What `describe` says on any backend."""
        found: dict[str, None] = {}
        for (task, _, _), result in self._evidence.results.items():
            if task == "describe":
                found |= dict.fromkeys(result[what])
        return list(found)

    def _notes(self) -> Iterator[str]:
        own = "drawn from the backend's own generator"
        if silenced := self._found("silenced"):
            yield (
                f"{', '.join(silenced)}: {own} in training, so these layers were put into "
                "inference mode. Rungs 2, 3, 4, 7 and 9 compare everything else; rung 6, training "
                "with its randomness, is ruled out. `zoo.random.Dropout` draws the same numbers on "
                "every backend."
            )
        if live := self._found("live"):
            yield (
                f"{', '.join(live)}: {own} in inference mode, too, so only rungs 1 and 5 can be "
                "compared. `zoo.random` draws the same numbers on every backend."
            )
        if single := self._evidence.single:
            yield (
                f"{', '.join(single)}: computed in float32 although the model is in float64, so "
                "float64 cannot tell rounding from a mistake to more digits than float32 has."
            )

    def _environments(self) -> dict[str, dict[str, str]]:
        return {
            name: result["environment"]
            for (task, name, _), result in self._evidence.results.items()
            if task == "describe"
        }

    def _layers(self) -> dict[str, list[tuple[str, float, float]]]:
        evidence = self._evidence
        return {
            f"{mode} mode, {precision}, {a} and {b}": [
                (reading.where, reading.distance, reading.tolerance)
                for reading in comparisons.layer_readings(evidence, mode, a, b, precision)
            ]
            for precision in evidence.precisions
            for mode in ("inference", "training")
            for a, b in combinations(evidence.done("outputs", precision), 2)
        }

    def _curves(self) -> dict[str, dict[str, list[float]]]:
        evidence = self._evidence
        if (
            self._found("silenced")
            or self._found("live")
            or not any(rung.number == 6 for rung in self._rungs)
        ):
            return {}
        return {
            precision: {
                name: evidence.arrays("losses", name, precision)["losses"].tolist()
                for name in evidence.done("train", precision)
            }
            for precision in evidence.precisions
        }


def _settings(case: Case) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int | str) else getattr(value, "__name__", str(value))
        for key, value in vars(case).items()
    }
