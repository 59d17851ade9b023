"""Cross-backend check of one model: runs the tasks, compares their results, creates the report."""

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
from typing import Annotated, Any

from zoo.parity import comparisons, data, diagnosis, tasks
from zoo.parity.case import Case
from zoo.parity.measurements import Measurements
from zoo.parity.report import Report, Row, RungReport
from zoo.parity.rungs import RUNGS, Rung
from zoo.parity.workers import WorkerError, Workers
from zoo.validation import AnyPath, Positive, each, validated, whole

Progress = Callable[[str, Sequence[RungReport]], None]
Rungs = str | Annotated[Sequence[int], each(whole(None, None))]

_MAX_CONCURRENT = 2  # workers; much of their work is single-threaded


@validated
def check(
    build: Any,
    *,
    rungs: Rungs = "1-10",
    backends: Sequence[str] | None = None,
    workers: Workers | None = None,
    time_limit: Positive = 600.0,
    folder: AnyPath | None = None,
    progress: Progress | None = None,
    **case: Any,
) -> Report:
    """Compares a Keras model on several backends and locates the first differences.

    Args:
        build: Builder of the model: a function without arguments, "package.module:function", or a
            name that `python -m zoo list` shows. The builder is called in a process of each
            backend, so it must not refer to tensors or layers.
        rungs: Numbers of the rungs, such as "1-6" or "2,4"; see `zoo.parity.RUNGS`.
        backends: Two or three of "tensorflow", "torch", "jax"; by default all installed ones.
        workers: Workers of an earlier check, which replace `backends` and `time_limit`.
        time_limit: Time limit of one task, in seconds.
        folder: Folder in which weights, data and every backend's arrays are kept as NumPy files; by
            default a temporary folder that is deleted.
        progress: Callback, called with a line of text and the finished rungs.
        **case: Arguments of the case: `arguments` of the builder and the attributes of
            `zoo.parity.Case`, such as `input_shape` and `loss`.

    Returns:
        A report. The failure of a worker is a row of the report.

    Raises:
        ValueError: If an argument is invalid; the text names the argument.
    """
    numbers = parse_rungs(rungs)
    model_case = Case.of(build, **case)
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(Workers(backends, time_limit))
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zoo-check-"))
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        return _Check(model_case, numbers, workers, path, progress or (lambda *_: None)).execute()


def assert_backends_agree(build: Any, **arguments: Any) -> Report:
    """Asserts that a Keras model agrees on several backends, for use in a test suite.

    Args:
        build: Builder of the model: a function without arguments, "package.module:function", or a
            name that `python -m zoo list` shows.
        **arguments: Keyword arguments of `check`.

    Returns:
        The report of the check.

    Raises:
        AssertionError: If the backends differ or a rung could not be checked. The text names the
            rungs, the layers or weights, and the distances.
        ValueError: If an argument is invalid.
    """
    report = check(build, **arguments)
    if not report.agrees:
        raise AssertionError("\n".join([f"{report.model} {report.verdict}:", *report.failures]))
    return report


@validated
def parse_rungs(text: Rungs) -> list[int]:
    """Parses rung numbers, such as "1-4,7".

    Raises:
        ValueError: If the text is not a list of rung numbers and ranges.
    """
    numbers: set[int] = set()
    try:
        for part in text.split(",") if isinstance(text, str) else map(str, text):
            first, _, last = part.partition("-")
            start, stop = int(first), int(last or first)
            if stop > max(RUNGS):
                raise ValueError
            numbers |= set(range(start, stop + 1))
    except ValueError:
        numbers = set()
    if not numbers or not numbers <= set(RUNGS):
        raise ValueError(
            f"`rungs` must be numbers from {min(RUNGS)} to {max(RUNGS)}, such as 1-6 or 2,4. "
            f"Received: rungs={text}"
        )
    return sorted(numbers)


