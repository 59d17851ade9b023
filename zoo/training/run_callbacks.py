"""Callbacks of `fit` that write to a run directory."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from rich.console import Console

from zoo.training import cluster
from zoo.training.callbacks import StepCheckpoint, TrainingState
from zoo.training.checkpoints import write_error

if TYPE_CHECKING:
    from zoo.training.run_directory import RunDirectory


class RunCheckpoint(StepCheckpoint):
    """Checkpoints in a run directory, beside which history.csv is kept up to date.

    Args:
        run: Run directory.
        every: Number of steps between two checkpoints.
        console: Console for the step that a training is resumed at; None prints nothing.
        only_trainable: Save only the trainable weights, as `StepCheckpoint` does.
    """

    divergence_hint = "A lower learning rate, with another `--run-dir`, may help"

    def __init__(
        self, run: "RunDirectory", every: int, console: Console | None, only_trainable: bool
    ):
        hint = f"the same command with `--run-dir {run.path}` goes on"
        super().__init__(run.checkpoints, every, hint, only_trainable)
        self._run = run
        self._console = console

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._run.write_config()  # the lock of the run directory is that of its checkpoints, too
        self._check_folder = self._run.lock
        yield

    def restore(self, trainer: keras.Model, order: dict[str, Any]) -> TrainingState:
        self.identity |= self._run.identity.for_checkpoint
        state = super().restore(trainer, order)
        if state.step and self._console is not None:
            self._console.print(f"Going on after step {state.step}")
        self._run.write_history(state.history)
        return state

    def _save(self, begun: bool = True) -> None:
        super()._save(begun)
        if not begun:
            self._run.write_history(self.state.history)


class StepLosses(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the mean loss of the epoch so far to losses.csv after each step.

    A checkpoint that held them would grow with the number of steps. A resumed training continues
    the file after the step that it is resumed at.

    Args:
        run: Run directory, for losses.csv.
        checkpoint: Checkpoint of the same `fit`.

    Raises:
        OSError: In training, if the file cannot be written.
    """

    def __init__(self, run: "RunDirectory", checkpoint: StepCheckpoint):
        super().__init__()
        self._run = run
        self._path = run.path / "losses.csv"
        self._checkpoint = checkpoint
        self._step = 0

    @property
    def values(self) -> np.ndarray:
        """Loss after each step that is done, (steps,). A step that the file has lost is NaN."""
        losses = np.full(self._checkpoint.state.step, np.nan)
        if self._path.exists():
            for row in self._path.read_text("utf-8", errors="replace").splitlines():
                step, _, loss = row.partition(",")
                with suppress(ValueError):  # the header, or a damaged row
                    if 1 <= int(step) <= len(losses):
                        losses[int(step) - 1] = float(loss)
        return losses

    def on_train_begin(self, logs: Any = None) -> None:
        if not cluster.is_first():
            return
        rows = [f"{step},{loss}" for step, loss in enumerate(self.values.tolist(), 1)]
        self._run.write("losses.csv", "\n".join(["step,loss", *rows, ""]).encode())
        self._step = len(rows)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not cluster.is_first():
            return
        self._step += 1
        try:
            with open(self._path, "a") as file:
                file.write(f"{self._step},{float(logs['loss'])}\n")
        except OSError as error:
            raise write_error(str(self._path), self._run.checkpoints, error) from error
