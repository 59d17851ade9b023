"""Generation on JAX: a compiled loop over tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax

from zoo.backends import common

Tensor = Any


def decode_loop(
    model: Any,
    step: Callable[..., tuple[Tensor, Any]],
    choose: Callable[..., tuple[Tensor, Any]],
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Any]]:
    """Compiles a loop that chooses and processes one token a row at a time.

    As `zoo.backends.tensorflow_generation.decode_loop`. The loop is traced and called with 64 bits
    enabled, since `choose` computes probabilities in float64; the model's own dtypes stay.
    """
    variables = model.variables

    def loop(
        values: Any, caches: Any, logits: Tensor, start: Tensor, arrays: Any, count: Tensor,
        stop_tokens: Tensor, state: Any,
    ) -> Any:  # fmt: skip
        rows = logits.shape[0]
        tokens = jnp.zeros((caches[0][0].shape[2], rows), jnp.int32)  # as many as a cache holds

        def goes_on(carry: Any) -> Tensor:
            number, logits, _, running, *_ = carry
            return (number < count) & running.any() & jnp.isfinite(logits.max(-1)).all()

        def body(carry: Any) -> Any:
            number, logits, tokens, running, state, caches = carry
            with common.float64_results():
                chosen, state = choose(logits, state)
            tokens = lax.dynamic_update_index_in_dim(tokens, chosen, number, axis=0)
            running &= (chosen[:, None] != stop_tokens).all(-1)
            logits, caches = step((chosen[:, None], start + number, *arrays), caches)
            return number + 1, logits, tokens, running, state, caches

        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            running = jnp.ones(rows, bool)
            carry = jnp.int32(0), logits, tokens, running, state, caches
            number, logits, tokens, _, _, caches = lax.while_loop(goes_on, body, carry)
        return number, tokens, logits, caches

    compiled = jax.jit(loop, donate_argnums=1)

    def run(
        logits: Tensor, start: int, arrays: Any, caches: Any, count: int, stop_tokens: np.ndarray,
        state: Any,
    ) -> Any:  # fmt: skip
        values = [variable.value for variable in variables]
        with jax.enable_x64(True):
            return compiled(
                values, caches, logits, np.int32(start), arrays, np.int32(count), stop_tokens, state
            )

    return run
