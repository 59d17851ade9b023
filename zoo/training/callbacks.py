"""Checkpoints of `fit` at steps, and the state of a training that they hold."""

import dataclasses
import math
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from zoo import backends
from zoo.backends import backend
from zoo.training import checkpoints, cluster
from zoo.validation import AnyPath, Count, validated

Tensor = Any


class Diverged(RuntimeError):
    """The loss is no longer finite."""


class Interrupted(RuntimeError):
    """Ctrl-C; a checkpoint was written."""


@dataclasses.dataclass
class TrainingState:
    """The progress of a training; a checkpoint holds it beside the variables.

    Attributes:
        step: Number of optimizer steps that are done.
        history: A row for each epoch: its number, from 1 on, and its logs.
        metric_sums: Values of the metrics' variables in the epoch that has begun.
        timed_examples: Number of examples of the steps that were timed: all but the first one of
            each epoch and of each process.
        timed_seconds: Seconds that those steps took.
        wall_seconds: Seconds of training, evaluation and checkpoints.
        backends: Names of the backends that took part, in their order.
        stopped: Whether a callback, such as `EarlyStopping`, has ended the training.

    Raises:
        ValueError: If `step` is below 0, or a row of `history` has no epoch.
    """

    # How the progress in a checkpoint is validated.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid"}

    step: int = 0
    history: list[dict[str, int | float]] = dataclasses.field(default_factory=list)
    metric_sums: list[Any] = dataclasses.field(default_factory=list)
    timed_examples: float = 0.0
    timed_seconds: float = 0.0
    wall_seconds: float = 0.0
    backends: list[str] = dataclasses.field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        if self.step < 0 or not all("epoch" in row for row in self.history):
            raise ValueError(
                "`step` must be 0 or more, and each row of `history` must have an epoch. "
                f"Received: step={self.step}, {len(self.history)} rows"
            )

    @property
    def examples_per_second(self) -> float | None:
        """Speed of training; None before a step was timed."""
        return self.timed_examples / self.timed_seconds if self.timed_seconds else None


class StepCheckpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves the whole state of a training every so many steps and after each epoch.

    A checkpoint holds everything that the next step depends on: weights, counters of random draws,
    the optimizer's variables and their averages, metric sums and the history. With
    `zoo.Trainer.fit(..., checkpoint=...)` the training goes on after the newest whole checkpoint,
    on any backend. Files are those of `zoo.training.checkpoints`. For the time of `fit` the folder
    is locked against other trainings.

    Args:
        folder: Folder of the checkpoints.
        every: Number of steps between two checkpoints.
        hint: Text that tells how to go on, for the messages of `Interrupted`.
        only_trainable: Save only the trainable weights. All other variables, such as the weights
            of a preset, must be as they were when the training began.

    Raises:
        ValueError: If `every` is below 1.
        Diverged: In training, if the loss turns NaN or infinite; the text names the step.
        Interrupted: In training, after Ctrl-C, with a checkpoint written. A second Ctrl-C stops at
            once.
        OSError: In training, if a checkpoint cannot be written; the last good one stays. Also if
            another training uses the folder; the text names its process.
    """

    divergence_hint = "A lower learning rate may help"
    """Text that tells how to go on, for the messages of `Diverged`."""

    # `on_train_batch_end` may run in Keras' own thread, while the next step is computed.
    async_safe = True

    @validated
    def __init__(
        self,
        folder: AnyPath,
        every: Count = 200,
        hint: str = "`fit` with the same `checkpoint` goes on",
        only_trainable: bool = False,
    ):
        super().__init__()
        self.folder = Path(folder)
        self.every = every
        self.state = TrainingState()
        self.identity: dict[str, dict[str, Any]] = {}
        """What the training depends on; a checkpoint of another training is refused."""
        self._hint = hint
        self._only_trainable = only_trainable
        self._epoch_start = 0  # number of the epoch's first step
        self._steps_per_call = 1
        self._diverged_at: int | None = None
        self._interrupted = threading.Event()
        self._clock = time.perf_counter()
        self._timed_since: float | None = None  # the first step of an epoch is not timed
        self._timed_from = 0.0
        self._weights: list[tuple[Any, Tensor]] | None = None
        self._check_folder: Callable[[], None] = lambda: None
        # Reading a loss makes a GPU wait.
        self._check_every = 1 if backend.device() == "cpu" else 50

    # -------------------------------------------------------------- for `Trainer.fit`

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder, which is created if it is not there, against other trainings.

        Worker 0 of a cluster alone reads and writes checkpoints.
        """
        if not cluster.is_first():
            yield
            return
        from zoo.training.lock import DirectoryLock  # loads filelock, which `import zoo` does not

        lock = DirectoryLock(self.folder, "checkpoint", "give `StepCheckpoint` another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except BlockingIOError:
            raise
        except OSError as error:
            name = f"to the folder {self.folder}"
            raise checkpoints.write_error(name, self.folder, error) from error
        self._check_folder = lock.check_directory
        try:
            yield
        finally:
            lock.release()

    def restore(self, trainer: keras.Model, order: dict[str, Any]) -> TrainingState:
        """Restores the newest whole checkpoint, if there is one, and returns the state.

        Args:
            trainer: Trainer whose state is restored.
            order: What decides the order of the examples, by name.

        Raises:
            ValueError: If the checkpoint belongs to another training; the text names what differs.
        """
        self.identity["order"] = order
        trainer.optimizer.build(trainer.trainable_variables)

        def state() -> dict[str, Any]:
            with backend.assigning_alone():
                saved = checkpoints.restore(
                    self.folder, TrainingState, identity=self.identity, **self._parts(trainer)
                )
            return dataclasses.asdict(saved or TrainingState())

        self.state = TrainingState(**cluster.from_first(state))
        if backends.name not in self.state.backends:
            self.state.backends.append(backends.name)
        return self.state

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C lets the step end and saves a checkpoint; a second one stops at once.

        Worker 0 of a cluster decides; when it stops, the others lose the connection.
        """
        self._interrupted.clear()
        self._diverged_at = self._timed_since = self._weights = None  # of an earlier `fit`
        self._clock = time.perf_counter()
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def first(*_: Any) -> None:
            self._interrupted.set()
            signal.signal(signal.SIGINT, previous)

        previous = signal.signal(signal.SIGINT, first if cluster.is_first() else signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Keeps the weights of the last epoch's end, where `fit` would leave their averages."""
        self._weights = []
        yield
        for variable, value in self._weights:
            variable.assign(value)
        self._weights = None

    # -------------------------------------------------------------- Keras' hooks

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch_start = self.state.step
        # While batches are computed, `self.model` would make JAX wait for them.
        self._steps_per_call = self.model.steps_per_execution
        if self.state.metric_sums:
            variables = self.model.metrics_variables
            for variable, value in zip(variables, self.state.metric_sums, strict=True):
                variable.assign(np.asarray(value, variable.dtype))
            self.state.metric_sums = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Checkpoints are saved before a batch, not after one: a callback that overrides
        # `on_train_batch_end` without `async_safe` makes Keras wait for each step.
        self.state.step = self._epoch_start + batch
        self._raise_if_diverged()
        is_due = self.state.step % self.every < self._steps_per_call
        if batch and (self._is_interrupted() or is_due):
            self._pause_timing()
            self._save()
            self._raise_if_interrupted()
        if self._timed_since is None and batch:
            self._timed_from = self._examples()  # on a GPU, after the step
            self._timed_since = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        is_due = batch % self._check_every < self._steps_per_call
        if is_due and self._diverged_at is None:
            self._check_loss(logs, self._epoch_start + batch + 1)

    def on_test_begin(self, logs: Any = None) -> None:
        self._pause_timing()  # the epoch's validation

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs or {}
        self._pause_timing()
        self.state.step += self._steps_per_call  # the last ones, which no others follow
        self._check_loss(logs, self.state.step)
        self._raise_if_diverged()
        row = {name: float(value) for name, value in logs.items()}
        self.state.history.append({"epoch": epoch + 1, **row})
        self.state.stopped = bool(self.model.stop_training)
        self._save(begun=False)
        if self._weights is not None:
            self._weights = [(v, keras.ops.copy(v.value)) for v in self.model.trainable_variables]
        self._raise_if_interrupted()

    # -------------------------------------------------------------- within

    def _check_loss(self, logs: Any, step: int) -> None:
        """Notes the step after which the mean loss of the epoch is not finite."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            self._diverged_at = step

    def _raise_if_diverged(self) -> None:
        if self._diverged_at is not None:
            raise Diverged(
                self._diverged_text(f"The loss is not finite at step {self._diverged_at}")
            )

    def _diverged_text(self, reason: str) -> str:
        last = checkpoints.newest(self.folder)
        safe = f"The last good checkpoint, {last}, stays" if last else "There is no checkpoint yet"
        return f"{reason}. {safe}. {self.divergence_hint}"

    def _is_interrupted(self) -> bool:
        """Whether Ctrl-C was pressed, on worker 0.

        Where weights are divided, all workers must know it, since all take part in saving.
        """
        if backend.is_sharding():
            return bool(cluster.from_first(self._interrupted.is_set))
        return self._interrupted.is_set()

    def _raise_if_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted(f"Stopped after step {self.state.step}; {self._hint}")

    def _examples(self) -> float:
        """Number of examples in the epoch so far."""
        (loss,) = (metric for metric in self.model.metrics if metric.name == "loss")
        return float(loss.count)

    def _pause_timing(self) -> None:
        """Adds the steps since timing began."""
        if self._timed_since is None:
            return
        self.state.timed_examples += self._examples() - self._timed_from
        self.state.timed_seconds += time.perf_counter() - self._timed_since
        self._timed_since = None

    def _parts(self, trainer: keras.Model) -> dict[str, Any]:
        """Objects whose variables a checkpoint holds."""
        model: Any = trainer
        if self._only_trainable:
            model = types.SimpleNamespace(variables=trainer.trainable_variables)
        return {"model": model, "optimizer": trainer.optimizer}

    def _save(self, begun: bool = True) -> None:
        if not cluster.is_first():
            if backend.is_sharding():
                checkpoints.read_all(**self._parts(self.model))
            return
        model = self.model  # on JAX this brings the variables up to date
        now = time.perf_counter()
        self.state.wall_seconds += now - self._clock
        self._clock = now
        values = (keras.ops.convert_to_numpy(v) for v in model.metrics_variables)
        self.state.metric_sums = [value.tolist() for value in values] if begun else []
        progress = dataclasses.asdict(self.state)
        step = progress.pop("step")
        self.state.metric_sums = []
        self._check_folder()
        try:
            checkpoints.save(
                self.folder, step, progress, identity=self.identity, **self._parts(model)
            )
        except checkpoints.NotFinite as error:
            raise Diverged(self._diverged_text(str(error))) from error
