"""Tests of the recall task."""

import numpy as np
import pytest

from zoo import random
from zoo.datasets.recall import Recall

pytestmark = pytest.mark.once


def sequences(**arguments: object) -> tuple[np.ndarray, np.ndarray]:
    recall = Recall(**{"seed": 1, "part": "train", "length": 7, "count": 20} | arguments)
    return recall[np.arange(len(recall))]


def test_recall_label_is_the_first_symbol_and_no_other_step_shows_one() -> None:
    x, y = sequences(symbols=5)
    assert x.shape == (20, 7, 10)
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    np.testing.assert_array_equal(x.sum(-1), 1)
    np.testing.assert_array_equal(x[:, 0].argmax(-1), y)
    assert set(y) == set(range(5))
    assert not x[:, 1:, :5].any()
    assert not x[:, 0, 5:].any()
    assert x[:, 1:, 5:].any((0, 1)).all()


def test_recall_depends_on_seed_part_length_and_index_alone() -> None:
    recall = Recall(seed=1, part="train", length=7, count=20)
    assert len(recall) == 20
    x, y = recall[np.array([3, 0, 5])]
    for i, index in enumerate((3, 0, 5)):
        np.testing.assert_array_equal(x[i], sequences()[0][index])
        assert y[i] == sequences()[1][index]
    for other in ({"seed": 2}, {"part": "test"}):
        assert (sequences(**other)[0] != sequences()[0]).any()
    bits = random.bits(random.fold_in(random.key(1, "recall", "train", 7, 8), 3), 7) % 8
    np.testing.assert_array_equal(x[0].argmax(-1) - np.r_[0, [8] * 6], bits)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"length": 0}, "`length` must be a whole number of at least 1. Received: length=0"),
        ({"count": 0}, "Received: count=0"),
        ({"symbols": 1}, "`symbols` must be a whole number of at least 2. Received: symbols=1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_recall_rejects_invalid_arguments(arguments: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        sequences(**arguments)
