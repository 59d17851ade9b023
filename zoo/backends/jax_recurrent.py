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

    def step(before: Any, at: Any) -> Any:
        x, counts = at
        after = _masked(gates, counts)(x, before[0] @ kernel + bias, *before)
        return after, after[0]

    last, outputs = lax.scan(step, states, (projected, mask))
    return outputs, last


def _masked(gates: Any, counts: Any) -> Any:
    if counts is None:
        return gates
    return lambda x, h_part, *before: tuple(
        jnp.where(counts, new, old) for new, old in zip(gates(x, h_part, *before), before)
    )


def _loop_forward(
    gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any
) -> Any:
    def step(before: Any, at: Any) -> Any:
        x, counts = at
        after, pull = jax.vjp(_masked(gates, counts), x, before[0] @ kernel + bias, *before)
        return after, (after[0], before[0], pull)

    last, (outputs, h, pulls) = lax.scan(step, states, (projected, mask))
    return (outputs, last), (kernel, h, pulls)


def _loop_backward(gates: Any, residuals: Any, gradients: Any) -> Any:
    kernel, h, pulls = residuals
    output_gradients, last_gradients = gradients

    def step(coming: Any, at: Any) -> Any:
        pull, output_gradient = at
        x_gradient, h_gradient, *going = pull((coming[0] + output_gradient, *coming[1:]))
        going[0] += h_gradient @ kernel.T
        return tuple(going), (x_gradient, h_gradient)

    state_gradients, (x_gradient, h_gradient) = lax.scan(
        step, tuple(last_gradients), (pulls, output_gradients), reverse=True
    )
    kernel_gradient = jnp.einsum("tbu,tbk->uk", h, h_gradient)
    return x_gradient, state_gradients, kernel_gradient, h_gradient.sum((0, 1)), None


_loop.defvjp(_loop_forward, _loop_backward)
_compiled_loop = jax.jit(_loop, static_argnums=0)  # so that calls one by one compile it only once
