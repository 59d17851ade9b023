"""Recurrent layers for PyTorch as a loop that a file can hold.

The tracing of PyTorch's fused kernels unrolls them, for the length of the example.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._higher_order_ops.scan import scan_op

Tensor = Any


def recurrent_scan(
    cell_step: Callable[..., tuple[Tensor, ...]],
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Computes a recurrent layer by one operation over time, of any length.

    Args:
        cell_step: Function of one time step, as for `Backend.recurrent`.
        inputs: Input sequences, (B, T, features).
        states: Initial states, each (B, units).
        weights: Kernel, recurrent kernel and bias.
        mask: Boolean mask, (B, T), or None.

    Returns:
        The hidden states of all steps, (B, T, units), and the final states.
    """
    kernel, recurrent_kernel, bias = weights
    input_bias, recurrent_bias = bias if bias.ndim == 2 else (bias, torch.zeros_like(bias))
    projected = (inputs @ kernel + input_bias).transpose(0, 1)  # (T, B, k)
    masks = [] if mask is None else [mask.T[..., None]]  # (T, B, 1)
    count = len(states)

    def step(*arguments: Tensor) -> list[Tensor]:
        old_states, (x, *step_masks) = arguments[:count], arguments[count:-2]
        u, b = arguments[-2:]
        new_states = cell_step(x, old_states[0] @ u + b, *old_states)
        for m in step_masks:
            new_states = tuple(torch.where(m, n, o) for n, o in zip(new_states, old_states))
        return [*new_states, new_states[0].clone()]  # an output must not be a state itself

    # The results of operations are traced; the variables of Keras themselves are not.
    initial = [state.clone() for state in states]
    constants = recurrent_kernel.clone(), recurrent_bias.clone()
    *final, outputs = scan_op(step, initial, [projected, *masks], constants)
    return outputs.transpose(0, 1), final
