"""Recurrent layers on JAX.

What does not depend on the step before is left out of the loop: W·x for all steps at once, and the
gradient of U, which is one product over all steps where JAX would add up one a step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tensor = Any


def recurrent(
    cell: str,
    gates: Callable[..., Any],
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    kernel, recurrent_kernel, bias = weights
    input_bias, recurrent_bias = bias if bias.ndim == 2 else (bias, 0 * bias)
    projected = jnp.swapaxes(inputs, 0, 1) @ kernel + input_bias  # (T, B, k)
    if mask is not None:
        mask = jnp.swapaxes(mask, 0, 1)[..., None]  # (T, B, 1)
    outputs, states = _compiled_loop(
        gates, projected, tuple(states), recurrent_kernel, recurrent_bias, mask
    )
    return jnp.swapaxes(outputs, 0, 1), states


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any) -> Any:
    """projected: (T, B, k); states: (B, units) each. Returns h at every step, the last states."""
    (outputs, *_), last, _ = _steps(gates, projected, states, kernel, bias, mask)
    return outputs, last


def _steps(gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any) -> Any:
    def step(before: Any, at: Any) -> Any:
        x, counts = at
        h = before[0] @ kernel + bias
        after = gates(x, h, *before)
        if counts is not None:
            after = tuple(jnp.where(counts, new, old) for new, old in zip(after, before))
        return after, (after, h)

    last, (after, h) = lax.scan(step, states, (projected, mask))
    return after, last, h


def _loop_forward(
    gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any
) -> Any:
    after, last, h = _steps(gates, projected, states, kernel, bias, mask)
    return (after[0], last), (projected, states, kernel, mask, after, h)


def _loop_backward(gates: Any, residuals: Any, gradients: Any) -> Any:
    projected, states, kernel, mask, after, h = residuals
    output_gradients, last_gradients = gradients
    before = tuple(jnp.concatenate([s[None], a[:-1]]) for s, a in zip(states, after))

    def step(coming: Any, at: Any) -> Any:
        x, h, before, output_gradient, counts = at
        coming = [coming[0] + output_gradient, *coming[1:]]
        passed = [jnp.zeros_like(c) for c in coming]
        if counts is not None:
            passed = [jnp.where(counts, 0, c) for c in coming]
            coming = [jnp.where(counts, c, 0) for c in coming]
        _, pull = jax.vjp(gates, x, h, *before)
        x_gradient, h_gradient, *going = pull(tuple(coming))
        going[0] += h_gradient @ kernel.T
        going = tuple(g + p for g, p in zip(going, passed))
        return going, (x_gradient, h_gradient)

    steps = projected, h, before, output_gradients, mask
    state_gradients, (x_gradient, h_gradient) = lax.scan(
        step, tuple(last_gradients), steps, reverse=True
    )
    kernel_gradient = jnp.einsum("tbu,tbk->uk", before[0], h_gradient)
    return x_gradient, state_gradients, kernel_gradient, h_gradient.sum((0, 1)), None


_loop.defvjp(_loop_forward, _loop_backward)
_compiled_loop = jax.jit(_loop, static_argnums=0)  # so that calls one by one compile it only once
