"""The document's activation functions, each with its derivative and its range.

An activation f turns a neuron's sum z into its output y = f(z). Each of these four has a derivative
that follows from y alone, so backpropagation keeps one array a layer, the output.

Source: the document's section "Activation Functions".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import ops

Tensor = Any


@dataclass(frozen=True)
class Activation:
    """An activation function.

    Attributes:
        function: f, from z to y.
        derivative: f'(z), from y = f(z).
        formula: f in words.
        slope: f' in words.
        range: what f can give.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    formula: str
    slope: str
    range: str


def _relu_slope(y: Tensor) -> Tensor:
    """0 at the kink, as every backend has it."""
    return ops.cast(y > 0, y.dtype)


ACTIVATIONS = {
    "sigmoid": Activation(
        ops.sigmoid, lambda y: y * (1 - y), "1 / (1 + exp(-z))", "y (1 - y)", "(0, 1)"
    ),
    "relu": Activation(ops.relu, _relu_slope, "max(z, 0)", "1 where z > 0, else 0", "[0, ∞)"),
    "tanh": Activation(ops.tanh, lambda y: 1 - y * y, "tanh(z)", "1 - y²", "(-1, 1)"),
    # The derivative of each component by its own z; one by another's is -y_i y_j.
    "softmax": Activation(
        ops.softmax, lambda y: y * (1 - y), "exp(z) / Σ exp(z)", "y (1 - y)", "(0, 1), Σ y = 1"
    ),
}
