"""Activation functions of the document, with their derivatives and ranges.

An activation function f maps the weighted sum z of a neuron to its output y = f(z). The derivatives
of these four functions are computed from y alone, so backpropagation stores one array per layer.

Source: the document's section "Activation Functions".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import ops

Tensor = Any


@dataclass(frozen=True)
class Activation:
    """Activation function with its derivative.

    Attributes:
        function: Function f from z to y.
        derivative: Function from y = f(z) to f'(z).
        formula: Text of the formula of f.
        derivative_formula: Text of the formula of f'.
        range: Text of the range of f.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    formula: str
    derivative_formula: str
    range: str


def _relu_derivative(y: Tensor) -> Tensor:
    """Derivative of ReLU, with the value 0 at z = 0 as on every backend."""
    return ops.cast(y > 0, y.dtype)


ACTIVATIONS = {
    "sigmoid": Activation(
        ops.sigmoid, lambda y: y * (1 - y), "1 / (1 + exp(-z))", "y (1 - y)", "(0, 1)"
    ),
    "relu": Activation(ops.relu, _relu_derivative, "max(z, 0)", "1 where z > 0, else 0", "[0, ∞)"),
    "tanh": Activation(ops.tanh, lambda y: 1 - y * y, "tanh(z)", "1 - y²", "(-1, 1)"),
    # Diagonal of the Jacobian: dy_i/dz_i. The other entries, dy_i/dz_j, are -y_i y_j.
    "softmax": Activation(
        ops.softmax, lambda y: y * (1 - y), "exp(z) / Σ exp(z)", "y (1 - y)", "(0, 1), Σ y = 1"
    ),
}
