"""Run directories: the files that a recipe leaves behind, and that let it be resumed.

config.json        the configuration
inputs.json        SHA-256 of the files that the training reads, such as its vocabulary
history.csv        a row for each epoch
metrics.json       the results
*.png              the plots
model.json         the model's builder and its arguments
model.weights.h5   the trained weights
manifest.json      SHA-256 of the files above; written last, so it says that the run is finished
checkpoints/       the last two checkpoints
.lock              locked, while a process writes to the directory, which .lock-holder names
"""

import csv
import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import keras
from pydantic import ConfigDict, JsonValue, create_model
from rich.console import Console

from zoo.files import arrays, documents, models, runs
from zoo.training import cluster
from zoo.training.callbacks import Interrupted, StepCheckpoint, TrainingState
from zoo.training.checkpoints import (
    NamedBuffer,
    atomic_write,
    remove_unfinished,
    unfinished_path,
    write_error,
)
from zoo.training.lock import HOLDER_FILE, LOCK_FILE, DirectoryLock
from zoo.training.run_callbacks import RunCheckpoint
from zoo.training.run_identity import CONFIG, INPUTS, RunIdentity, environment
from zoo.validation import FilePath, JSONObject, validated

if TYPE_CHECKING:  # Matplotlib, which a process that makes no plots need not import
    from matplotlib.figure import Figure

# Names of the files that a run writes into its directory.
_WRITTEN = r"[a-z][a-z0-9_-]*(\.weights|\.lora)?\.(csv|gif|h5|json|png|tsv)"


