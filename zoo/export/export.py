"""Export of a model: a worker writes the file, other processes prove it, then it gets its name."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import keras

from zoo import backends
from zoo.export import formats, proof, tasks
from zoo.export.evaluation import Evaluation, NoTestDataError, make_evaluation
from zoo.export.formats import Format
from zoo.export.report import ExportReport
from zoo.export.source import Source, describe, find_saved, weights_alone
from zoo.export.storage import WeightDType
from zoo.parity.report import Row, RungReport
from zoo.parity.workers import WorkerError, Workers
from zoo.validation import FilePath, Index, JSONObject, Positive, TextList, validated
from zoo.validation import Source as NameOrPath

Progress = Callable[[str], None]
TestData = Literal["part", "whole"]

_MAX_CONCURRENT = 2  # processes; much of their work is single-threaded
REASONS = {
    "file": (
        "Traced with symbolic sizes and written on one backend; for ONNX checked with the shapes."
    ),
    "outputs": (
        "Largest distance of the outputs relative to their scale: 1e-5, or 1e-4 with recurrence or "
        "attention, which amplify the rounding; measured over the models of the zoo at most 3e-6. "
        "The model has the weights that the file stores."
    ),
    "change": "Outputs against those of the model before its weights were rounded.",
    "metrics": (
        "Metrics of the file's outputs on test data, against those of the model and its card; "
        "those of another processor may differ by 1e-3."
    ),
}


@validated
def export(
    model: keras.Model | NameOrPath,
    path: FilePath,
    format: str,
    *,
    arguments: JSONObject | None = None,
    inputs: Any = None,
    backends: TextList | None = None,
    workers: Workers | None = None,
    dtype: WeightDType = "float32",
    tolerance: Positive | None = None,
    test_data: TestData = "part",
    seed: Index = 0,
    time_limit: Positive = 600.0,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes a model to a file of another runtime, and proves the file.

    A process without Keras runs the file on batches of 1, 3 and 17 examples and, where the model
    has a dynamic axis, on lengths that the export has not seen. The outputs must be those of the
    model on every backend. For a trained model whose test data are at hand, so must those of real
    inputs, and the metrics must be those of the model and its card. A file that fails is deleted.

    Args:
        model: Keras model; name of a builder of the zoo, or "name/example"; name of trained
            weights; weights folder; directory of a finished run; or "package.module:function".
        path: Path of the file, or of the directory of a SavedModel. An existing file is replaced
            once the new one is proven.
        format: Name of the format, one of `FORMATS`.
        arguments: Keyword arguments of the builder.
        inputs: `zoo.parity.InputSpec` of each input, for a model that does not define its inputs.
        backends: Backends with which the file is compared; by default all installed ones.
        workers: Workers of an earlier call, which replace `backends` and `time_limit`.
        dtype: Type in which the file stores the weights; the arithmetic is float32. In int8,
            matrices and kernels have a scale for each row or column; LiteRT's own int8 also rounds
            what they are multiplied with.
        tolerance: With float32 weights the largest distance of the outputs, relative to their
            scale; by default 1e-5, or 1e-4 for a model with recurrence or attention. With others
            the largest relative change, of outputs and metrics, by the rounding; by default
            0.002 for float16 and 0.1 for int8.
        test_data: How much of a trained model's test data the metrics are computed with: "part", as
            the card has it, which takes seconds, or "whole".
        seed: Seed of the random inputs.
        time_limit: Time limit of one task, in seconds.
        progress: Callback, called with a line of text.

    Returns:
        A report, whose `proven` says whether the file is in its place.

    Raises:
        ValueError: If an argument is invalid; the text names the argument.
        ImportError: If a package that the format needs is missing; the text says how to install it.
        OSError: If the file cannot be written.
    """
    entry = formats.get(format, dtype)
    check_path(path)
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(Workers(backends, time_limit, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the path, so that the proven file is moved at once.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".zoo-", dir=path.parent))
        source = describe(model, arguments, inputs, tolerance, Path(folder), entry, dtype)
        evaluation, notes = evaluation_of(model, test_data)
        if entry.name == "safetensors":  # has no outputs
            source, evaluation, notes = weights_alone(source), None, []
        job = Job(
            source, entry, path, workers, Path(folder), progress or (lambda _: None), evaluation,
            notes,
        )  # fmt: skip
        return job.execute(seed, time_limit)


