"""Tests of gradients by time step."""

import keras
import numpy as np
import pytest
from keras import ops

from zoo import backends, rnn_classifier
from zoo.datasets.recall import Recall
from zoo.evaluation import gradients


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_gradient_by_step_matches_finite_differences(cell: str) -> None:
    """Differences of the loss of single sequences, with the softmax in float64."""
    x, y = Recall(1, "train", length=4, count=2, symbols=2)[np.arange(2)]
    model = rnn_classifier((4, 4), 2, cell=cell, units=3)

    def loss(x: np.ndarray) -> np.ndarray:
        logits = ops.convert_to_numpy(model(ops.convert_to_tensor(x, "float32")))
        logits = logits.astype(np.float64)
        return np.log(np.exp(logits).sum(-1)) - logits[np.arange(2), y]

    expected = np.empty(x.shape)
    for step, channel in np.ndindex(4, 4):
        move = np.zeros_like(x)
        move[:, step, channel] = 0.05
        expected[:, step, channel] = (loss(x + move) - loss(x - move)) / 0.1
    function = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    by_input = backends.input_gradients(model, x, y, function)
    # Measured: 7e-5, the error of the differences; the gradients reach 0.02 to 0.14.
    np.testing.assert_allclose(by_input, expected, rtol=0, atol=3e-4)
    norms = np.linalg.norm(by_input, axis=-1).mean(0)
    by_step = gradients.gradient_by_step(model, x, y)
    np.testing.assert_allclose(by_step, norms, rtol=1e-6)
    assert by_step[0] > 0
