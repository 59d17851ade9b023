"""Generation on TensorFlow: a loop over tokens in the graph, compiled with XLA.

A step of incremental decoding and the choice of its token on the host take half as long again as
the step's computation: calls of compiled functions, and copies of logits and tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Tensor = Any


def decode_loop(
    step: Callable[..., Tensor], choose: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Compiles a loop that chooses and processes one token a row at a time.

    The loop ends when all rows have had a stop token, or logits are not finite.

    Args:
        step: Step of incremental decoding, `step((ids, start, *arrays), caches) -> logits`, which
            updates the caches in place.
        choose: Function `choose(logits, state) -> (tokens, state)`, (B, V) to (B,) int32.

    Returns:
        Function of logits, (B, V); cache index of the first token; `arrays`; caches; largest number
        of tokens; stop tokens, (S,) int32; and the state of `choose`. It returns the number of
        tokens, N; the tokens in the first N rows of an array, (capacity, B); and the logits after
        them, (B, V).
    """

    def loop(
        logits: Tensor, start: Tensor, arrays: Any, caches: Any, count: Tensor, stop_tokens: Tensor,
        state: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        rows = logits.shape[0]
        tokens = tf.zeros([caches[0][0].shape[2], rows], tf.int32)  # as many as a cache holds

        def goes_on(number: Tensor, logits: Tensor, tokens: Tensor, running: Tensor, _: Any) -> Any:
            can_choose = tf.reduce_all(tf.math.is_finite(tf.reduce_max(logits, -1)))
            return tf.logical_and(number < count, tf.reduce_any(running) & can_choose)

        def body(
            number: Tensor, logits: Tensor, tokens: Tensor, running: Tensor, state: Any
        ) -> Sequence[Any]:
            chosen, state = choose(logits, state)
            tokens = tf.tensor_scatter_nd_update(tokens, tf.reshape(number, [1, 1]), chosen[None])
            running &= tf.reduce_all(chosen[:, None] != stop_tokens, -1)
            logits = step((chosen[:, None], start + number, *arrays), caches)
            return number + 1, logits, tokens, running, state

        running = tf.ones([rows], tf.bool)
        number, logits, tokens, *_ = tf.while_loop(
            goes_on, body, (tf.constant(0), logits, tokens, running, state)
        )
        return number, tokens, logits

    compiled = tf.function(loop, jit_compile=True)

    def run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits, start, arrays, caches, *rest = arguments
        tensors = tf.nest.map_structure(tf.convert_to_tensor, (logits, start, arrays))
        return compiled(  # type: ignore[no-any-return]
            *tensors, caches, *tf.nest.map_structure(tf.convert_to_tensor, rest)
        )

    return run
