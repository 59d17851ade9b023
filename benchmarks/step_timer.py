"""Times the training steps within a Keras `fit`, as a user gets them."""

import sys
import time
from collections.abc import Callable
from typing import Any

import keras

from zoo.training import Batches


class StepTimer(keras.callbacks.Callback):
    """Times the steps of one `fit` in turns.

    A turn consists of `skip` steps that are not timed and `steps` steps that are, from one
    `on_train_batch_begin` to another. Before the time is taken, the loss is read, because a GPU
    may still compute steps that Python has finished. Between two turns the training waits.

    Args:
        begin_turn: Function that is called before each turn. The training ends if it returns False.
        end_turn: Function that is called after each turn with the mean seconds of a step.
        steps: Number of timed steps in a turn.
        skip: Number of steps before them that are not timed.
    """

    def __init__(
        self,
        begin_turn: Callable[[], bool],
        end_turn: Callable[[float], Any],
        steps: int,
        skip: int = 1,
    ):
        super().__init__()
        self._begin_turn = begin_turn
        self._end_turn = end_turn
        self._steps = steps
        self._skip = skip
        self._started = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        turn, number = divmod(batch, self._skip + self._steps)
        if number == 0:
            if turn:
                self._wait()
                self._end_turn((time.perf_counter() - self._started) / self._steps)
            if not self._begin_turn():
                self.model.stop_training = True
        if number == self._skip:
            if batch:
                self._wait()
            self._started = time.perf_counter()

    def _wait(self) -> None:
        """Waits until all steps are computed."""
        (loss,) = (metric for metric in self.model.metrics if metric.name == "loss")
        float(loss.result())


def time_fit(
    model: keras.Model,
    batches: Batches,
    turns: int,
    steps: int,
    skip: int = 1,
    between: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Trains a model and returns the mean seconds of a step in each turn.

    Args:
        model: Compiled model.
        batches: Batches with a seed, an endless stream.
        turns: Number of turns, the first of which compiles the step.
        steps: Number of timed steps in a turn.
        skip: Number of steps before them that are not timed.
        between: Function that is called before each turn.
    """
    seconds: list[float] = []

    def begin_turn() -> bool:
        between()
        return len(seconds) < turns

    _fit(model, batches, StepTimer(begin_turn, seconds.append, steps, skip))
    return seconds


def serve_fit(model: keras.Model, batches: Batches, steps: int, skip: int = 1) -> None:
    """Takes the turns of a contender, as `benchmarks.contenders.serve` does.

    Args:
        model: Compiled model.
        batches: Batches with a seed, an endless stream.
        steps: Number of timed steps in a turn.
        skip: Number of steps before them that are not timed.
    """

    def begin_turn() -> bool:
        return bool(sys.stdin.readline())

    def end_turn(seconds: float) -> None:
        print(seconds, flush=True)

    _fit(model, batches, StepTimer(begin_turn, end_turn, steps, skip))


def _fit(model: keras.Model, batches: Batches, timer: StepTimer) -> None:
    endless = 10**9  # steps; the timer ends the training
    model.fit(batches, steps_per_epoch=endless, shuffle=False, verbose=0, callbacks=[timer])
