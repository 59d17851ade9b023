"""Tests of verses in two languages, split by book, and of batches by length."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from zoo.datasets import parallel_text
from zoo.datasets.parallel_text import TEST, VALIDATION, LengthBuckets, Pair
from zoo.datasets.tokenizer import Tokenizer

pytestmark = pytest.mark.once

GENERATOR = np.random.default_rng(0)
SOURCES = [GENERATOR.integers(1, 50, length) for length in (3, 15, 16, 17, 30, 5, 24, 8)]
TARGETS = [GENERATOR.integers(1, 50, length) for length in (5, 15, 12, 20, 31, 23, 7, 9)]


def all_batches(buckets: LengthBuckets) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sources (B, S) and targets (B, T + 1), with their first and last 0, of every batch."""
    batches = []
    for number in range(len(buckets)):
        inputs, labels, weights = buckets[np.array([number])]
        assert set(inputs) == {"source", "target"}
        assert inputs["source"].dtype == inputs["target"].dtype == labels.dtype == np.int32
        np.testing.assert_array_equal(inputs["target"][:, 1:], labels[:, :-1])
        assert weights.dtype == np.float32
        for row, weight in zip(labels, weights):
            length = np.count_nonzero(row)
            counted = length + 1 if length else 0  # the end counts, a row of padding does not
            np.testing.assert_array_equal(weight, np.arange(len(row)) < counted)
        batches.append((inputs["source"], np.c_[inputs["target"], labels[:, -1:]]))
    return batches


def test_pairs_are_all_verses() -> None:
    verses = list(parallel_text.pairs())
    assert len(verses) == 31_011
    assert verses[2] == Pair(
        "Genesis 1:3",
        "God said, “Let there be light,” and there was light.",
        "Y dijo Dios: Sea la luz: y fué la luz.",
    )
    assert verses[2].book == "Genesis"
    assert sum(pair.book == "I John" for pair in verses) == 104
    assert all(pair.source.strip() and pair.target.strip() for pair in verses)


def test_split_parts_share_no_book() -> None:
    parts = {part: parallel_text.split(part) for part in ("train", "validation", "test")}
    assert {part: len(pairs) for part, pairs in parts.items()} == {
        "train": 30_041, "validation": 506, "test": 464,
    }  # fmt: skip
    books = {part: {pair.book for pair in pairs} for part, pairs in parts.items()}
    assert books["validation"] == set(VALIDATION)
    assert books["test"] == set(TEST)
    assert not books["train"] & (books["validation"] | books["test"])
    with pytest.raises(ValueError, match=r"train, validation, test\. Received: part='dev'"):
        parallel_text.split("dev")


def test_length_buckets_put_each_pair_into_one_batch_of_its_length() -> None:
    buckets = LengthBuckets(SOURCES, TARGETS, tokens=48, max_length=32)
    assert buckets.pairs == 8
    batched = []
    for source, target in all_batches(buckets):
        width = source.shape[1]
        assert width in (16, 24, 32)
        assert source.shape == (48 // width, width)
        assert target.shape == (48 // width, width + 1)
        assert not target[:, 0].any()
        for row, other in zip(source, target):
            ids = tuple(row[row > 0]), tuple(other[other > 0])
            if any(ids):  # else the row is padding
                assert not row[len(ids[0]) :].any()
                assert not other[len(ids[1]) + 1 :].any()
                needed = max(len(ids[0]), len(ids[1]) + 1)
                assert min(w for w in (16, 24, 32) if w >= needed) == width
                batched.append(ids)
    expected = [(tuple(source), tuple(target)) for source, target in zip(SOURCES, TARGETS)]
    assert Counter(batched) == Counter(expected)


def test_length_buckets_depend_on_the_seed() -> None:
    ids = [np.array([number]) for number in range(1, 33)]
    first, again, other = (all_batches(LengthBuckets(ids, ids, 64, seed=s)) for s in (0, 0, 1))
    for (a, _), (b, _) in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for (a, _), (b, _) in zip(first, other))


def test_length_buckets_leave_out_pairs_above_max_length() -> None:
    buckets = LengthBuckets(SOURCES, TARGETS, max_length=16)
    assert buckets.pairs == 4
    assert {source.shape[1] for source, _ in all_batches(buckets)} == {16}


def test_length_buckets_reject_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="max_length=4, and the shortest pair needs 6"):
        LengthBuckets(SOURCES, TARGETS, max_length=4)
    with pytest.raises(ValueError, match=r"one at least\. Received: 8 sources, 7 targets"):
        LengthBuckets(SOURCES, TARGETS[:7])
    with pytest.raises(ValueError, match=r"one at least\. Received: 0 sources"):
        LengthBuckets([], [])
    with pytest.raises(ValueError, match=r"must hold ids above 0.*Received: id 0"):
        LengthBuckets([np.array([3, 0])], [np.array([1])])


def test_encoded_inverts_with_a_tokenizer_of_both_languages() -> None:
    pairs = parallel_text.split("test")[:40]
    texts = [text for pair in pairs for text in (pair.source, pair.target)]
    tokenizer = Tokenizer.train(texts, 400)
    sources, targets = parallel_text.encoded(pairs, tokenizer)
    for pair, source, target in zip(pairs, sources, targets):
        assert tokenizer.decode(source) == pair.source
        assert tokenizer.decode(target) == pair.target
        assert Tokenizer.BOS not in [*source, *target]


def test_make_tokenizer_trains_on_both_languages_or_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "vocabulary.json"
    held_out = Pair("Ruth 1:1", "the zebra", "la cebra")
    verses = [Pair("Genesis 1:1", "the house", "la casa"), held_out]
    monkeypatch.setattr(parallel_text, "pairs", lambda: iter(verses))
    tokenizer = parallel_text.make_tokenizer(path, 30)
    assert len(tokenizer) <= 30
    assert tokenizer.decode(tokenizer.encode("la house")) == "la house"
    with pytest.raises(ValueError, match="Received: 'z' at index 0"):
        tokenizer.encode("zebra")
    path.write_bytes(tokenizer.to_json())
    assert parallel_text.make_tokenizer(path, 40).tokens == tokenizer.tokens
