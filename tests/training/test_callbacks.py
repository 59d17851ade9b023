"""Tests of checkpoints at steps and of the history of resumed trainings."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.training.conftest import BATCH, Outcome, Training, X, Y, trainer
from zoo import backends
from zoo.training import Batches, Diverged, Interrupted, StepCheckpoint


class Stop(Exception):
    """Ends a training in the middle."""


class AfterStep(keras.callbacks.Callback):
    """Calls a function after the step of this number, counted from the call of `fit`."""

    def __init__(self, step: int, function: Callable[[], Any]):
        super().__init__()
        self.steps = 0
        self._step = step
        self._function = function

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.steps == self._step:
            self._function()


class StopInValidation(keras.callbacks.Callback):
    """Raises an exception in the validation of this number, before its epoch's checkpoint."""

    def __init__(self, number: int):
        super().__init__()
        self._number = number

    def on_test_begin(self, logs: Any = None) -> None:
        self._number -= 1
        if not self._number:
            raise Stop


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def stop() -> None:
    raise Stop


def interrupt(training: Training, folder: Path, step: int, **arguments: Any) -> None:
    """Trains until Ctrl-C after the step of this number."""
    callbacks = [*arguments.pop("callbacks", ()), AfterStep(step, ctrl_c)]
    with pytest.raises(Interrupted, match=f"Stopped after step {step}; `fit` with the same"):
        training.fit(folder, callbacks=callbacks, **arguments)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_step_checkpoint_keeps_progress_and_history(whole: Outcome) -> None:
    state, history = whole.state, whole.history.history
    assert state.step == 12
    assert state.backends == [backends.name]
    assert state.timed_examples == 3 * (12 + 12 + 4)  # all but the first step of each epoch
    assert state.examples_per_second == state.timed_examples / state.timed_seconds
    assert state.wall_seconds > state.timed_seconds > 0
    assert list(history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert {name: [row[name] for row in state.history] for name in history} == history
    assert whole.history.epoch == [0, 1, 2]


@pytest.mark.parametrize("step", [1, 6, 8, 12])
def test_step_checkpoint_resumes_to_same_bits_after_ctrl_c(
    training: Training, whole: Outcome, tmp_path: Path, step: int
) -> None:
    """In an epoch's middle, in its last step, and in the last of all; with averaged weights."""
    interrupt(training, tmp_path, step)
    assert files(tmp_path)[-1] == f"step-{step:09d}.npz"
    training.fit(tmp_path).assert_equal(whole)


def test_resumed_epoch_is_printed_as_one_of_all(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(training, tmp_path, 6)
    capsys.readouterr()
    training.fit(tmp_path, verbose=2)
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert epochs == ["Epoch 2/3", "Epoch 3/3"]


def test_step_checkpoint_resumes_to_same_bits_in_new_trainer(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """As in another process: metrics, for instance, have no variables yet."""
    interrupt(training, tmp_path, 6)
    Training().fit(tmp_path).assert_equal(whole)


def test_step_checkpoint_resumes_to_same_bits_after_crashes(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """The last checkpoint is a step or more before."""
    for callback in (
        AfterStep(2, stop),
        StopInValidation(1),
        StopInValidation(1),
        StopInValidation(2),
        AfterStep(3, stop),
    ):
        with pytest.raises(Stop):
            training.fit(tmp_path, callbacks=[callback])
    assert files(tmp_path) == ["step-000000006.npz", "step-000000008.npz"]
    training.fit(tmp_path).assert_equal(whole)


def test_step_checkpoint_is_reusable_after_interruption(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    checkpoint = StepCheckpoint(tmp_path)
    with pytest.raises(Interrupted):
        training.fit(checkpoint, callbacks=[AfterStep(6, ctrl_c)])
    training.fit(checkpoint).assert_equal(whole)


def test_step_checkpoint_counts_timed_examples_of_resumed_epoch(
    training: Training, tmp_path: Path
) -> None:
    interrupt(training, tmp_path, 2, epochs=1)
    assert training.fit(tmp_path, epochs=1).state.timed_examples == 12 + 4


def test_step_checkpoint_trains_finished_training_no_more(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    first = training.fit(tmp_path)
    counter = AfterStep(1, stop)
    second = training.fit(tmp_path, callbacks=[counter])
    assert counter.steps == 0
    for outcome in (first, second):
        outcome.assert_equal(whole)


def test_step_checkpoint_extends_finished_training(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    training.fit(tmp_path, epochs=1)
    training.fit(tmp_path).assert_equal(whole)


def test_step_checkpoint_runs_outside_main_thread(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """Only the main thread can handle signals."""
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(training.fit, tmp_path, 1).result()
    assert outcome.state.history == whole.state.history[:1]


def test_step_checkpoint_stops_at_once_after_second_ctrl_c(
    training: Training, tmp_path: Path
) -> None:
    # A process that was started in the background may ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    twice = AfterStep(2, lambda: (ctrl_c(), ctrl_c()))
    try:
        with pytest.raises(KeyboardInterrupt):
            training.fit(tmp_path, callbacks=[twice])
        assert files(tmp_path) == []
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)


class Poison(keras.callbacks.Callback):
    """Turns a weight into NaN before the step of this number."""

    def __init__(self, step: int):
        super().__init__()
        self._step = step

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step -= 1
        if not self._step:
            kernel = self.model.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, np.nan, np.float32))


@pytest.mark.parametrize(("step", "last_good"), [(5, 4), (6, 4), (8, 6)])
def test_step_checkpoint_keeps_last_good_one_when_loss_diverges(
    training: Training, whole: Outcome, tmp_path: Path, step: int, last_good: int
) -> None:
    """At once, where the next checkpoint is due, and in an epoch's last step."""
    last = rf"step-{last_good:09d}\.npz"
    text = rf"at step {step}\. The last good checkpoint, .*{last}, stays\. A lower learning rate"
    with pytest.raises(Diverged, match=text):
        training.fit(tmp_path, callbacks=[Poison(step), AfterStep(step + 1, stop)])
    assert files(tmp_path)[-1] == f"step-{last_good:09d}.npz"
    training.fit(tmp_path).assert_equal(whole)


def test_step_checkpoint_saves_only_trainable_weights(training: Training, tmp_path: Path) -> None:
    checkpoint = StepCheckpoint(tmp_path, only_trainable=True)
    training.fit(checkpoint, epochs=1)
    with np.load(tmp_path / "step-000000004.npz") as archive:
        names = [name for name in archive.files if name.startswith("model/")]
    weights = training.trainer.trainable_variables
    assert sorted(names) == sorted(f"model/{weight.path}" for weight in weights)
    outcome = training.fit(checkpoint, epochs=2)
    assert outcome.state.step == 8
    assert outcome.history.epoch == [0, 1]


@pytest.mark.once
def test_step_checkpoint_says_where_it_cannot_be_written(
    training: Training, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    text = (
        r"Could not write to the folder .*file/run: Not a directory\. There is no checkpoint yet; "
        "remove the cause and run the same command again"
    )
    with pytest.raises(OSError, match=text):
        training.fit(tmp_path / "file" / "run")


@pytest.mark.once
def test_fit_locks_the_folder_of_its_checkpoints(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """A second training, in a thread or a process, is refused at once, and the first goes on."""
    errors: list[BaseException | None] = []

    def train_another() -> None:
        other = trainer()
        checkpoint = StepCheckpoint(tmp_path, every=1)
        with ThreadPoolExecutor(1) as pool:
            batches = Batches((X, Y), BATCH, seed=3)
            fit = pool.submit(other.fit, batches, epochs=1, verbose=0, checkpoint=checkpoint)
            errors.append(fit.exception())

    training.fit(tmp_path, callbacks=[AfterStep(4, train_another)]).assert_equal(whole)
    (error,) = errors
    assert isinstance(error, BlockingIOError)
    text = (
        "`checkpoint` must be written to by one process at a time. Received: "
        f"{tmp_path}, in use by process {os.getpid()} on "
    )
    assert error.strerror.startswith(text)
    assert error.strerror.endswith("or give `StepCheckpoint` another folder")
    assert files(tmp_path) == ["step-000000009.npz", "step-000000012.npz"]


@pytest.mark.once
def test_fit_ends_when_the_folder_of_its_checkpoints_is_replaced(
    training: Training, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def replace() -> None:
        folder.rename(tmp_path / "moved")
        folder.mkdir()

    with pytest.raises(FileNotFoundError, match="`checkpoint` must stay in place until the train"):
        training.fit(folder, callbacks=[AfterStep(2, replace)])
    assert files(folder) == []


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"batch_size": 20}, "batch_size was 12 and is 20, steps_per_epoch was 4 and is 2"),
        ({"steps_per_epoch": 3}, "steps_per_epoch was 4 and is 3"),
        ({"examples": (X[:38], Y[:38])}, "examples was 40 and is 38"),
    ],
)
def test_fit_rejects_batches_of_another_order(
    training: Training, whole: Outcome, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    interrupt(training, tmp_path, 6)
    options = {"examples": (X, Y), "batch_size": BATCH, "seed": 3} | changes
    text = rf"step-000000006\.npz belongs to another training: {problem}\. Give `fit` the same `Bat"
    with pytest.raises(ValueError, match=text):
        training.trainer.fit(
            Batches(**options), epochs=3, checkpoint=StepCheckpoint(tmp_path), verbose=0
        )
    training.fit(tmp_path).assert_equal(whole)


@pytest.mark.once
def test_step_checkpoint_rejects_invalid_interval(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`every` must be a whole number .* every=0"):
        StepCheckpoint(tmp_path, every=0)


def early_stopping(monitor: str = "val_loss") -> keras.callbacks.EarlyStopping:
    """Ends a training two epochs after the first, since no later one is that much better."""
    return keras.callbacks.EarlyStopping(monitor, min_delta=100.0, patience=2)


@pytest.mark.parametrize("step", [7, 11])
def test_early_stopping_ends_resumed_training_at_same_epoch(
    training: Training, whole: Outcome, tmp_path: Path, step: int
) -> None:
    interrupt(training, tmp_path, step, epochs=5, callbacks=[early_stopping()])
    resumed = training.fit(tmp_path, epochs=5, callbacks=[early_stopping()])
    resumed.assert_equal(whole)  # whose third epoch is its last
    assert resumed.state.stopped


def test_early_stopping_ends_training_for_good(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    training.fit(tmp_path, epochs=5, callbacks=[early_stopping()])
    for monitor in ("val_loss", "val_accuracy"):
        counter = AfterStep(1, stop)
        again = training.fit(tmp_path, epochs=6, callbacks=[early_stopping(monitor), counter])
        assert counter.steps == 0
        again.assert_equal(whole)


@pytest.mark.once
def test_fit_rejects_best_weights_that_a_resumed_training_lacks(
    training: Training, tmp_path: Path
) -> None:
    callback = keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True)
    with pytest.raises(ValueError, match="`callbacks` must have no `EarlyStopping` with `restore_"):
        training.fit(tmp_path, epochs=5, callbacks=[callback])


def comparing(folder: Path) -> list[Any]:
    """Callbacks that halve the learning rate every other epoch, and save at the highest loss."""
    folder.mkdir(exist_ok=True)
    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=100.0),
        keras.callbacks.ModelCheckpoint(
            folder / "best.weights.h5",
            "loss",
            mode="max",
            save_best_only=True,
            save_weights_only=True,
        ),
    ]


@pytest.mark.parametrize("step", [7, 11])
def test_callbacks_of_a_resumed_training_know_the_epochs_before(
    training: Training, tmp_path: Path, step: int
) -> None:
    options: dict[str, Any] = {"epochs": 5, "validation_freq": 2}
    callbacks = comparing(tmp_path)
    expected = training.fit(tmp_path / "whole", callbacks=callbacks, **options)
    interrupt(training, tmp_path / "resumed", step, callbacks=comparing(tmp_path), **options)
    again = comparing(tmp_path)
    resumed = training.fit(tmp_path / "resumed", callbacks=again, **options)
    resumed.assert_equal(expected)
    rates = resumed.history.history["learning_rate"]
    assert rates[0] == 2 * rates[-1]
    assert len(resumed.history.history["val_loss"]) == 2
    assert again[1].best == callbacks[1].best == max(resumed.history.history["loss"])


def test_step_checkpoint_counts_the_steps_of_an_epoch_that_a_callback_ends(tmp_path: Path) -> None:
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 1

    whole, checkpoint = trainer(), StepCheckpoint(tmp_path)
    batches = Batches((X, Y), BATCH, seed=0)
    whole.fit(batches, epochs=2, callbacks=[Stop()], checkpoint=checkpoint, verbose=0)
    assert checkpoint.state.step == int(whole.optimizer.iterations) == 2
    assert checkpoint.state.stopped
