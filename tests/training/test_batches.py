"""Tests of batches of examples and of their order."""

from typing import Any

import numpy as np
import pytest

from zoo.training import Batches
from zoo.training.batches import shuffled_indices

X = np.arange(80, dtype=np.float32).reshape(40, 2)
Y = np.arange(40)
ORDER = [712, 949, 52, 883]


def test_shuffled_indices_are_new_permutations_and_same_on_all_backends() -> None:
    first, second = (shuffled_indices(0, epoch, 1000) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).any()
    assert (first != shuffled_indices(1, 0, 1000)).any()
    assert first[:4].tolist() == ORDER


@pytest.mark.once
def test_batches_of_each_pass_hold_every_example_once() -> None:
    batches = Batches((X, Y), batch_size=12, seed=3)
    assert batches.num_batches is None  # the stream does not end
    assert batches.steps_per_epoch == 4
    passes = []
    for start in (0, 4):
        parts = [batches[start + step] for step in range(4)]
        assert [len(y) for _, y in parts] == [12, 12, 12, 4]
        for x, y in parts:
            np.testing.assert_array_equal(x, X[y])
        passes.append(np.concatenate([y for _, y in parts]))
    np.testing.assert_array_equal(passes[0], shuffled_indices(3, 0, 40))
    np.testing.assert_array_equal(passes[1], shuffled_indices(3, 1, 40))


@pytest.mark.once
def test_batches_without_seed_are_one_pass_in_order() -> None:
    batches = Batches((X, Y), batch_size=12)
    assert batches.num_batches == 4
    parts = [batches[step][1] for step in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), Y)


@pytest.mark.once
def test_batches_from_step_are_the_same_stream() -> None:
    batches = Batches((X, Y), batch_size=12, seed=3)
    later = batches.from_step(2).from_step(3)
    for step in range(6):
        np.testing.assert_array_equal(later[step][1], batches[5 + step][1])


@pytest.mark.once
def test_batches_steps_per_epoch_do_not_change_the_stream() -> None:
    batches = Batches((X, Y), batch_size=12, seed=3, steps_per_epoch=3)
    assert batches.steps_per_epoch == 3
    np.testing.assert_array_equal(batches[3][1], Batches((X, Y), 12, seed=3)[3][1])


@pytest.mark.once
@pytest.mark.parametrize("nested", [X, {"a": X, "b": Y}, ({"a": X}, Y, X[:, 0])])
def test_batches_keep_the_nesting_of_arrays(nested: Any) -> None:
    batch = Batches(nested, batch_size=12)[3]
    if isinstance(nested, np.ndarray):
        np.testing.assert_array_equal(batch, X[36:])
    elif isinstance(nested, dict):
        np.testing.assert_array_equal(batch["a"], X[36:])
        np.testing.assert_array_equal(batch["b"], Y[36:])
    else:
        np.testing.assert_array_equal(batch[0]["a"], X[36:])
        np.testing.assert_array_equal(batch[2], X[36:, 0])


class Squares:
    """Examples that are computed when they are read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return indices**2, indices


@pytest.mark.once
def test_batches_read_indexable_examples() -> None:
    x, y = Batches(Squares(), batch_size=12, seed=3)[3]
    np.testing.assert_array_equal(y, shuffled_indices(3, 0, 40)[36:])
    np.testing.assert_array_equal(x, y**2)


@pytest.mark.once
@pytest.mark.parametrize(
    ("examples", "arguments", "text"),
    [
        ((X, Y), {"batch_size": 0}, "at least 1. Received: batch_size=0"),
        ((X, Y), {"steps_per_epoch": 0}, "at least 1. Received: steps_per_epoch=0"),
        ((X, Y), {"seed": -1}, "seed=-1"),
        ((X, Y[1:]), {}, r"`examples` must be of one length\. Received: lengths \[40, 39\]"),
        ((X[:0], Y[:0]), {}, r"at least one example\. Received: none"),
        ((), {}, r"at least one example\. Received: none"),
        ("abc", {}, "`examples` must be arrays, or an `Indexable`.*Received: examples='abc'"),
        (b"x", {}, "Received: examples=b'x'"),
    ],
)
def test_batches_reject_invalid_arguments(
    examples: Any, arguments: dict[str, int], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Batches(examples, **arguments)
