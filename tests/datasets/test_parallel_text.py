"""Verses in two languages, split by book, and batches of like length."""

from collections import Counter

import numpy as np
import pytest

from zoo.datasets import parallel_text
from zoo.datasets.parallel_text import TEST, VALIDATION, LengthBuckets, Pair
from zoo.datasets.tokenizer import Tokenizer

GENERATOR = np.random.default_rng(0)
SOURCES = [GENERATOR.integers(1, 50, length) for length in (3, 15, 16, 17, 30, 5, 24, 8)]
TARGETS = [GENERATOR.integers(1, 50, length) for length in (5, 15, 12, 20, 31, 23, 7, 9)]


def batches_of(buckets: LengthBuckets) -> list[tuple[np.ndarray, np.ndarray]]:
    return [buckets(np.array([number])) for number in range(len(buckets))]


def test_all_verses_are_there() -> None:
    found = list(parallel_text.pairs())
    assert len(found) == 31_011
    assert found[2] == Pair(
        "Genesis 1:3",
        "God said, “Let there be light,” and there was light.",
        "Y dijo Dios: Sea la luz: y fué la luz.",
    )
    assert found[2].book == "Genesis"
    assert sum(pair.book == "I John" for pair in found) == 104
    assert all(pair.source.strip() and pair.target.strip() for pair in found)


def test_the_parts_share_no_book() -> None:
    parts = {part: parallel_text.split(part) for part in ("train", "validation", "test")}
    assert {part: len(found) for part, found in parts.items()} == {
        "train": 30_041, "validation": 506, "test": 464,
    }  # fmt: skip
    books = {part: {pair.book for pair in found} for part, found in parts.items()}
    assert books["validation"] == set(VALIDATION)
    assert books["test"] == set(TEST)
    assert not books["train"] & (books["validation"] | books["test"])
    with pytest.raises(ValueError, match=r"train, validation or test\. Received: part=dev"):
        parallel_text.split("dev")


def test_each_pair_is_in_one_batch_and_those_of_a_batch_are_of_like_length() -> None:
    buckets = LengthBuckets(SOURCES, TARGETS, tokens=48, longest=32)
    assert buckets.pairs == 8
    found = []
    for source, target in batches_of(buckets):
        width = source.shape[1]
        assert width in (16, 24, 32)
        assert source.shape == (48 // width, width)
        assert target.shape == (48 // width, width + 1)
        assert not target[:, 0].any()
        for row, other in zip(source, target):
            ids = tuple(row[row > 0]), tuple(other[other > 0])
            if any(ids):  # else it fills up
                assert not row[len(ids[0]) :].any()
                assert not other[len(ids[1]) + 1 :].any()
                needed = max(len(ids[0]), len(ids[1]) + 1)
                assert min(w for w in (16, 24, 32) if w >= needed) == width
                found.append(ids)
    expected = [(tuple(source), tuple(target)) for source, target in zip(SOURCES, TARGETS)]
    assert Counter(found) == Counter(expected)


def test_the_seed_chooses_who_shares_a_batch() -> None:
    ids = [np.array([number]) for number in range(1, 33)]
    first, again, other = (batches_of(LengthBuckets(ids, ids, 64, seed=s)) for s in (0, 0, 1))
    for (a, _), (b, _) in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for (a, _), (b, _) in zip(first, other))


def test_what_is_too_long_is_left_out() -> None:
    buckets = LengthBuckets(SOURCES, TARGETS, longest=16)
    assert buckets.pairs == 4
    assert {source.shape[1] for source, _ in batches_of(buckets)} == {16}
    with pytest.raises(ValueError, match="longest=4, and the shortest pair needs 6"):
        LengthBuckets(SOURCES, TARGETS, longest=4)
    with pytest.raises(ValueError, match=r"one at least\. Received: 8 sources, 7 targets"):
        LengthBuckets(SOURCES, TARGETS[:7])
    with pytest.raises(ValueError, match=r"one at least\. Received: 0 sources"):
        LengthBuckets([], [])
    with pytest.raises(ValueError, match=r"must hold ids above 0.*Received: id 0"):
        LengthBuckets([np.array([3, 0])], [np.array([1])])


def test_a_vocabulary_of_both_languages_encodes_both() -> None:
    chosen = parallel_text.split("test")[:40]
    texts = [text for pair in chosen for text in (pair.source, pair.target)]
    vocabulary = Tokenizer.train(texts, 400)
    sources, targets = parallel_text.encoded(chosen, vocabulary)
    for pair, source, target in zip(chosen, sources, targets):
        assert vocabulary.decode(source) == pair.source
        assert vocabulary.decode(target) == pair.target
        assert Tokenizer.BOS not in [*source, *target]
