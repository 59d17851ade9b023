"""JAX: training steps that check ids and labels and keep the model's weights after an error.

Keras' steps receive the values of the model's variables and delete them. An error within a compiled
step would leave none. So the steps of every `keras.Model` are compiled by `CheckedStep`: where a
layer or loss checks its integers, an id or label that does not exist is replaced by the nearest
one. The error is raised before the next step but one, so that the host need not wait for each step,
or when the values return to the model, as they do before they are saved. Keras has no hook for
this, so its trainer's functions are replaced when this module is imported.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from keras.src.backend.config import is_nnx_enabled
from keras.src.backend.jax import trainer as keras_trainer

from zoo.backends import common
from zoo.backends.exporting import is_exporting

Tensor = Any
State = tuple[list[Tensor], ...]

_STATES = {  # parts of the state of a step that predicts, tests and trains
    2: ("trainable_variables", "non_trainable_variables"),
    3: ("trainable_variables", "non_trainable_variables", "metrics_variables"),
    4: (
        "trainable_variables",
        "non_trainable_variables",
        "optimizer_variables",
        "metrics_variables",
    ),
}


class _Recorder:
    """Ranges of the integers that a traced step checks.

    Attributes:
        trace: JAX's trace of the step. The values of a loop within it cannot leave the loop.
        limits: Size and rule of each call of `check_range`.
        ranges: Lowest and highest integer of each call.
    """

    def __init__(self, trace: Any):
        self.trace = trace
        self.limits: list[tuple[int, str]] = []
        self.ranges: list[tuple[Tensor, Tensor]] = []


_recorders: list[_Recorder] = []


@contextmanager
def _recorder(trace: Any) -> Iterator[_Recorder]:
    _recorders.append(_Recorder(trace))
    try:
        yield _recorders[-1]
    finally:
        _recorders.pop()


def check_range(integers: Tensor, size: int, rule: str) -> Tensor:
    if is_exporting() or not integers.size:
        return integers
    low, high = integers.min(), integers.max()
    if not isinstance(integers, jax.core.Tracer):
        common.check_limits(low, high, size, rule)
    elif _recorders and integers._trace is _recorders[-1].trace:
        _recorders[-1].limits.append((size, rule))
        _recorders[-1].ranges.append((low, high))
        return jnp.nan_to_num(jnp.clip(integers, 0, size - 1))
    else:
        jax.debug.callback(partial(common.check_limits, size=size, rule=rule), low, high)
    return integers


def checked_scan(step: Callable[[Any, Any], Any], carry: Any, inputs: Any) -> Any:
    """Carries a value through a loop over the first axis of the inputs, `jax.lax.scan`.

    The integers that the steps check are checked by the step of the model that holds the loop.

    Args:
        step: Function of the carried value and the inputs of one step to the next carried value.
        carry: Value to begin with.
        inputs: Inputs of all steps, nested arrays with one first axis.

    Returns:
        The value after the last step.
    """
    limits: list[tuple[int, str]] = []

    def recorded(carry: Any, step_inputs: Any) -> Any:
        with _recorder(jax.tree.leaves(step_inputs)[0]._trace) as recorder:
            carry = step(carry, step_inputs)
        limits[:] = recorder.limits
        return carry, recorder.ranges

    carry, ranges = jax.lax.scan(recorded, carry, inputs)
    for (low, high), (size, rule) in zip(ranges, limits):
        check_range(jnp.stack([low.min(), high.max()]), size, rule)
    return carry


@partial(jax.tree_util.register_dataclass, data_fields=["ranges"], meta_fields=["limits"])
@dataclass(frozen=True)
class _Checks:
    """What `_Recorder` has recorded of a step."""

    ranges: list[tuple[Tensor, Tensor]]
    limits: tuple[tuple[int, str], ...]

    def raise_if_invalid(self) -> None:
        for (low, high), (size, rule) in zip(self.ranges, self.limits):
            common.check_limits(low, high, size, rule)


class CheckedStep:
    """A compiled step of a model: from its state and a batch to outputs and a new state.

    Args:
        step: Step to compile.
        **options: Options of `jax.jit`.
    """

    def __init__(self, step: Callable[..., Any], **options: Any):
        self._step = step
        self._options = options
        self._compiled = jax.jit(self._recorded, **options)
        self.unread = deque[_Checks]()  # of steps that may not have ended yet

    def repeated(self) -> "CheckedStep":
        """Several steps in one call, from batches in arrays with one more axis, the first.

        The outputs are those of the last step.
        """

        def steps(state: State, batches: Any) -> Any:
            first = jax.tree.map(lambda x: x[0], batches)
            shapes = jax.eval_shape(self._step, state, first)[0]
            outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return checked_scan(
                lambda carry, batch: self._step(carry[1], batch), (outputs, state), batches
            )

        repeated = CheckedStep(steps, **self._options)
        repeated.unread = self.unread
        return repeated

    def __call__(self, state: State, data: Any) -> Any:
        _raise_if_invalid(self.unread, running=1)
        _check_width(data)
        (outputs, checks), state = self._compiled(state, data)
        if checks.limits:
            self.unread.append(checks)
        return outputs, state

    def _recorded(self, state: State, data: Any) -> Any:
        with _recorder(jax.tree.leaves(data)[0]._trace) as recorder:
            outputs, state = self._step(state, data)
        return (outputs, _Checks(recorder.ranges, tuple(recorder.limits))), state


def _raise_if_invalid(unread: deque[_Checks], running: int = 0) -> None:
    """Raises the error of a step, but for the last ones, which may be running."""
    while len(unread) > running:
        unread.popleft().raise_if_invalid()


def _check_width(data: Any) -> None:
    """Raises ValueError if an array of the host holds an integer that JAX would wrap to 32 bits."""
    if jax.config.jax_enable_x64:
        return
    for array in jax.tree.leaves(data):
        is_wide = isinstance(array, np.ndarray) and array.dtype in (np.int64, np.uint64)
        if is_wide and array.size:
            low, high = int(array.min()), int(array.max())
            if low < -(2**31) or high >= 2**31:
                raise ValueError(
                    "Integers must lie in [-2**31, 2**31), since JAX wraps others to 32 bits "
                    f"unless `JAX_ENABLE_X64=1` is set. Received: {low if low < 0 else high}"
                )


def _jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles a function of Keras' trainer; only the steps donate their arguments."""
    return (CheckedStep if "donate_argnums" in options else jax.jit)(function, **options)


