"""Generation on TensorFlow: a loop over tokens in the graph, compiled with XLA.

A step of incremental decoding and the choice of its token on the host take half as long again as
the step's computation: calls of compiled functions, and copies of logits and tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Tensor = Any


def decode_loop(
    model: Any,
    step: Callable[..., tuple[Tensor, Any]],
    choose: Callable[..., tuple[Tensor, Any]],
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Any]]:
    """Compiles a loop that chooses and processes one token a row at a time.

    The loop ends when all rows have had a stop token, or logits are not finite. The caches are
    values within it: XLA would copy a variable at every token.

    Args:
        model: Model whose weights `step` uses.
        step: Step of incremental decoding, `step((ids, start, *arrays), caches) -> (logits,
            caches)`, which changes nothing in place.
        choose: Function `choose(logits, state) -> (tokens, state)`, (B, V) to (B,) int32.

    Returns:
        Function of logits, (B, V); cache index of the first token; `arrays`; caches; largest number
        of tokens; stop tokens, (S,) int32; and the state of `choose`. It returns the number of
        tokens, N; the tokens in the first N rows of an array, (capacity, B); the logits after them,
        (B, V); and the caches, which replace the ones passed in.
    """

    def loop(
        logits: Tensor, start: Tensor, arrays: Any, caches: Any, count: Tensor, stop_tokens: Tensor,
        state: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        rows = logits.shape[0]
        tokens = tf.zeros([caches[0][0].shape[2], rows], tf.int32)  # as many as a cache holds

        def goes_on(number: Tensor, logits: Tensor, _: Any, running: Tensor, *__: Any) -> Tensor:
            can_choose = tf.reduce_all(tf.math.is_finite(tf.reduce_max(logits, -1)))
            return tf.logical_and(number < count, tf.reduce_any(running) & can_choose)

        def body(
            number: Tensor, logits: Tensor, tokens: Tensor, running: Tensor, state: Any, caches: Any
        ) -> Sequence[Any]:
            chosen, state = choose(logits, state)
            tokens = tf.tensor_scatter_nd_update(tokens, tf.reshape(number, [1, 1]), chosen[None])
            running &= tf.reduce_all(chosen[:, None] != stop_tokens, -1)
            logits, caches = step((chosen[:, None], start + number, *arrays), caches)
            return number + 1, logits, tokens, running, state, caches

        running = tf.ones([rows], tf.bool)
        values = tf.nest.map_structure(tf.convert_to_tensor, caches)
        number, logits, tokens, *_, values = tf.while_loop(
            goes_on, body, (tf.constant(0), logits, tokens, running, state, values)
        )
        tf.nest.map_structure(lambda cache, value: cache.assign(value), caches, values)
        return number, tokens, logits

    compiled = tf.function(loop, jit_compile=True)

    def run(logits: Tensor, start: int, arrays: Any, caches: Any, *rest: Any) -> Any:
        tensors = tf.nest.map_structure(tf.convert_to_tensor, (logits, start, arrays))
        rest = tf.nest.map_structure(tf.convert_to_tensor, rest)
        return *compiled(*tensors, caches, *rest), caches

    return run
