"""Gradients compared and measured: by hand against autodiff, and by time step."""

from functools import partial
from itertools import chain
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import backends
from zoo.evaluation.distance import distance
from zoo.lessons.backprop import backward, forward, layers_of
from zoo.validation import validated


@validated
def distances(model: keras.Model, x: Any, labels: Any) -> dict[str, float]:
    """Distance of gradients by hand from the backend's own, by the path of each weight.

    The distance is the largest difference, relative to the largest gradient of the weight.

    Args:
        model: An `mlp`.
        x: Batch of inputs, (B, features).
        labels: Labels of the batch, (B,).
    """
    layers = layers_of(model)
    loss = partial(ops.sparse_categorical_crossentropy, from_logits=True)
    own = backends.gradients(model, x, labels, loss)
    outputs = forward(layers, ops.cast(x, layers[0].w.dtype))
    by_hand = chain.from_iterable(backward(layers, outputs, ops.convert_to_tensor(labels)))
    return {
        path: distance(ops.convert_to_numpy(array), own[path]) for path, array in zip(own, by_hand)
    }


@validated
def gradient_by_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[float]:
    """Norm of the loss' gradient with respect to the input of each time step.

    Args:
        model: Model from sequences (B, T, features) to logits.
        x: Batch of sequences, (B, T, features).
        y: Labels of the batch, (B,).

    Returns:
        T norms, each averaged over the sequences, so that gradients of several signs do not cancel.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    norms = np.linalg.norm(backends.input_gradients(model, x, y, loss), axis=-1)  # (B, T)
    return [float(norm) for norm in norms.mean(axis=0)]