def _distribute_data(data: Any, *args: Any) -> Any:
    _check_width(data)
    return _keras_distribute_data(data, *args)


def _make_function(trainer: Any, step: Any, concatenate_outputs: bool = False) -> Any:
    """Returns a function of one or more steps that restores the variables after an error."""
    latest: State | None = None

    def tracked(step: Callable[..., Any]) -> Callable[..., Any]:
        def tracked_step(state: State, data: Any) -> Any:
            nonlocal latest
            latest = state
            outputs, latest = step(state, data)
            return outputs, latest

        return tracked_step

    if isinstance(step, CheckedStep):
        trainer._unread_checks = step.unread = getattr(trainer, "_unread_checks", step.unread)
    count = 1 if concatenate_outputs else trainer.steps_per_execution
    if isinstance(step, CheckedStep) and count > 1:
        steps = _steps_of_stacked_batches(tracked(step), tracked(step.repeated()), count)
    else:
        steps = _keras_make_function(trainer, tracked(step), concatenate_outputs)

    def restoring_steps(state: State, iterator: Any) -> Any:
        nonlocal latest
        latest = state
        try:
            return steps(state, iterator)
        except StopIteration:
            raise
        except BaseException:
            _restore(trainer, latest)
            raise
        finally:
            latest = None

    return restoring_steps


def _steps_of_stacked_batches(
    step: Callable[..., Any], repeated: Callable[..., Any], count: int
) -> Callable[..., Any]:
    """Function that computes several steps in one call, if so many batches of one size are left.

    Keras would call the compiled step once for each batch.

    Args:
        step: Function of a state and a batch.
        repeated: Function of a state and batches in arrays with one more axis.
        count: Number of steps.
    """

    def stack(*arrays: Any) -> Any:
        return (np if isinstance(arrays[0], np.ndarray) else jnp).stack(arrays)

    def steps(state: State, iterator: Any) -> Any:
        batches = list(itertools.islice(iterator, count))
        if not batches:
            raise StopIteration
        sizes = {str(jax.tree.map(jnp.shape, batch)) for batch in batches}
        if len(batches) == count and len(sizes) == 1:
            return repeated(state, jax.tree.map(stack, *batches))
        for batch in batches:
            outputs, state = step(state, batch)
        return outputs, state

    return steps


def _restore(trainer: Any, state: State) -> None:
    """Gives the values back to the model's variables, unless XLA has deleted them."""
    getattr(trainer, "_unread_checks", deque()).clear()
    if not any(value.is_deleted() for value in jax.tree.leaves(state)):
        trainer._jax_state = dict(zip(_STATES[len(state)], state))
        trainer._jax_state_synced = False
        trainer.jax_state_sync()


def _jax_state_sync(trainer: Any) -> None:
    _keras_jax_state_sync(trainer)
    _raise_if_invalid(getattr(trainer, "_unread_checks", deque()))


_keras_distribute_data = keras_trainer._distribute_data
_keras_make_function = keras_trainer.JAXTrainer._make_function
_keras_jax_state_sync = keras_trainer.JAXTrainer.jax_state_sync

if not is_nnx_enabled():
    keras_trainer.jit = _jit
    keras_trainer._distribute_data = _distribute_data
    keras_trainer.JAXTrainer._make_function = _make_function
    keras_trainer.JAXTrainer.jax_state_sync = _jax_state_sync
