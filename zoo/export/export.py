"""Export of a model: a worker writes the file, other processes prove it, then it gets its name."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras

from zoo.export import formats, proof, tasks
from zoo.export.formats import Format
from zoo.export.report import ExportReport
from zoo.export.source import Source, describe
from zoo.parity.report import Row, RungReport
from zoo.parity.workers import WorkerError, Workers
from zoo.validation import FilePath, Index, JSONObject, Positive, TextList, validated
from zoo.validation import Source as NameOrPath

Progress = Callable[[str], None]

_MAX_CONCURRENT = 2  # processes; much of their work is single-threaded
_WRITTEN = (
    "Traced with symbolic sizes and written on one backend; for ONNX checked with the shapes."
)
_COMPARED = (
    "Largest distance of the outputs relative to their scale: 1e-5, or 1e-4 with recurrence or "
    "attention, which amplify the rounding; measured over the models of the zoo at most 3e-6."
)


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
    tolerance: Positive | None = None,
    seed: Index = 0,
    time_limit: Positive = 600.0,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes a model to a file of another runtime, and proves the file.

    A process without Keras runs the file on batches of 1, 3 and 17 examples and, where the model
    has a dynamic axis, on lengths that the export has not seen. The outputs must be those of the
    model on every backend. A file that fails is deleted.

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
        tolerance: Largest distance of the outputs, relative to their scale; by default 1e-5, or
            1e-4 for a model with recurrence or attention.
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
    entry = formats.get(format)
    check_path(path)
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(Workers(backends, time_limit, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the path, so that the proven file is moved at once.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".zoo-", dir=path.parent))
        source = describe(model, arguments, inputs, tolerance, Path(folder))
        job = Job(source, entry, path, workers, Path(folder), progress or (lambda _: None))
        return job.execute(seed, time_limit)


def check_path(path: Path) -> None:
    """Raises ValueError for a directory that holds files, which no export replaces."""
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(
            "`path` must not be a directory that holds files. Received: "
            f"path={str(path)!r}. Remove the directory, or choose another path"
        )


class Job:
    """One export: tasks of the workers, the proof, and the report."""

    def __init__(
        self,
        source: Source,
        entry: Format,
        path: Path,
        workers: Workers,
        folder: Path,
        progress: Progress,
    ):
        self._source = source
        self._entry = entry
        self._path = path
        self._workers = workers
        self._folder = folder
        self._progress = progress
        self._environments: dict[str, dict[str, str]] = {}
        self._measured: dict[str, Any] = {}
        self._notes: list[str] = []

    def execute(self, seed: int, time_limit: float) -> ExportReport:
        started = time.perf_counter()
        source, entry = self._source, self._entry
        written = self._folder / self._path.name
        self._progress(f"{entry.backend} writes {entry.name}")
        file_rows = [self._write(written)]
        output_rows: list[Row] = []
        if file_rows[0].status == "agrees":
            compared, timed = proof.batches(source, seed)
            self._progress(f"{entry.runtime} runs the file, and {self._names} the model")
            with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
                answers = {
                    name: pool.submit(self._answer, name, compared, timed)
                    for name in self._workers.names
                }
                try:
                    result = proof.run_file(
                        written, entry, source, compared, timed, self._folder, time_limit
                    )
                except RuntimeError as error:
                    row = Row("load and check", (entry.runtime,), "", "differs", detail=str(error))
                    file_rows.append(row)
                else:
                    detail = f"{result.runtime}, in a process without Keras"
                    file_rows.append(
                        Row("load and check", (entry.runtime,), "", "agrees", detail=detail)
                    )
                outputs = {}
                for name, future in answers.items():
                    try:
                        outputs[name] = future.result()
                    except WorkerError as error:
                        between = entry.runtime, name
                        output_rows.append(
                            Row("outputs", between, "float32", "failed", detail=str(error))
                        )
            if file_rows[-1].status == "agrees":
                output_rows += proof.compare(source, entry, compared, result.outputs, outputs)
                self._measure(result, written)
        report = ExportReport(
            model=source.name,
            environments=self._environments,
            settings={
                "format": entry.name,
                "batches": list(proof.BATCH_SIZES),
                "seed": seed,
                **self._measured,
            },
            notes=tuple(self._notes),
            rungs=(
                RungReport(1, "file", _WRITTEN, tuple(file_rows)),
                RungReport(2, "outputs", _COMPARED, tuple(output_rows)),
            ),
            seconds=round(time.perf_counter() - started, 1),
        )
        if report.proven:
            self._move(written)
        return report

    @property
    def _names(self) -> str:
        return ", ".join(self._workers.names)

    def _write(self, path: Path) -> Row:
        """Writes the file in a worker of the format's backend."""
        entry = self._entry
        worker = self._workers[entry.backend]
        try:
            worker(tasks.write, self._source, entry.name, path)
        except WorkerError as error:
            return Row("export", (entry.backend,), "", "failed", detail=str(error))
        return Row("export", (entry.backend,), "", "agrees")

    def _answer(
        self, name: str, compared: list[proof.Batch], timed: list[proof.Batch]
    ) -> list[tasks.Arrays | str]:
        """Computes the model's outputs on one backend, and the time of the exporting one."""
        worker = self._workers[name]
        measured = timed if name == self._entry.backend else []
        environment, outputs, seconds = worker(
            tasks.answer,
            self._source,
            *([b.arrays for b in group] for group in (compared, measured)),
        )
        self._environments[name] = environment
        if measured:
            self._measured["model_seconds"] = dict(zip(map(str, proof.TIMED), seconds))
        return outputs  # type: ignore[no-any-return]

    def _measure(self, result: proof.FileResult, path: Path) -> None:
        """Notes the size of the file and its speed beside the model's."""
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files)
        self._measured["bytes"] = size
        self._measured["load_seconds"] = result.load_seconds
        self._measured["file_seconds"] = {str(k): v for k, v in result.call_seconds.items()}
        self._notes.append(f"{size:,} bytes, loaded in {1e3 * result.load_seconds:.0f} ms")
        in_keras: Mapping[str, float] = self._measured.get("model_seconds", {})
        for batch_size, seconds in self._measured["file_seconds"].items():
            if seconds is not None and batch_size in in_keras:
                self._notes.append(
                    f"batch {batch_size}: {1e3 * seconds:.2f} ms by {result.runtime}, "
                    f"{1e3 * in_keras[batch_size]:.2f} ms by Keras on {self._entry.backend}"
                )

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
        os.replace(written, self._path)
