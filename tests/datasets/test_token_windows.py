"""Tests of token ids on the disk and of windows as training examples."""

import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from zoo.datasets.shakespeare import split
from zoo.datasets.token_windows import TokenWindows, encode_to_disk, split_documents
from zoo.datasets.tokenizer import Tokenizer
from zoo.training import Batches

pytestmark = pytest.mark.once

SAMPLE = "the cat sat on the mat, the cat sat; and then the hat.\n"


@pytest.fixture(scope="module")
def document() -> str:
    return next(split("validation"))[:20_000]


@pytest.fixture(scope="module")
def tokenizer(document: str) -> Tokenizer:
    return Tokenizer.train([document, SAMPLE], 600)


def test_encode_to_disk_writes_documents_to_a_nameless_file(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ids = encode_to_disk([SAMPLE, "Enter.\n"], tokenizer, tmp_path)
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.uint16
    assert not list(tmp_path.iterdir())
    first, second = split_documents(ids)
    assert first[0] == second[0] == tokenizer.BOS
    assert tokenizer.decode(first[1:]) == SAMPLE
    assert tokenizer.decode(second) == "Enter.\n"
    with pytest.raises(ValueError, match="must hold a text at least"):
        encode_to_disk([], tokenizer)


def test_encode_to_disk_names_the_folder_that_is_full(
    tokenizer: Tokenizer, document: str, tmp_path: Path
) -> None:
    """The system refuses to write past a limit, in the middle of the file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    text = rf"temporary file in {tmp_path}: File too large\. No other file has changed\. Make room"
    try:
        with pytest.raises(OSError, match=text):
            encode_to_disk([document] * 3, tokenizer, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_token_windows_lie_side_by_side() -> None:
    ids = np.arange(23, dtype=np.uint16)
    windows = TokenWindows(ids, 5)
    assert len(windows) == 4
    tokens, labels = windows[np.array([3, 0])]
    assert tokens.dtype == labels.dtype == np.int32
    assert tokens.tolist() == [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]
    assert labels.tolist() == [[16, 17, 18, 19, 20], [1, 2, 3, 4, 5]]
    assert len(TokenWindows(ids, 22)) == 1
    assert len(TokenWindows(ids, 5, count=2)) == 2


@pytest.mark.parametrize(("stride", "number"), [(1, 18), (2, 9), (7, 3), (18, 1)])
def test_token_windows_stride(stride: int, number: int) -> None:
    """The last window ends within the text, and another stride would not fit."""
    windows = TokenWindows(np.arange(23), 5, stride=stride)
    assert len(windows) == number
    tokens, labels = windows[np.arange(number)]
    np.testing.assert_array_equal(tokens[:, 0], stride * np.arange(number))
    assert (np.diff(tokens, axis=1) == 1).all()
    assert 22 - stride < labels.max() <= 22


@pytest.mark.parametrize(
    ("length", "options", "problem"),
    [
        (0, {}, "`length` must be a whole number of at least 1. Received: length=0"),
        (23, {}, "Received: length=23"),
        (5, {"count": 5}, "at most 4, the windows of 5 tokens in the text. Received: count=5"),
        (5, {"count": 0}, "Received: count=0"),
        (5, {"count": 19, "stride": 1}, "at most 18, .* Received: count=19"),
        (5, {"stride": 0}, "`stride` must be a whole number of at least 1. Received: stride=0"),
    ],
)
def test_token_windows_rejects_invalid_arguments(length: int, options: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TokenWindows(np.arange(23), length, **options)


def test_batches_of_windows_come_from_random_places() -> None:
    """A pass over windows of stride 1 reads each place once, in an order of the seed."""
    windows = TokenWindows(np.arange(5004), 4, stride=1)

    def first_tokens(batches: Batches, count: int) -> np.ndarray:
        tokens, labels = zip(*(batches[number] for number in range(count)))
        np.testing.assert_array_equal(np.concatenate(labels), np.concatenate(tokens) + 1)
        return np.concatenate(tokens)[:, 0]

    batches = Batches(windows, batch_size=50, seed=1)
    tenth = first_tokens(batches, 10)
    counts, _ = np.histogram(tenth, 5, (0, 5000))
    assert counts.min() > 70  # of 100
    np.testing.assert_array_equal(first_tokens(Batches(windows, 50, seed=1), 10), tenth)
    assert (first_tokens(Batches(windows, 50, seed=2), 10) != tenth).any()
    np.testing.assert_array_equal(np.sort(first_tokens(batches, 100)), np.arange(5000))


def test_memory_does_not_grow_with_the_corpus(
    document: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def peak(documents: int, stride: int) -> int:
        tracemalloc.start()
        ids = encode_to_disk((document for _ in range(documents)), tokenizer, tmp_path)
        windows = TokenWindows(ids, 64, stride)
        for start in range(0, len(windows) - 32, 32):
            windows[np.arange(start, start + 32)]
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return traced

    peak(2, 64)
    for stride in (64, 8):
        assert peak(40, stride) < 1.1 * peak(4, stride)
