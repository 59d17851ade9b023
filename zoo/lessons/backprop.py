"""Backpropagation by hand, for a multilayer perceptron: the document's four steps.

A layer has weights W (inputs, units), biases b (units,) and an activation f; the last has no f and
gives the logits. For a batch x (B, inputs):

    y_0 = x     z_k = y_(k-1) W_k + b_k     y_k = f_k(z_k)     logits = z_n

Training repeats four steps, batch by batch:

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

Tensor = Any


Gradient = tuple[Tensor, Tensor]  # of the loss, by a layer's W and by its b


class Layer(NamedTuple):
    """Neurons with the same inputs: W (inputs, units), b (units,), f's name or None."""

    w: Tensor
    b: Tensor
    activation: str | None


def layers_of(model: keras.Model) -> list[Layer]:
    """The layers of a `zoo.mlp`, with a copy of its weights.

    Raises:
        ValueError: if the model is not dense layers with sigmoid, relu or tanh between them and
            logits in the end.
    """
    layers = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer | keras.layers.Flatten):
            continue
        activation = getattr(getattr(layer, "activation", None), "__name__", None)
        # softmax' derivative is not taken neuron by neuron
        allowed = ("linear",) if layer is model.layers[-1] else ("sigmoid", "relu", "tanh")
        if not isinstance(layer, keras.layers.Dense) or activation not in allowed:
            raise ValueError(
                "By hand goes an MLP of dense layers, each with sigmoid, relu or tanh, and logits "
                f"out. Received: the layer {layer.name}, {type(layer).__name__}, "
                f"activation={activation}"
            )
        w, b = (ops.convert_to_tensor(np.array(weight)) for weight in layer.get_weights())
        layers.append(Layer(w, b, None if activation == "linear" else activation))
    return layers


def forward(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """Step 1: x, then the output of each layer; the last is the logits (B, classes)."""
    outputs = [x]
    for w, b, activation in layers:
        z = ops.matmul(outputs[-1], w) + b
        outputs.append(ACTIVATIONS[activation].function(z) if activation else z)
    return outputs


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Step 2: -log softmax(logits) at the label, the mean over the batch; labels are (B,)."""
    at_label = ops.take_along_axis(logits, ops.expand_dims(labels, 1), axis=1)
    return ops.mean(ops.logsumexp(logits, axis=1, keepdims=True) - at_label)


def backward(layers: Sequence[Layer], outputs: Sequence[Tensor], labels: Tensor) -> list[Gradient]:
    """Step 3: the loss' derivatives by every W and b, by the chain rule from the last layer back.

    Here dz is the loss' derivative by z, in the shape of z, and so on.
    """
    batch, classes = outputs[-1].shape
    target = ops.one_hot(labels, classes, dtype=outputs[-1].dtype)
    dz = (ops.softmax(outputs[-1]) - target) / batch  # cross-entropy and softmax in one
    gradients = []
    for k in reversed(range(len(layers))):
        x = outputs[k]  # what the layer was given, the output of the layer before
        gradients.append((ops.matmul(ops.transpose(x), dz), ops.sum(dz, axis=0)))
        if k:
            dx = ops.matmul(dz, ops.transpose(layers[k].w))
            dz = dx * ACTIVATIONS[layers[k - 1].activation or ""].derivative(x)
    return gradients[::-1]


def update(
    layers: Sequence[Layer], gradients: Sequence[Gradient], learning_rate: float
) -> list[Layer]:
    """Step 4: a step of gradient descent."""
    return [
        Layer(w - learning_rate * dw, b - learning_rate * db, activation)
        for (w, b, activation), (dw, db) in zip(layers, gradients)
    ]
