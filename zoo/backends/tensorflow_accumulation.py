"""Gradient accumulation on TensorFlow: a loop over the parts of a batch within the step."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from zoo.backends import accumulation, common
from zoo.backends.cluster_parts import Part, own_part

Tensor = Any


def accumulated_step(trainer: Any, data: Any) -> Any:
    """One step of the optimizer, with the gradients of a batch that is computed in parts."""
    part = own_part(data)
    loss, gradients = accumulated_means(accumulated_sums(trainer, part))
    trainer.optimizer.apply(gradients, trainer.trainable_variables)
    common.update_loss_metric(trainer, loss, part.total)
    return trainer.get_metrics_result()


def accumulated_sums(trainer: Any, part: Part) -> list[Tensor]:
    """Computes the rows of a batch in parts, one after another, and updates the metrics.

    The loop is TensorFlow's own: operations of an unrolled one could run side by side, with the
    activations of all parts in memory.

    Returns:
        Sums over the parts, for `accumulated_means`.
    """
    data, examples = part.data, part.rows
    size = accumulation.part_size(examples, trainer.gradient_accumulation)
    counters = trainer.draw_counters
    draws = [tf.identity(counter.value) for counter in counters]

    def add_part(sums: Sequence[Tensor], start: Any, count: Any) -> list[Tensor]:
        for counter, number in zip(counters, draws):
            counter.assign(number)
        rows = tf.nest.map_structure(lambda x: x[start : start + count], data)
        with trainer.part_of_batch(part.start + start, count, part.total):
            terms = _weighted_terms(trainer, rows, count)
        return [total + term for total, term in zip(sums, terms)]

    def add_next(start: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
        count = size if isinstance(size, int) else tf.minimum(size, examples - start)
        return start + count, *add_part(sums, start, count)

    weights = [variable.value for variable in trainer.trainable_variables]
    zero = tf.zeros((), accumulation.loss_dtype())
    sums = [zero, zero, *map(tf.zeros_like, weights)]
    # With sizes that are known the last part may be smaller; XLA compiles no others.
    rest = examples % size if isinstance(size, int) else 0
    _, *sums = tf.while_loop(
        lambda start, *_: start < examples - rest, add_next, [0, *sums], parallel_iterations=1
    )
    if rest:
        sums = add_part(sums, examples - rest, rest)
    return sums


def accumulated_means(sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the whole batch."""
    total, *weighted = sums
    loss, *gradients = [x / tf.cast(total, x.dtype) for x in weighted]
    return loss, gradients


def _weighted_terms(trainer: Any, part: Any, examples: Any) -> list[Tensor]:
    """Weight of a part's loss in that of the batch; its loss and gradients times that weight."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
    with tf.GradientTape() as tape, accumulation.recorded_divisors() as divisors:
        predictions = trainer(x, training=True)
        loss = trainer.compute_loss(x, y, predictions, sample_weight, training=True)
        scaled = trainer.optimizer.scale_loss(loss)
    weights = [variable.value for variable in trainer.trainable_variables]
    gradients = tape.gradient(scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    trainer.compute_metrics(x, y, predictions, sample_weight)
    weight = divisors.weight(examples)
    # In a loop the sums must keep the shapes that they begin with, which a gradient may not know.
    dense = [tf.ensure_shape(tf.convert_to_tensor(g), w.shape) for g, w in zip(gradients, weights)]
    terms = [tf.cast(loss, weight.dtype), *dense]
    return [weight, *(term * tf.cast(weight, term.dtype) for term in terms)]
