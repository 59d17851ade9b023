import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from zoo.datasets.shakespeare import split
from zoo.datasets.token_windows import (
    RandomTokenWindows,
    TokenWindows,
    encode_to_disk,
    split_documents,
)
from zoo.datasets.tokenizer import Tokenizer

SAMPLE = "the cat sat on the mat, the cat sat; and then the hat.\n"


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return Tokenizer.train(split("train"), 600)


def test_works_on_the_disk(vocabulary: Tokenizer, tmp_path: Path) -> None:
    ids = encode_to_disk([SAMPLE, "Enter.\n"], vocabulary, tmp_path)
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.uint16
    assert not list(tmp_path.iterdir())
    first, second = split_documents(ids)
    assert first[0] == second[0] == vocabulary.BOS
    assert vocabulary.decode(first[1:]) == SAMPLE
    assert vocabulary.decode(second) == "Enter.\n"
    with pytest.raises(ValueError, match="must hold a text at least"):
        encode_to_disk([], vocabulary)


def test_windows() -> None:
    ids = np.arange(23, dtype=np.uint16)
    windows = TokenWindows(ids, 5)
    assert len(windows) == 4
    (batch,) = windows(np.array([3, 0]))
    assert batch.dtype == np.int32
    assert batch.tolist() == [[15, 16, 17, 18, 19, 20], [0, 1, 2, 3, 4, 5]]
    assert len(TokenWindows(ids, 22)) == 1
    assert len(TokenWindows(ids, 5, train_examples=2)) == 2


@pytest.mark.parametrize(
    ("length", "examples", "problem"),
    [
        (0, None, "at least 1 and below 23, the tokens of the text. Received: length=0"),
        (23, None, "Received: length=23"),
        (5, 5, "at most 4, the windows of 5 tokens in the text. Received: train_examples=5"),
        (5, 0, "Received: train_examples=0"),
    ],
)
def test_windows_that_cannot_be(length: int, examples: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TokenWindows(np.arange(23), length, examples)


def test_windows_from_places_drawn_at_random() -> None:
    ids = np.arange(1000)
    windows = RandomTokenWindows(ids, 4, count=5000, seed=1)
    (found,) = windows(np.arange(5000))
    assert found.shape == (5000, 5)
    assert (np.diff(found, axis=1) == 1).all()
    assert found.min() == 0
    assert found.max() == 999
    counts, _ = np.histogram(found[:, 0], 10, (0, 996))
    assert counts.min() > 400  # of 500
    again, other = (
        RandomTokenWindows(ids, 4, 5000, seed=1),
        RandomTokenWindows(ids, 4, 5000, seed=2),
    )
    np.testing.assert_array_equal(again(np.arange(9))[0], found[:9])
    assert (other(np.arange(9))[0] != found[:9]).any()
    with pytest.raises(ValueError, match=r"`length` must be at least 1 and below 4.*length=4"):
        RandomTokenWindows(ids[:4], 4, 2)


def test_memory_does_not_grow_with_the_corpus(vocabulary: Tokenizer, tmp_path: Path) -> None:
    work = next(split("validation"))[:20_000]

    def peak(works: int) -> int:
        tracemalloc.start()
        ids = encode_to_disk((work for _ in range(works)), vocabulary, tmp_path)
        windows = TokenWindows(ids, 64)
        for start in range(0, len(windows) - 32, 32):
            windows(np.arange(start, start + 32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(40) < 1.1 * peak(4)
