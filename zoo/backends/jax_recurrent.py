"""Recurrent layers for JAX.

Computations that do not depend on the previous step are moved out of the loop: the products W·x of
all steps, and the gradient of U, which is one product over all steps. JAX's automatic
differentiation would add up one product for each step.
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
    cell_step: Callable[..., Any],
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
        cell_step, projected, tuple(states), recurrent_kernel, recurrent_bias, mask
    )
    return jnp.swapaxes(outputs, 0, 1), states


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(cell_step: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any) -> Any:
    """Applies `cell_step` over time.

    Args:
        cell_step: Function of one time step, from (W·x + b, U·h + b, *states) to the new states.
        projected: Projected inputs W·x + b of all steps, (T, B, k).
        states: Initial states, each (B, units).
        kernel: Recurrent kernel U, (units, k).
        bias: Recurrent bias, (k,).
        mask: Boolean mask, (T, B, 1), or None.

    Returns:
        The hidden states h of all steps, (T, B, units), and the final states.
    """

    def step(states: Any, step_inputs: Any) -> Any:
        x, step_mask = step_inputs
        states = _masked(cell_step, step_mask)(x, states[0] @ kernel + bias, *states)
        return states, states[0]

    final_states, outputs = lax.scan(step, states, (projected, mask))
    return outputs, final_states


def _masked(cell_step: Any, step_mask: Any) -> Any:
    """A cell step that keeps the old states where the mask is false."""
    if step_mask is None:
        return cell_step
    return lambda x, h_part, *states: tuple(
        jnp.where(step_mask, new, old) for new, old in zip(cell_step(x, h_part, *states), states)
    )


def _loop_forward(
    cell_step: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any
) -> Any:
    def step(states: Any, step_inputs: Any) -> Any:
        x, step_mask = step_inputs
        masked_step = _masked(cell_step, step_mask)
        new_states, vjp = jax.vjp(masked_step, x, states[0] @ kernel + bias, *states)
        return new_states, (new_states[0], states[0], vjp)

    final_states, (outputs, h, vjps) = lax.scan(step, states, (projected, mask))
    return (outputs, final_states), (kernel, h, vjps)


def _loop_backward(cell_step: Any, residuals: Any, gradients: Any) -> Any:
    kernel, h, vjps = residuals
    output_gradients, final_gradients = gradients

    def step(state_gradients: Any, step_inputs: Any) -> Any:
        vjp, output_gradient = step_inputs
        x_gradient, h_gradient, *old_gradients = vjp(
            (state_gradients[0] + output_gradient, *state_gradients[1:])
        )
        old_gradients[0] += h_gradient @ kernel.T
        return tuple(old_gradients), (x_gradient, h_gradient)

    state_gradients, (x_gradient, h_gradient) = lax.scan(
        step, tuple(final_gradients), (vjps, output_gradients), reverse=True
    )
    kernel_gradient = jnp.einsum("tbu,tbk->uk", h, h_gradient)
    return x_gradient, state_gradients, kernel_gradient, h_gradient.sum((0, 1)), None


_loop.defvjp(_loop_forward, _loop_backward)
_compiled_loop = jax.jit(_loop, static_argnums=0)  # eager calls compile the loop only once
