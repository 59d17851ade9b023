"""Multilayer perceptron: layers of neurons, each a weighted sum and an activation function.

    input      (B, 28, 28, 1)
    flatten    (B, 784)
    hidden1    (B, 512)          (784 + 1)·512 = 401,920
    output     (B, classes)      (512 + 1)·classes

A neuron computes `f(w·x + b)`. Without the activation function f the network would be linear:

    sigmoid    1 / (1 + exp(-z))      in (0, 1)
    tanh       tanh(z)                in (-1, 1)
    relu       max(z, 0)              in [0, inf)
    softmax    exp(z) / sum(exp(z))   in (0, 1), with sum 1

Source: the document's sections "Neural Networks", "Activation Functions" and "Backpropagation".
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import keras

from zoo import initializers, random
from zoo.registry import ImageInput, register
from zoo.validation import (
    ACTIVATION,
    MAX_LAYERS,
    Activation,
    DType,
    Name,
    Rate,
    Seed,
    Size,
    Sizes,
    Source,
    each,
    validated,
    whole,
)


@validated
def parameter_count(
    input_shape: Sizes,
    num_classes: Size,
    hidden_units: Annotated[Sequence[int], each(whole(), most=MAX_LAYERS)],
    **_: object,
) -> int:
    """Returns the parameter count of an `mlp` with these arguments."""
    widths = [math.prod(input_shape), *hidden_units, num_classes]
    return sum((inputs + 1) * units for inputs, units in itertools.pairwise(widths))


@register(
    section="Neural Networks",
    recipe="recipes/mnist.py",
    parameter_formula="Σ (inputs + 1)·units",
    parameter_count=parameter_count,
    images=ImageInput(28),
)
def mlp(
    input_shape: Sizes = (28, 28, 1),
    num_classes: Size = 10,
    hidden_units: Annotated[Sequence[int], each(whole(), most=MAX_LAYERS)] = (512,),
    activation: Activation | Annotated[Sequence[str], each(ACTIVATION, most=MAX_LAYERS)] = "relu",
    output_activation: Literal["sigmoid", "softmax"] | None = None,
    dropout: Rate = 0.0,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "mlp",
    weights: Source | None = None,
) -> keras.Model:
    """Multilayer perceptron: an input layer, hidden layers and an output layer.

    Args:
        input_shape: Shape of one example, which the model flattens.
        num_classes: Number of classes, the width of the output.
        hidden_units: Width of each hidden layer. An empty sequence gives logistic regression.
        activation: Activation of the hidden layers, one for all or one for each: "sigmoid", "relu",
            "tanh", "softmax", or another Keras activation.
        output_activation: Activation of the output layer; by default none, so that the outputs are
            logits.
        dropout: Dropout rate after each hidden layer, in [0, 1).
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
            Initial weights are uniform in ±1/sqrt(fan_in), as in PyTorch.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from (B, *input_shape) to (B, num_classes). Pixels are normalized:
        (pixel/255 - mean) / std, with the mean and standard deviation of the training pixels in
        [0, 1] (MNIST: 0.1307 and 0.3081, so values from -0.42 to 2.82), as
        `zoo.datasets.augmentation.ImageAugmentation` computes them.

    Raises:
        ValueError: If a size is not at least 1, an activation is unknown (the text lists the known
            ones), the number of activations is not the number of hidden layers, or `dropout` lies
            outside [0, 1).
    """
    if isinstance(activation, str):
        activation = [activation] * len(hidden_units)
    if len(activation) != len(hidden_units):
        raise ValueError(
            "`activation` must be one for all hidden layers or one for each. "
            f"Received: activation={tuple(activation)}, hidden_units={hidden_units}"
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
