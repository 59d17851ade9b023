"""Weights of a trained model as the beginning of another training."""

from collections.abc import Callable

import keras
import numpy as np
import pytest

import zoo
from zoo.training.transfer import transfer_weights


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {w.path: np.array(keras.ops.convert_to_numpy(w.value)) for w in model.weights}


def test_transfer_weights_copies_all_weights_but_those_of_a_head_of_another_width() -> None:
    trained = zoo.mlp((4,), 3, (5, 5), seed=1)
    same = zoo.mlp((4,), 3, (5, 5), seed=2)
    assert transfer_weights(same, trained) is None
    for path, value in values(same).items():
        np.testing.assert_array_equal(value, values(trained)[path])
    other = zoo.mlp((4,), 7, (5, 5), seed=2)
    initial = values(other)
    assert transfer_weights(other, trained) == "output"
    for path, value in values(other).items():
        expected = initial if path.startswith("output/") else values(trained)
        np.testing.assert_array_equal(value, expected[path])


@pytest.mark.once
@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: zoo.mlp((4,), 3, (6,)),
            r"Received: hidden1/kernel of shape \(4, 6\) instead of \(4, 5\)",
        ),
        (lambda: zoo.mlp((4,), 3, (5, 5)), r"hidden2/kernel of shape \(5, 5\) instead of none"),
        (lambda: zoo.mlp((4,), 3, ()), r"hidden1/kernel of shape none instead of \(4, 5\)"),
        (lambda: zoo.gpt(5, 4, 1, 1, 4), "`weights` must be those of a mlp with the same layers"),
    ],
)
def test_transfer_weights_rejects_other_layers(build: Callable[[], keras.Model], text: str) -> None:
    target = zoo.mlp((4,), 3, (5,))
    original = values(target)
    with pytest.raises(ValueError, match=text):
        transfer_weights(target, build())
    for path, value in values(target).items():
        np.testing.assert_array_equal(value, original[path])
