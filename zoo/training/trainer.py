"""Training that can be stopped anywhere and gone on with anywhere.

What a step does depends on the step's number alone: the order of the examples, the augmentation and
the dropout masks are functions of seed and step. A checkpoint therefore holds the variables and a
few sums, and the next step after it is the one that would have come.
"""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo import backends
from zoo.backends import Objective, backend
from zoo.training import checkpoints
from zoo.training.batches import Examples, shuffled_indices
from zoo.training.run_directory import RunDirectory

Evaluate = Callable[[], Mapping[str, float]]


_PENDING_STEPS = 50  # steps an accelerator may run ahead of the progress bar


class Diverged(RuntimeError):
    """The loss is no longer finite."""


class Interrupted(RuntimeError):
    """Ctrl-C; a checkpoint was written."""


def environment() -> dict[str, str]:
    """What computes, for a run's metrics."""
    return {
        "backend": backends.name,
        "backend_version": backend.version(),
        "keras_version": keras.__version__,
        "device": backend.device(),
    }


@dataclasses.dataclass
class State:
    """How far a run has come. Saved with each checkpoint."""

    step: int = 0
    examples: int = 0  # of the epoch begun
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # likewise
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)  # of every step
    timed_examples: int = 0  # all steps but each process' first of its shape
    timed_seconds: float = 0.0
    wall_seconds: float = 0.0  # of training, evaluation and checkpoints
    backends: list[str] = dataclasses.field(default_factory=list)  # in the order they took part

    @property
    def examples_per_second(self) -> float | None:
        """None before there was a step to time."""
        return self.timed_examples / self.timed_seconds if self.timed_seconds else None


def metrics(recipe: str, model: keras.Model, state: State, **results: Any) -> dict[str, Any]:
    """What a recipe's `metrics.json` says, whatever the task, with the results of its own."""
    return {
        "recipe": recipe,
        "model": model.name,
        **environment(),
        "backends": state.backends,
        "parameters": model.count_params(),
        **results,
        "examples_per_second": state.examples_per_second,
        "wall_seconds": state.wall_seconds,
    }


