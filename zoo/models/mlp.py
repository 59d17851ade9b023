"""Neural networks from the first page: layers of neurons, each a weighted sum and an activation.

    input      (B, 28, 28, 1)
    flatten    (B, 784)
    hidden1    (B, 512)          (784 + 1)·512 = 401,920
    output     (B, classes)      (512 + 1)·classes

A neuron gives `f(w·x + b)`. The activation f is what makes the network more than one linear map:

    sigmoid    1 / (1 + exp(-z))      in (0, 1)
    tanh       tanh(z)                in (-1, 1)
    relu       max(z, 0)              in [0, inf)
    softmax    exp(z) / sum(exp(z))   in (0, 1), together 1

Source: the document's sections "Neural Networks", "Activation Functions" and "Backpropagation".
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import keras

from zoo import initializers, random
from zoo.registry import ImageInput, register
from zoo.validation import check_activation, check_dropout, check_sizes


def _count(
    input_shape: Sequence[int],
    num_classes: int,
    hidden_units: Sequence[int],
    **_: object,
) -> int:
    widths = [math.prod(input_shape), *hidden_units, num_classes]
    return sum((inputs + 1) * units for inputs, units in itertools.pairwise(widths))


@register(
    section="Neural Networks",
    recipe="recipes/mnist.py",
    parameters="Σ (inputs + 1)·units",
    count=_count,
    images=ImageInput(28),
)
def mlp(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    hidden_units: Sequence[int] = (512,),
    activation: str | Sequence[str] = "relu",
    output_activation: Literal["sigmoid", "softmax"] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "mlp",
) -> keras.Model:
    """A multilayer perceptron: an input layer, hidden layers, an output layer.

    Args:
        input_shape: of one example; it is flattened.
        num_classes: width of the output.
        hidden_units: width of each hidden layer. None at all gives logistic regression.
        activation: of the hidden layers, one for all or one for each: "sigmoid", "relu", "tanh",
            "softmax", or another that Keras knows.
        output_activation: by default none: the outputs are logits.
        dropout: fraction dropped after each hidden layer, in [0, 1).
        seed: of the initial weights and the dropout masks; the same on every backend. Weights
            begin as PyTorch's layers do, uniform in ±1/sqrt(fan_in).
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from (B, *input_shape) to (B, num_classes).

    Raises:
        ValueError: for a size that is not at least 1, an unknown activation (the text lists those
            there are), as many activations as there are not layers, or `dropout` outside [0, 1).
    """
    input_shape, hidden_units = tuple(input_shape), tuple(hidden_units)
    check_sizes(num_classes=num_classes)
    for size in input_shape:
        check_sizes(input_shape=size)
    for units in hidden_units:
        check_sizes(hidden_units=units)
    check_dropout(dropout)
    if isinstance(activation, str):
        activation = [activation] * len(hidden_units)
    if len(activation) != len(hidden_units):
        raise ValueError(
            "`activation` must be one for all hidden layers or one for each. "
            f"Received: activation={tuple(activation)}, hidden_units={hidden_units}"
        )
    activation = [check_activation(function) for function in activation]
    if output_activation not in (None, "sigmoid", "softmax"):
        raise ValueError(
            "`output_activation` must be None (logits), sigmoid or softmax. "
            f"Received: output_activation={output_activation}"
        )

    def dense(layer: str, inputs: int, units: int, function: str | None) -> keras.layers.Dense:
        return keras.layers.Dense(
            units,
            activation=function,
            kernel_initializer=initializers.FanInUniform(seed, f"{layer}/kernel"),
            bias_initializer=initializers.FanInUniform(seed, f"{layer}/bias", inputs),
            dtype=dtype,
            name=layer,
        )

    inputs = keras.Input(input_shape, name="input")
    x = keras.layers.Flatten("channels_last", dtype=dtype, name="flatten")(inputs)
    width = math.prod(input_shape)
    for i, (units, function) in enumerate(zip(hidden_units, activation), 1):
        x = dense(f"hidden{i}", width, units, function)(x)
        if dropout:
            x = random.Dropout(dropout, seed, dtype=dtype, name=f"dropout{i}")(x)
        width = units
    outputs = dense("output", width, num_classes, output_activation)(x)
    return keras.Model(inputs, outputs, name=name)
