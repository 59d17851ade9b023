"""JAX: training steps that check ids and labels and keep the model's weights after an error."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.backends import common

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
        ranges: Lowest and highest integer of each call, (2,).
    """

    def __init__(self, trace: Any):
        self.trace = trace
        self.limits: list[tuple[int, str]] = []
        self.ranges: list[Tensor] = []


_recorders: list[_Recorder] = []


@contextmanager
def _recorder(trace: Any) -> Iterator[_Recorder]:
    _recorders.append(_Recorder(trace))
    try:
        yield _recorders[-1]
    finally:
        _recorders.pop()


def check_range(integers: Tensor, size: int, rule: str) -> Tensor:
    if not integers.size:
        return integers
    low, high = integers.min(), integers.max()
    if not isinstance(integers, jax.core.Tracer):
        common.check_limits(low, high, size, rule)
    elif _recorders and integers._trace is _recorders[-1].trace:
        _recorders[-1].limits.append((size, rule))
        _recorders[-1].ranges.append(jnp.stack([low, high]).astype("int32"))
        return jnp.clip(integers, 0, size - 1)
    else:
        jax.debug.callback(partial(common.check_limits, size=size, rule=rule), low, high)
    return integers


@partial(
    jax.tree_util.register_dataclass, data_fields=["outputs", "ranges"], meta_fields=["limits"]
)
@dataclass(frozen=True)
class _Checked:
    """Outputs of a step and what `_Recorder` has recorded; the ranges are (calls, 2)."""

    outputs: Any
    ranges: Tensor
    limits: tuple[tuple[int, str], ...]

    def raise_if_invalid(self) -> None:
        for (low, high), (size, rule) in zip(np.asarray(self.ranges), self.limits):
            common.check_limits(low, high, size, rule)


class TrainerMixin:
    """Base class of `zoo.Trainer`: after an error in a step the model still has its weights.

    Keras' steps receive the values of the model's variables and delete them. An error within a
    compiled step would leave none, so a step replaces an id or label that does not exist by the
    nearest one. The error is raised before the next step but one, so that the host need not wait
    for each step, or when the values return to the model, as they do before they are saved.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._unread = deque[_Checked]()  # of steps that may not have ended yet

    def train_step(self, state: State, data: Any) -> Any:
        return self._checked(super().train_step, state, data)  # type: ignore[misc]

    def test_step(self, state: State, data: Any) -> Any:
        return self._checked(super().test_step, state, data)  # type: ignore[misc]

    def predict_step(self, state: State, data: Any) -> Any:
        return self._checked(super().predict_step, state, data)  # type: ignore[misc]

    def _checked(self, step: Callable[..., Any], state: State, data: Any) -> Any:
        tensor = jax.tree.leaves(data)[0]
        if not isinstance(tensor, jax.core.Tracer):
            return step(state, data)
        with _recorder(tensor._trace) as recorder:
            outputs, new_state = step(state, data)
        if not recorder.ranges:
            return outputs, new_state
        return _Checked(outputs, jnp.stack(recorder.ranges), tuple(recorder.limits)), new_state

    def _make_function(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def step_with_outputs(state: State, data: Any) -> Any:
            self._raise_if_invalid(running=1)
            checked, state = step(state, data)
            if not isinstance(checked, _Checked):
                return checked, state
            self._unread.append(dataclasses.replace(checked, outputs=None))
            return checked.outputs, state

        steps = super()._make_function(step_with_outputs, *args, **kwargs)  # type: ignore[misc]

        def restoring_steps(state: State, iterator: Any) -> Any:
            try:
                return steps(state, iterator)
            except StopIteration:
                raise
            except BaseException:
                self._restore(state)
                raise

        return restoring_steps

    def _raise_if_invalid(self, running: int = 0) -> None:
        """Checks the ids of all steps but the last ones, which may be running."""
        while len(self._unread) > running:
            self._unread.popleft().raise_if_invalid()

    def _restore(self, state: State) -> None:
        """Gives the values back to the model's variables, unless XLA has deleted them."""
        self._unread.clear()
        if not any(value.is_deleted() for value in jax.tree.leaves(state)):
            names = _STATES[len(state)]
            self._jax_state = dict(zip(names, state))
            self._jax_state_synced = False
            self.jax_state_sync()

    def jax_state_sync(self) -> None:
        super().jax_state_sync()  # type: ignore[misc]
        self._raise_if_invalid()
