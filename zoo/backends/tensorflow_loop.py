"""Recurrent layers for TensorFlow as a loop that LiteRT holds, too.

`tf.scan` collects the outputs in a list of tensors, which LiteRT has for fixed batch sizes only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Tensor = Any


def recurrent_loop(
    cell_step: Callable[..., tuple[Tensor, ...]],
    projected: Tensor,
    states: Sequence[Tensor],
    kernel: Tensor,
    bias: Tensor,
    masks: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor]]:
    """Computes a recurrent layer without gradients.

    Args:
        cell_step: Function of one time step, as for `Backend.recurrent`.
        projected: Projected inputs W·x + b of all steps, (T, B, k).
        states: Initial states, each (B, units).
        kernel: Recurrent kernel U, (units, k).
        bias: Recurrent bias, (k,).
        masks: The boolean mask, (T, B, 1), or nothing.

    Returns:
        The hidden states of all steps, (B, T, units), and the final states.
    """
    steps = tf.shape(projected)[0]

    def body(step: Tensor, outputs: Tensor, *old_states: Tensor) -> Any:
        h_part = tf.matmul(old_states[0], kernel) + bias
        new_states = cell_step(tf.gather(projected, step), h_part, *old_states)
        for mask in masks:
            m = tf.gather(mask, step)
            new_states = tuple(tf.where(m, new, old) for new, old in zip(new_states, old_states))
        index = tf.reshape(step, [1, 1])
        outputs = tf.tensor_scatter_nd_update(outputs, index, tf.expand_dims(new_states[0], 0))
        return step + 1, outputs, *new_states

    outputs = tf.zeros(tf.concat([[steps], tf.shape(states[0])], 0), states[0].dtype)
    shapes = [tf.TensorShape([]), tf.TensorShape([None, None, states[0].shape[-1]])]
    shapes += [tf.TensorShape([None, state.shape[-1]]) for state in states]
    _, outputs, *final_states = tf.while_loop(
        lambda step, *_: step < steps, body, [tf.constant(0), outputs, *states], shapes
    )
    return tf.transpose(outputs, [1, 0, 2]), final_states
