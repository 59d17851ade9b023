"""Gradient accumulation on JAX: a loop over the parts of a batch within the compiled step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras.src.backend.common.stateless_scope import StatelessScope

from zoo.backends import accumulation, common
from zoo.backends.cluster_parts import Part, own_part
from zoo.backends.jax_training import State, checked_scan

Tensor = Any


def accumulated_step(trainer: Any, state: State, data: Any) -> tuple[Any, State]:
    """One step of the optimizer, with the gradients of a batch that is computed in parts."""
    trainable, _, optimizer_variables, _ = state
    part = own_part(data)
    sums, non_trainable, metrics = accumulated_sums(trainer, state, part)
    loss, gradients = accumulated_means(sums)
    trainable, optimizer_variables = trainer.optimizer.stateless_apply(
        optimizer_variables, gradients, trainable
    )
    logs, metrics = _with_metrics(
        trainer, metrics, lambda: common.update_loss_metric(trainer, loss, part.total)
    )
    return logs, (trainable, non_trainable, optimizer_variables, metrics)


def accumulated_sums(trainer: Any, state: State, part: Part) -> Any:
    """Computes the rows of a batch in parts, one after another.

    Returns:
        Sums over the parts, for `accumulated_means`, and new values of the variables that are not
        trainable and of the metrics.
    """
    trainable, non_trainable, _, metrics = state
    data, examples = part.data, part.rows
    size = accumulation.part_size(examples, trainer.gradient_accumulation)
    rest = examples % size
    add_part = _part_function(trainer, state, part)
    dtype = accumulation.loss_dtype()
    sums = [jnp.zeros((), dtype)] * 2 + [jnp.zeros_like(x) for x in trainable]
    carry = sums, non_trainable, metrics

    def in_parts(x: Tensor) -> Tensor:
        return x[: examples - rest].reshape(-1, size, *x.shape[1:])

    def scan_part(carry: Any, inputs: Any) -> Any:
        start, rows = inputs
        return add_part(carry, rows, start, size)

    starts = jnp.arange(0, examples - rest, size, dtype=jnp.int32)
    carry = checked_scan(scan_part, carry, (starts, jax.tree.map(in_parts, data)))
    if rest:
        last = jax.tree.map(lambda x: x[examples - rest :], data)
        carry = add_part(carry, last, examples - rest, rest)
    return carry


def accumulated_means(sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the whole batch."""
    total, *weighted = sums
    loss, *gradients = [x / total.astype(x.dtype) for x in weighted]
    return loss, gradients


def _part_function(trainer: Any, state: State, whole: Part) -> Callable[..., Any]:
    """Function that adds a part of a batch to the sums of weights, losses and gradients."""
    trainable, initial, optimizer_variables, _ = state
    counters = {id(counter) for counter in trainer.draw_counters}
    is_counter = [id(variable) in counters for variable in trainer.non_trainable_variables]

    def add_part(carry: Any, part: Any, start: Any, count: int) -> Any:
        sums, non_trainable, metrics = carry
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
        # All parts are of one step, so that each draws with the same number of earlier draws.
        begun = [a if same else b for a, b, same in zip(initial, non_trainable, is_counter)]

        def loss_function(trainable: list[Tensor]) -> Any:
            with (
                trainer.part_of_batch(whole.start + start, count, whole.total),
                accumulation.recorded_divisors() as divisors,
            ):
                scaled, results = trainer.compute_loss_and_updates(
                    trainable, begun, metrics, x, y, sample_weight,
                    training=True, optimizer_variables=optimizer_variables,
                )  # fmt: skip
            return scaled, (divisors.weight(count), *results)

        (_, results), gradients = jax.value_and_grad(loss_function, has_aux=True)(trainable)
        weight, loss, predictions, non_trainable, metrics = results
        terms = [loss.astype(weight.dtype), *gradients]
        terms = [weight, *(term * weight.astype(term.dtype) for term in terms)]
        _, metrics = _with_metrics(
            trainer, metrics, lambda: trainer.compute_metrics(x, y, predictions, sample_weight)
        )
        return [a + b for a, b in zip(sums, terms)], non_trainable, metrics

    return add_part


def _with_metrics(
    trainer: Any, values: list[Tensor], update: Callable[[], Any]
) -> tuple[Any, list[Tensor]]:
    """The metrics' results and variables after an update that begins with these values."""
    variables = trainer.metrics_variables
    with StatelessScope(state_mapping=list(zip(variables, values))) as scope:
        update()
        results = trainer.get_metrics_result()
    return results, [scope.get_current_value(variable) for variable in variables]
