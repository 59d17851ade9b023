"""Backpropagation of a multilayer perceptron, written out as the four steps of the document.

A layer has weights W (inputs, units), biases b (units,) and an activation function f. The last
layer has no f and computes the logits. For a batch x (B, inputs):

    y_0 = x     z_k = y_(k-1) W_k + b_k     y_k = f_k(z_k)     logits = z_n

Training repeats four steps for each batch:

    outputs = forward(layers, x)                       # 1. forward pass
    loss = cross_entropy(outputs[-1], labels)          # 2. loss calculation
    gradients = backward(layers, outputs, labels)      # 3. backward pass
    layers = update(layers, gradients, learning_rate)  # 4. weight update

Source: the document's section "Backpropagation"; Rumelhart, Hinton and Williams, "Learning
representations by back-propagating errors", Nature 1986.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from zoo.lessons.activations import ACTIVATIONS
from zoo.validation import validated

Tensor = Any
Gradient = tuple[Tensor, Tensor]  # derivatives of the loss with respect to W and b of a layer


class Layer(NamedTuple):
    """Dense layer of a multilayer perceptron.

    Attributes:
        w: Weights, (inputs, units).
        b: Biases, (units,).
        activation: Name of the activation function, or None.
    """

    w: Tensor
    b: Tensor
    activation: str | None


@validated
def layers_of(model: keras.Model) -> list[Layer]:
    """Extracts the dense layers of a `zoo.mlp` with a copy of their weights.

    Args:
        model: Model of dense layers with sigmoid, relu or tanh, and logits as the output.

    Raises:
        ValueError: If a layer is not dense or its activation is not supported.
    """
    layers = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer | keras.layers.Flatten):
            continue
        activation = getattr(getattr(layer, "activation", None), "__name__", None)
        # The derivative of softmax is a matrix, not one number per neuron.
        allowed = ("linear",) if layer is model.layers[-1] else ("sigmoid", "relu", "tanh")
        if not isinstance(layer, keras.layers.Dense) or activation not in allowed:
            raise ValueError(
                "`model` must be an MLP of dense layers with sigmoid, relu or tanh, and logits as "
                f"the output. Received: the layer {layer.name}, {type(layer).__name__}, "
                f"activation={activation}"
            )
        w, b = (ops.convert_to_tensor(np.array(weight)) for weight in layer.get_weights())
        layers.append(Layer(w, b, None if activation == "linear" else activation))
    return layers


def forward(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """Step 1, forward pass: computes the output of each layer.

    Args:
        layers: Layers of the perceptron.
        x: Inputs, (B, inputs).

    Returns:
        x and the output of each layer; the last are the logits (B, classes).
    """
    outputs = [x]
    for w, b, activation in layers:
        z = ops.matmul(outputs[-1], w) + b
        outputs.append(ACTIVATIONS[activation].function(z) if activation else z)
    return outputs


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Step 2, loss calculation: mean of -log softmax(logits) at the labels.

    Args:
        logits: Logits, (B, classes).
        labels: Class of each example, (B,) integers.
    """
    label_logits = ops.take_along_axis(logits, ops.expand_dims(labels, 1), axis=1)
    return ops.mean(ops.logsumexp(logits, axis=1, keepdims=True) - label_logits)


def backward(layers: Sequence[Layer], outputs: Sequence[Tensor], labels: Tensor) -> list[Gradient]:
    """Step 3, backward pass: gradients of the loss by the chain rule, from the last layer back.

    `dz` denotes the derivative of the loss with respect to z, with the shape of z.

    Args:
        layers: Layers of the perceptron.
        outputs: Outputs of `forward`.
        labels: Class of each example, (B,) integers.

    Returns:
        Gradients with respect to W and b of each layer.
    """
    batch, classes = outputs[-1].shape
    target = ops.one_hot(labels, classes, dtype=outputs[-1].dtype)
    dz = (ops.softmax(outputs[-1]) - target) / batch  # cross-entropy and softmax combined
    gradients = []
    for k in reversed(range(len(layers))):
        x = outputs[k]  # input of layer k, which is the output of layer k - 1
        gradients.append((ops.matmul(ops.transpose(x), dz), ops.sum(dz, axis=0)))
        if k:
            dx = ops.matmul(dz, ops.transpose(layers[k].w))
            dz = dx * ACTIVATIONS[layers[k - 1].activation or ""].derivative(x)
    return gradients[::-1]


def update(
    layers: Sequence[Layer], gradients: Sequence[Gradient], learning_rate: float
) -> list[Layer]:
    """Step 4, weight update: applies one step of gradient descent.

    Args:
        layers: Layers of the perceptron.
        gradients: Gradients of `backward`.
        learning_rate: Step size.

    Returns:
        Layers with the updated weights.
    """
    return [
        Layer(w - learning_rate * dw, b - learning_rate * db, activation)
        for (w, b, activation), (dw, db) in zip(layers, gradients)
    ]