class _Check:
    """One execution of the check: runs tasks in the workers and compares their results."""

    def __init__(
        self, case: Case, numbers: Sequence[int], workers: Workers, folder: Path, progress: Progress
    ):
        self._rungs = [RUNGS[number] for number in numbers]
        if case.sample is None and 8 in numbers:
            self._rungs[numbers.index(8)] = dataclasses.replace(RUNGS[8], tasks=())
        self._workers = workers
        self._progress = progress
        precisions = {precision for rung in self._rungs for precision in rung.precisions}
        self._measurements = Measurements(
            case, folder, workers.names, tuple(sorted(precisions)), results={}, errors={}
        )
        self._ended: dict[tuple[str, str], str] = {}  # error texts of workers that crashed or hung
        self._reports: dict[int, RungReport] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def execute(self) -> Report:
        started = time.perf_counter()
        measurements = self._measurements
        if self._prepare():
            first = [tasks.describe, *self._tasks(exclude=(tasks.describe, tasks.resume))]
            precisions = measurements.precisions
            self._run_on_all_backends({p: self._tasks_for(first, p) for p in precisions})
            if tasks.resume in self._tasks():
                self._run_on_all_backends({p: [self._resume(p)] for p in measurements.precisions})
        self._compare(self._rungs)
        reports = [self._reports[rung.number] for rung in self._rungs]
        return Report(
            model=measurements.case.name,
            environments=self._environments(),
            settings={
                key: value
                for key, value in _settings(measurements.case).items()
                if key in ("examples", "length", "steps", "seed", "loss")
            },
            explanation=tuple(self._explanation(reports)),
            notes=tuple(self._notes()),
            rungs=tuple(reports),
            layers=self._layers(),
            curves=self._curves(),
            seconds=round(time.perf_counter() - started, 1),
        )

    # -------------------------------------------------------------- tasks

    def _prepare(self) -> bool:
        """Creates the shared weights and data on the first backend where this succeeds.

        An error that two backends have alike is the model's, and no third backend is started.
        """
        measurements, precision = self._measurements, self._measurements.precisions[0]
        for name in measurements.names[:_MAX_CONCURRENT]:
            self._workers[name].start()  # they import Keras side by side
        for name in measurements.names:
            self._run_task(name, precision, data.prepare)
            if measurements.done("prepare", precision):
                return True
            errors = list(measurements.errors.values())
            if len(errors) > len({*errors}):
                return False
        return False

    def _tasks(self, exclude: Sequence[Any] = ()) -> list[Any]:
        unique = dict.fromkeys(task for rung in self._rungs for task in rung.tasks)
        return [task for task in unique if task not in exclude]

    def _tasks_for(self, candidates: Sequence[Any], precision: str) -> list[Any]:
        """Selects the tasks that a rung needs in this precision."""
        return [
            task
            for task in candidates
            if task is tasks.describe
            or any(task in rung.tasks and precision in rung.precisions for rung in self._rungs)
        ]

    def _run_on_all_backends(self, selected: dict[str, list[Any]]) -> None:
        """Runs the selected tasks on each backend, one precision after the other."""

        def run_tasks(name: str) -> None:
            for precision, tasks_of_precision in selected.items():
                for task in tasks_of_precision:
                    if not self._stopping.is_set():
                        self._run_task(name, precision, task)

        with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
            futures = [pool.submit(run_tasks, name) for name in self._measurements.names]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C must not wait for the remaining tasks
                self._stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                while not all(future.done() for future in futures):
                    self._workers.close()
                    wait(futures, timeout=0.2)
                raise

    def _resume(self, precision: str) -> Callable[..., Any]:
        sources = self._measurements.done("train", precision)

        @functools.wraps(tasks.resume)
        def resume(case: Case, folder: Path) -> Any:
            return tasks.resume(case, folder, sources)

        return resume

    def _run_task(self, name: str, precision: str, task: Callable[..., Any]) -> None:
        key = task.__name__, name, precision
        measurements = self._measurements
        with self._lock:
            if (name, precision) in self._ended:
                measurements.errors[key] = self._ended[name, precision]
                return
            done = [self._reports[number] for number in sorted(self._reports)]
            self._progress(f"{name}, {precision}: {task.__name__.replace('_', ' ')}", done)
        result = error = None
        try:
            result = self._workers[name](
                task, measurements.case, measurements.folder, floatx=precision
            )
        except WorkerError as raised:
            error = raised
        with self._lock:
            if error is None:
                measurements.results[key] = result
            else:
                measurements.errors[key] = str(error)
                # A failure of a compiler does not rule out the other tasks.
                if error.ended and task is not tasks.variants:
                    self._ended[name, precision] = str(error)
            self._compare([rung for rung in self._rungs if self._can_be_compared(rung)])

    # -------------------------------------------------------------- comparisons

    def _can_be_compared(self, rung: Rung) -> bool:
        """Whether all tasks of the rung have finished or failed, on all backends and precisions."""
        measurements = self._measurements
        return all(
            (task.__name__, name, precision) in {**measurements.results, **measurements.errors}
            for precision in measurements.precisions
            for task in self._tasks_for(rung.tasks, precision)
            for name in measurements.names
        )

    def _compare(self, rungs: Sequence[Rung]) -> None:
        for rung in rungs:
            if rung.number not in self._reports:
                rows = tuple(self._rows_or_failure(rung))
                self._reports[rung.number] = RungReport(rung.number, rung.title, rung.reason, rows)

    def _rows_or_failure(self, rung: Rung) -> Iterator[Row]:
        try:
            yield from self._rows(rung)
        except Exception as error:  # models that differ much may not be comparable
            detail = f"could not be compared: {type(error).__name__}: {error}"
            yield Row(rung.title, self._measurements.names, "", "failed", detail=detail)

    def _rows(self, rung: Rung) -> Iterator[Row]:
        measurements = self._measurements
        if rung.number == 8 and measurements.case.sample is None:
            detail = "the case has no `sample` function"
            yield Row("generated", measurements.names, "", "ruled out", detail=detail)
            return
        if not measurements.results:
            by_error: dict[tuple[str, str, str], list[str]] = {}
            for (task, name, precision), error in measurements.errors.items():
                by_error.setdefault((task, precision, error), []).append(name)
            for (task, precision, error), names in by_error.items():
                yield Row(task, tuple(names), precision, "failed", detail=error)
            return
        in_inference = self._described("random_in_inference")
        in_training = self._described("random_in_training")
        if (in_inference and rung.number not in (1, 5)) or (in_training and rung.number == 6):
            detail = "these layers use the backend's own random generator"
            where = ", ".join(in_inference or in_training)
            yield Row(rung.title, measurements.names, "", "ruled out", where=where, detail=detail)
            return
        task_names = {task.__name__ for task in rung.tasks}
        for (task, name, precision), error in measurements.errors.items():
            if task in task_names and precision in rung.precisions:
                yield Row(task.replace("_", " "), (name,), precision, "failed", detail=error)
        yield from rung.compare(measurements)

    def _described(self, key: str) -> list[str]:
        """Returns the layers under a key of the results of `describe`, of all backends."""
        paths: dict[str, None] = {}
        for (task, _, _), result in self._measurements.results.items():
            if task == "describe":
                paths |= dict.fromkeys(result[key])
        return list(paths)

    def _explanation(self, reports: Sequence[RungReport]) -> list[str]:
        described = self._measurements.any_result("describe") or {"layers": {}, "owners": {}}
        calls = (self._measurements.any_result("outputs") or {}).get("inference", [])
        paths = [call.path for call in calls]
        return diagnosis.explain(reports, described["layers"], described["owners"], paths)

    def _notes(self) -> Iterator[str]:
        source = "random numbers come from the backend's own generator"
        if in_training := self._described("random_in_training"):
            yield (
                f"{', '.join(in_training)}: {source} in training, so the check calls these layers "
                "in inference mode. Rungs 2, 3, 4, 7 and 9 compare all other layers; rung 6, "
                "training with random numbers, is ruled out. `zoo.random.Dropout` draws the same "
                "numbers on every backend."
            )
        if in_inference := self._described("random_in_inference"):
            yield (
                f"{', '.join(in_inference)}: {source} in inference mode, too, so only rungs 1 and "
                "5 can be compared. `zoo.random` draws the same numbers on every backend."
            )
        own_training = self._described("own training")
        if own_training and any(rung.number in (6, 9) for rung in self._rungs):
            yield (
                f"{' and '.join(own_training)} of the model: not called, since rungs 6 and 9 train "
                "with the loss of the check, so what these methods compute is not compared."
            )
        for dtype in sorted({*self._measurements.half_precision_layers.values()}):
            layers = self._measurements.half_precision_layers.items()
            paths = ", ".join(path for path, layer_dtype in layers if layer_dtype == dtype)
            yield f"{paths}: computed in {dtype}, so the tolerances behind are those of {dtype}."
        if failing := self._measurements.failing_in_float64:
            yield (
                f"{' and '.join(failing)}: fails in float64, in which the check runs each model to "
                "tell rounding from a mistake, and not in float32. A constant of a fixed dtype "
                "must be cast to the layer's compute dtype."
            )
        if float32_layers := self._measurements.float32_layers:
            yield (
                f"{', '.join(float32_layers)}: computed in float32 in a float64 model, so float64 "
                "distinguishes rounding from a mistake only to float32 precision."
            )

    def _environments(self) -> dict[str, dict[str, str]]:
        return {
            name: result["environment"]
            for (task, name, _), result in self._measurements.results.items()
            if task == "describe"
        }

    def _layers(self) -> dict[str, list[tuple[str, float, float]]]:
        measurements = self._measurements
        return {
            f"{mode} mode, {precision}, {a} and {b}": [
                (measurement.where, measurement.distance, measurement.tolerance)
                for measurement in comparisons.layer_distances(measurements, mode, a, b, precision)
            ]
            for precision in measurements.precisions
            for mode in ("inference", "training")
            for a, b in combinations(measurements.done("outputs", precision), 2)
        }

    def _curves(self) -> dict[str, dict[str, list[float]]]:
        measurements = self._measurements
        if (
            self._described("random_in_training")
            or self._described("random_in_inference")
            or not any(rung.number == 6 for rung in self._rungs)
        ):
            return {}
        return {
            precision: {
                name: measurements.arrays("losses", name, precision)["losses"].tolist()
                for name in measurements.done("train", precision)
            }
            for precision in measurements.precisions
        }


def _settings(case: Case) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int | str) else getattr(value, "__name__", str(value))
        for key, value in vars(case).items()
    }