def fit(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    objective: Objective,
    data: Examples,
    run: RunDirectory,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    evaluate: Evaluate,
    checkpoint_steps: int = 200,
    console: Console | None = None,
) -> State:
    """Trains, going on after the run's last checkpoint if there is one.

    Args:
        model: restored and updated in place.
        optimizer: likewise.
        objective: of (*data(indices), step), gives the batch's mean loss and mean metrics.
        data: the examples: `InMemory`, or what reads each batch when it is wanted.
        run: where checkpoints and the history go.
        epochs: passes over the data. The last batch of each may be smaller.
        batch_size: examples of a step.
        seed: of the order of the examples.
        evaluate: called after each epoch; its numbers join the epoch's row of the history.
        checkpoint_steps: a checkpoint every so many steps, besides one after each epoch.
        console: where progress is shown.

    Returns:
        The state after the last step.

    Raises:
        ValueError: if `epochs` or `batch_size` is not at least 1.
        Diverged: if the loss turns NaN or infinite; the text names the step.
        Interrupted: after Ctrl-C, with a checkpoint written. A second Ctrl-C stops at once.
        OSError: if a checkpoint cannot be written; the last good one stays.
    """
    console = console or Console()
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    examples = len(data)
    steps_per_epoch = math.ceil(examples / batch_size)
    optimizer.build(model.trainable_variables)
    run.write_config()
    saved = checkpoints.restore(run.checkpoints, model=model, optimizer=optimizer)
    state = State(**saved) if saved else State()
    if saved:
        console.print(f"Going on after step {state.step} of {epochs * steps_per_epoch}")
        run.write_history(state.history)
    if backends.name not in state.backends:
        state.backends.append(backends.name)
    loop = _Loop(model, optimizer, objective, data, run, state)

    with _interruptible() as interrupted, loop:
        for epoch in range(state.step // steps_per_epoch, epochs):
            order = shuffled_indices(seed, epoch, examples)
            with _progress_bar(console, f"epoch {epoch + 1}/{epochs}", steps_per_epoch) as show:
                while state.step < (epoch + 1) * steps_per_epoch:
                    batch = state.step % steps_per_epoch
                    loop.step(order[batch * batch_size : (batch + 1) * batch_size])
                    show(batch + 1, state)
                    if batch + 1 == steps_per_epoch:
                        break  # the epoch's own checkpoint follows
                    if interrupted.is_set() or state.step % checkpoint_steps == 0:
                        loop.save()
                    loop.stop_if(interrupted)
            row = loop.end_epoch(epoch + 1, evaluate)
            console.print(_line(row, epochs))
            loop.stop_if(interrupted)
    return state


class _Loop:
    """The steps and the book-keeping around them."""

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        data: Examples,
        run: RunDirectory,
        state: State,
    ):
        self._parts = {"model": model, "optimizer": optimizer}
        self._train_step = backend.train_step(model, optimizer, objective)
        self._data = data
        self._run = run
        self._state = state
        self._pending: list[tuple[int, int, Mapping[str, Any]]] = []
        self._pending_steps = 1 if backend.device() == "cpu" else _PENDING_STEPS
        self._shapes: set[Any] = set()  # of the arrays that a step is compiled for
        self._clock = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """However the training ended, the model can be used afterwards."""
        self._train_step.sync()

    def stop_if(self, interrupted: threading.Event) -> None:
        if interrupted.is_set():
            raise Interrupted(
                f"Stopped after step {self._state.step}; the same command with "
                f"`--run-dir {self._run.path}` goes on"
            )

    def step(self, indices: np.ndarray) -> None:
        state = self._state
        started = time.perf_counter()
        arrays = self._data(indices)
        shapes = tuple(tuple(array.shape) for array in arrays)
        compiles = shapes not in self._shapes
        if compiles:
            self._flush()
        metrics = self._train_step(*arrays, np.int32(state.step))
        state.step += 1
        self._pending.append((state.step, len(indices), metrics))
        if compiles:
            self._shapes.add(shapes)
            self._flush(timed=False)
            return
        state.timed_seconds += time.perf_counter() - started
        state.timed_examples += len(arrays[-1])
        if len(self._pending) >= self._pending_steps:
            self._flush()

    def _flush(self, timed: bool = True) -> None:
        """Waits for the steps begun and adds up their metrics."""
        started = time.perf_counter()
        for step, count, metrics in self._pending:
            names = ["loss", *sorted(set(metrics) - {"loss"})]  # JAX returns them sorted
            numbers = {name: float(metrics[name]) for name in names}
            if not math.isfinite(numbers["loss"]):
                raise self._diverged(f"The loss is {numbers['loss']} at step {step}")
            self._state.losses.append(numbers["loss"])
            for name, number in numbers.items():
                self._state.sums[name] = self._state.sums.get(name, 0.0) + number * count
            self._state.examples += count
        self._pending.clear()
        if timed:
            self._state.timed_seconds += time.perf_counter() - started

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what}. The last good checkpoint in {self._run.checkpoints} stays; a lower learning "
            "rate may help"
        )

    def save(self) -> None:
        self._flush()
        self._train_step.sync()
        now = time.perf_counter()
        self._state.wall_seconds += now - self._clock
        self._clock = now
        progress = dataclasses.asdict(self._state)
        try:
            checkpoints.save(self._run.checkpoints, progress.pop("step"), progress, **self._parts)
        except checkpoints.NotFinite as error:
            raise self._diverged(str(error)) from error

    def end_epoch(self, epoch: int, evaluate: Evaluate) -> dict[str, float]:
        state = self._state
        self._flush()
        self._train_step.sync()
        row = {"epoch": epoch, **{k: v / state.examples for k, v in state.sums.items()}}
        row |= evaluate()
        state.history.append(row)
        state.sums, state.examples = {}, 0
        self.save()
        self._run.write_history(state.history)
        return row


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step is never cut in half. A second one raises."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def first(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress_bar(
    console: Console, description: str, steps: int
) -> Iterator[Callable[[int, State], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=steps, numbers="")

        def show(done: int, state: State) -> None:
            means = [f"{k} {v / state.examples:.4f}" for k, v in state.sums.items()]
            rate = state.examples_per_second
            speed = f"{rate:.0f}/s" if rate else ""
            progress.update(task, completed=done, numbers="  ".join([*means, speed]))

        yield show


def _line(row: Mapping[str, float], epochs: int) -> str:
    numbers = (f"{name} {value:.4f}" for name, value in row.items() if name != "epoch")
    return f"epoch {row['epoch']:.0f}/{epochs}  {'  '.join(numbers)}"