def evaluation_of(model: Any, test_data: TestData) -> tuple[Evaluation | None, list[str]]:
    """The evaluation of a trained model, or a note that says why there is none."""
    saved = find_saved(model)
    if saved is None:
        return None, []
    try:
        return make_evaluation(saved, test_data == "whole"), []
    except NoTestDataError as error:
        return None, [f"no metrics: {error}"]


def check_path(path: Path) -> None:
    """Raises ValueError for a directory that holds files, which no export replaces."""
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(
            "`path` must not be a directory that holds files. Received: "
            f"path={str(path)!r}. Remove the directory, or choose another path"
        )


class Job:
    """One export: tasks of the workers, the proof, and the report.

    Args:
        source: The model.
        entry: Format of the file.
        path: Path that the proven file gets.
        workers: Workers of the backends.
        folder: Empty folder for the work.
        progress: Callback, called with a line of text.
        evaluation: Real inputs of a trained model, and their metrics.
        notes: First notes of the report.
    """

    def __init__(
        self,
        source: Source,
        entry: Format,
        path: Path,
        workers: Workers,
        folder: Path,
        progress: Progress,
        evaluation: Evaluation | None = None,
        notes: Iterable[str] = (),
    ):
        self._source = source
        self._entry = entry
        self._path = path
        self._workers = workers
        self._folder = folder
        self._progress = progress
        self._evaluation = evaluation
        self._notes = list(notes)
        self._environments: dict[str, dict[str, str]] = {}
        self._measured: dict[str, Any] = {}
        self._rows: dict[str, list[Row]] = {"file": [], "outputs": []}
        names = workers.names
        self._writer = entry.backend or names[0]
        # The backend whose time and metrics the file's are compared with.
        self._reference = self._writer if self._writer in names else names[0]

    def execute(self, seed: int, time_limit: float) -> ExportReport:
        started = time.perf_counter()
        written = self._folder / self._path.name
        self._progress(f"{self._writer} writes {self._entry.name}")
        if self._write(written):
            self._prove(written, seed, time_limit)
        report = ExportReport(
            model=self._source.name,
            environments=self._environments,
            settings={
                "format": self._entry.name,
                "weights": self._source.dtype,
                "starting_backend": backends.name,
                "batches": list(proof.BATCH_SIZES),
                "seed": seed,
                **self._measured,
            },
            notes=tuple(self._notes),
            rungs=tuple(
                RungReport(number, title, REASONS[title], tuple(rows))
                for number, (title, rows) in enumerate(self._rows.items(), 1)
            ),
            seconds=round(time.perf_counter() - started, 1),
        )
        if report.proven:
            self._move(written)
        return report

    def _write(self, path: Path) -> bool:
        """Writes the file in a worker of the format's backend."""
        worker = self._workers[self._writer]
        try:
            worker(tasks.write, self._source, self._entry.name, path)
        except WorkerError as error:
            row = Row("export", (self._writer,), "", "failed", detail=str(error))
        else:
            row = Row("export", (self._writer,), "", "agrees")
        self._rows["file"].append(row)
        return row.status == "agrees"

    def _prove(self, written: Path, seed: int, time_limit: float) -> None:
        """Runs the file and the model, and compares what they answer."""
        source, entry, evaluation = self._source, self._entry, self._evaluation
        compared, timed = proof.batches(source, seed)
        if evaluation is not None:
            title = f"{evaluation.kind}, batch {len(evaluation.sample[0])}"
            compared.append(proof.Batch(title, evaluation.sample))
        names = ", ".join(self._workers.names)
        self._progress(f"{entry.runtime} runs the file, and {names} the model")
        with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
            futures = {
                name: pool.submit(self._answer, name, compared, timed)
                for name in self._workers.names
            }
            try:
                result = proof.run_file(
                    written, entry, source, compared, timed, evaluation, self._folder, time_limit
                )
            except RuntimeError as error:
                row = Row("load and check", (entry.runtime,), "", "differs", detail=str(error))
                self._rows["file"].append(row)
                return
        detail = f"{result.runtime}, in a process without Keras"
        self._rows["file"].append(
            Row("load and check", (entry.runtime,), "", "agrees", detail=detail)
        )
        answers: dict[str, tuple[tasks.Answer, tasks.Answer]] = {}
        for name, future in futures.items():
            try:
                answers[name] = future.result()
            except WorkerError as error:
                between = entry.runtime, name
                row = Row("outputs", between, "float32", "failed", detail=str(error))
                self._rows["outputs"].append(row)
            else:
                self._environments[name] = answers[name][0].environment
        self._compare(compared, result, answers)
        self._measure(result, written, answers)

    def _answer(
        self, name: str, compared: list[proof.Batch], timed: list[proof.Batch]
    ) -> tuple[tasks.Answer, tasks.Answer]:
        """What the model answers on one backend, with the weights of the file and its own."""
        worker = self._workers[name]
        is_reference = name == self._reference
        evaluation = self._evaluation if is_reference else None
        inputs = [batch.arrays for batch in compared]
        measured = [batch.arrays for batch in timed] if is_reference else []
        if not (is_reference and self._source.is_rounded):
            answer = worker(tasks.answer, self._source, inputs, measured, evaluation)
            return answer, answer
        before = self._source.before_rounding
        return (
            worker(tasks.answer, self._source, inputs, measured),
            worker(tasks.answer, before, inputs, [], evaluation),
        )

    def _compare(
        self,
        compared: list[proof.Batch],
        result: proof.FileResult,
        answers: Mapping[str, tuple[tasks.Answer, tasks.Answer]],
    ) -> None:
        source, entry = self._source, self._entry
        outputs = {name: answer.outputs for name, (answer, _) in answers.items()}
        self._rows["outputs"] += proof.compare(
            source, entry, source.tolerance, compared, result.outputs, outputs
        )
        before = {name: own for name, (_, own) in answers.items() if name == self._reference}
        if source.is_rounded:
            originals = {name: answer.outputs for name, answer in before.items()}
            self._rows["change"] = list(
                proof.compare(
                    source, entry, source.change_tolerance, compared, result.outputs, originals
                )
            )
        if self._evaluation is not None and result.metrics is not None:
            expected = {name: answer.metrics for name, answer in before.items()}
            card = {"card": self._evaluation.card} if self._evaluation.card else {}
            self._rows["metrics"] = list(
                proof.compare_metrics(source, entry.runtime, result.metrics, expected | card)
            )

    def _measure(
        self,
        result: proof.FileResult,
        path: Path,
        answers: Mapping[str, tuple[tasks.Answer, tasks.Answer]],
    ) -> None:
        """Notes the size of the file, and its speed and metrics beside the model's."""
        measured = self._measured
        files = [file for entry in _files(path) for file in (entry, *entry.rglob("*"))]
        size = sum(file.stat().st_size for file in files if file.is_file())
        measured["bytes"] = size
        measured["load_seconds"] = result.load_seconds
        measured["file_seconds"] = {str(k): v for k, v in result.call_seconds.items()}
        self._notes.append(f"{size:,} bytes, loaded in {1e3 * result.load_seconds:.0f} ms")
        if self._reference in answers:
            answer, own = answers[self._reference]
            measured["model_seconds"] = dict(zip(map(str, proof.TIMED), answer.seconds))
            for batch_size, in_keras in measured["model_seconds"].items():
                seconds = measured["file_seconds"][batch_size]
                if seconds is not None:
                    self._notes.append(
                        f"batch {batch_size}: {1e3 * seconds:.2f} ms by {result.runtime}, "
                        f"{1e3 * in_keras:.2f} ms by Keras on {self._reference}"
                    )
            if self._evaluation is not None:
                measured["model_metrics"] = own.metrics
        if self._evaluation is not None and isinstance(result.metrics, dict):
            measured["examples"] = self._evaluation.examples
            measured["file_metrics"] = result.metrics
            measured["card_metrics"] = dict(self._evaluation.card)
            texts = [f"{name} {value:.6g}" for name, value in result.metrics.items()]
            self._notes.append(f"{', '.join(texts)} on {self._evaluation.examples}")

    def _move(self, written: Path) -> None:
        """Gives the proven file its name, with the metadata that it does not hold beside it."""
        if not self._entry.holds_metadata:
            beside = self._path.with_name(f"{self._path.name}.json")
            text = json.dumps(dict(self._source.metadata), indent=2) + "\n"
            temporary = self._folder / beside.name
            temporary.write_text(text, "utf-8")
            os.replace(temporary, beside)
        if written.is_dir() and self._path.is_dir():
            self._path.rmdir()  # it is empty
        for file in reversed(_files(written)):
            os.replace(file, self._path.with_name(file.name))


def _files(path: Path) -> list[Path]:
    """A written file or directory, and the file of its weights if they are in one of their own."""
    weights = path.with_name(f"{path.name}.data")
    return [path, weights] if weights.exists() else [path]