class RunDirectory:
    """Directory of one run, opened for a configuration.

    Opening writes nothing. The directory is created, and locked against other processes, when the
    first file is written; `with` locks the directory of a begun run at once, and ends the lock:

        with RunDirectory(path, config) as run:
            run.write_config()

    Args:
        path: The directory, which need not exist.
        config: Configuration that decides the results, as JSON can hold it. A directory that was
            begun with another configuration is refused.
        extendable: Name in `config` that a later call may raise, such as `epochs`. It is not
            compared; a run that has reached less than is asked for goes on.
        new: Whether the run must be a new one. Where `path` exists, a number is added to it.

    Raises:
        ValueError: If the path is a file, holds something else than a run, belongs to another
            configuration (the text names what differs), or is a finished run of which a file has
            changed.
        OSError: If the directory cannot be created or written to, or another process writes to it;
            the text names the process.
    """

    @validated
    def __init__(
        self,
        path: FilePath,
        config: JSONObject,
        extendable: str | None = None,
        new: bool = False,
    ):
        self.path = Path(cluster.from_first(lambda: str(_unused(path) if new else path)))
        self._path, self._new = path, new
        self.identity = RunIdentity(config, extendable)
        """What the run depends on, by which its checkpoints are known."""
        self._lock: DirectoryLock | None = None
        if cluster.is_first():
            self._check()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def __enter__(self) -> Self:
        if (self.path / CONFIG).exists() and self.metrics is None:
            self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def lock(self) -> None:
        """Creates the directory where it is missing, and locks it against other writers.

        Worker 0 of a cluster alone does so, and writes.

        Raises:
            OSError: If the directory cannot be created or written to, another process writes to
                it, or it was removed after it was locked.
        """
        if not cluster.is_first():
            return
        if self._lock is not None and self._lock.is_held:
            self._lock.check_directory()
            return
        self._create()
        lock = DirectoryLock(self.path)
        lock.acquire()
        try:
            self._check()  # another process may have written before the lock
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        remove_unfinished(self.path, _WRITTEN)

    def _create(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while self._new:
                try:
                    self.path.mkdir()
                    self._new = False
                except FileExistsError:  # a run that began at the same time has it
                    self.path = _unused(self._path)
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise self._cannot_create(error.errno) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(
                errno.EACCES, f"`run_dir` must be writable. Received: {self.path}"
            )

    def _cannot_create(self, number: int | None) -> OSError:
        reason = os.strerror(number or 0)
        return OSError(number, f"`run_dir` cannot be created: {reason}. Received: {self.path}")

    def _check(self) -> None:
        """Raises ValueError unless the path is new, empty or a run of this configuration."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"`run_dir` must be a directory or a new path. Received: the file {self.path}"
            )
        if not self.path.exists():
            parent = next(folder for folder in self.path.absolute().parents if folder.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise self._cannot_create(errno.EACCES if parent.is_dir() else errno.ENOTDIR)
            return
        earlier = self.identity.read_config(self.path)
        if self._is_finished:
            runs.FinishedRun(self.path).verify()
        if earlier is not None:
            self.identity.check_config(self.path, earlier)
        elif self._holds_other_files() and not self.identity.has_checkpoint(self.path):
            raise ValueError(
                "`run_dir` must be new, empty, or an earlier run's of the same configuration. "
                f"Received: {self.path}, which holds other files and no config.json. Give another "
                "`--run-dir`"
            )

    def _holds_other_files(self) -> bool:
        killed = {LOCK_FILE, HOLDER_FILE, unfinished_path(self.path / CONFIG).name}
        return bool({path.name for path in self.path.iterdir()} - killed)

    def write_config(self) -> None:
        """Begins the run, once its configuration has proved sound: locks, writes config.json."""
        self.lock()
        if not cluster.is_first() or self.identity.read_config(self.path) == self.identity.config:
            return
        for name in ("metrics.json", runs.MANIFEST):  # of a shorter run, which goes on
            (self.path / name).unlink(missing_ok=True)
        self._write(CONFIG, documents.dump(self.identity.config))

    def input_path(self, name: str) -> Path:
        """Path of a file that the training reads, and that the run may have written before.

        Raises:
            ValueError: If the file is there with another content than the run was begun with.
        """
        path = self.path / name
        if path.exists():
            self.identity.bind(self.path, name, path.read_bytes())
        return path

    def write_input(self, name: str, content: bytes) -> None:
        """Writes a file that the training reads, such as its vocabulary, after `bind`."""
        self.bind(name, content)
        self._write(name, content)

    def bind(self, name: str, content: bytes) -> None:
        """Binds the run to a file that its training reads: the run goes on with no other content.

        inputs.json holds the SHA-256 of the file before the training begins, and each checkpoint
        holds it, too.

        Args:
            name: Path of the file in the directory.
            content: Content of the file.

        Raises:
            ValueError: If the run was begun with another content of the file.
            OSError: As `write` does.
        """
        self.write_config()
        self.identity.bind(self.path, name, content)
        path, document = self.path / INPUTS, documents.dump(self.identity.inputs)
        if not path.exists() or path.read_bytes() != document:
            self._write(INPUTS, document)

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Results of a finished run; None before, and if more is asked for than it has reached."""
        return cluster.from_first(self._read_metrics)  # type: ignore[no-any-return]

    def _read_metrics(self) -> dict[str, Any] | None:
        if not self._is_finished:
            return None
        metrics = runs.FinishedRun(self.path).read("metrics.json", dict[str, JsonValue])
        earlier, name = self.identity.read_config(self.path) or {}, self.identity.extendable
        is_reached = name is None or earlier.get(name) == self.identity.config[name]
        return metrics if is_reached else None

    def result(self, name: str, kind: Any = float) -> Any:
        """Returns one of the results of a finished run.

        Args:
            name: Name of the result in metrics.json.
            kind: Type of the result.

        Raises:
            ValueError: If there is no such result, or it is of another type.
        """
        config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
        fields: dict[str, Any] = {name: (kind, ...)}
        schema = create_model("Metrics", __config__=config, **fields)
        read = runs.FinishedRun(self.path).read
        return cluster.from_first(lambda: getattr(read("metrics.json", schema), name))

    @property
    def _is_finished(self) -> bool:
        names = (CONFIG, "metrics.json", runs.MANIFEST)
        return all((self.path / name).exists() for name in names)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the directory, whole or not at all, after config.json.

        Raises:
            OSError: If the file cannot be written; the text names the last good checkpoint.
        """
        self.write_config()
        self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        if not cluster.is_first():
            return
        path = self.path / name
        try:
            with atomic_write(path) as file:
                file.write(content)
        except OSError as error:
            raise write_error(str(path), self.checkpoints, error) from error

    def save_plot(self, name: str, figure: "Figure") -> None:
        """Writes a figure of Matplotlib as a PNG file."""
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120)
        self.write(name, file.getvalue())

    def save_weights(self, name: str, save: Callable[[Any], None]) -> None:
        """Writes a file of weights.

        HDF5 writes to memory: after a failure on a full disk it may crash the process later.

        Args:
            name: Name of the file.
            save: Keras' function that saves to a path, such as `model.save_weights`.
        """
        file = NamedBuffer(name)
        save(file)
        self.write(name, file.getvalue())

    def write_history(self, rows: list[dict[str, float]]) -> None:
        """Writes history.csv, a row for each epoch; nothing before the first."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list({name: 0 for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
        self.write("history.csv", text.getvalue().encode())

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes metrics.json and the manifest, which says that the run is finished."""
        self.write("metrics.json", documents.dump(metrics))
        if cluster.is_first():  # other machines may not have the directory
            self.write(runs.MANIFEST, runs.describe(self.path))

    def save_model(self, model: keras.Model, name: str = "model") -> None:
        """Writes the builder with its arguments, model.json, and the weights, model.weights.h5.

        Args:
            model: Model that a builder of the zoo made.
            name: Name of the two files, without their suffixes.

        Raises:
            ValueError: If the model comes from elsewhere, or its weights are not finite.
        """
        arrays.check_finite(model)
        self.write(f"{name}.json", models.describe(model))
        self.save_weights(f"{name}.weights.h5", model.save_weights)

    def load_weights(self, model: keras.Model, name: str = "model") -> None:
        """Loads the weights of the finished run, as `zoo.files.runs.FinishedRun` does."""
        runs.FinishedRun(self.path).load_weights(model, name)

    @contextmanager
    def nested(self, part: str, config: dict[str, Any]) -> Iterator["RunDirectory"]:
        """A run directory within this one; after Ctrl-C the text names the outer one.

        Args:
            part: Name of the model that is trained, and of its folder.
            config: Configuration of the nested run.
        """
        try:
            within = {"within": self.identity.configuration}
            with RunDirectory(self.path / part, config | within) as nested:
                yield nested
        except Interrupted as error:
            raise Interrupted(
                f"Stopped while the {part} was in training; the same command with "
                f"`--run-dir {self.path}` goes on"
            ) from error

    def checkpoint(
        self, every: int = 200, console: Console | None = None, only_trainable: bool = False
    ) -> StepCheckpoint:
        """The checkpoints of the run, for `zoo.Trainer.fit`; they keep history.csv up to date.

        Args:
            every: Number of steps between two checkpoints.
            console: Console for the step that a training is resumed at.
            only_trainable: Save only the trainable weights, as `StepCheckpoint` does.
        """
        return RunCheckpoint(self, every, console, only_trainable)

    def finish(
        self,
        recipe: str,
        model: keras.Model,
        state: TrainingState,
        console: Console,
        /,
        **results: Any,
    ) -> dict[str, Any]:
        """Writes the results of a training and says where they are.

        Args:
            recipe: Name of the recipe.
            model: Trained network.
            state: State of the training, from the checkpoint.
            console: Console for the message.
            **results: Further entries of metrics.json.

        Returns:
            The content of metrics.json.
        """
        metrics = {
            "recipe": recipe,
            "model": model.name,
            **environment(),
            "backends": state.backends,
            "parameters": model.count_params(),
            **results,
            "examples_per_second": state.examples_per_second,
            "wall_seconds": state.wall_seconds,
        }
        self.write_metrics(metrics)
        console.print(f"Results are in {self.path}")
        return metrics


def _unused(path: Path) -> Path:
    """The path, or the first of path-2, path-3 and so on, that does not exist."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not os.path.lexists(p))
