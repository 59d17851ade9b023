"""Sentences with their translations: English and Spanish verses, and batches of like length.

    for pair in split("train"): ...                        # Pair(verse, source, target)
    batches = LengthBuckets(sources, targets, tokens=2048)
    source, target = batches(np.array([0]))                # (B, S) and (B, T + 1)

Source: verses aligned as in Christodouloupoulos and Steedman, "A massively parallel corpus: the
Bible in 100 languages", 2015; batches by length as in Vaswani et al., 2017, section 5.1.
"""

import io
import lzma
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from zoo import random
from zoo.datasets.embedded import Part, embedded
from zoo.datasets.tokenizer import Tokenizer
from zoo.validation import (
    MAX_COUNT,
    FilePath,
    Seed,
    Size,
    Vocabulary,
    array,
    each,
    validated,
)

ENG_SPA_SHA256 = "cf28c95139d824ce07243af5254f25ab96c4e4a3bdde2f386b8fd10833752d52"

# Whole books, of both testaments: neighbouring verses are too like each other to be parted.
VALIDATION = ("Daniel", "Jonah", "I John")
TEST = ("Ruth", "Esther", "Philippians", "James")

_WIDTHS = (16, 24, 32, 48, 64, 96, 128)  # of batches, a compiled step each


class Pair(NamedTuple):
    """A sentence, its translation, and where they stand."""

    verse: str
    source: str
    target: str

    @property
    def book(self) -> str:
        return self.verse.rpartition(" ")[0]


def pairs() -> Iterator[Pair]:
    """31,011 verses in English and Spanish, read one at a time.

    Raises:
        OSError: if the embedded file is damaged.
    """
    with embedded("eng_spa.tsv.xz", ENG_SPA_SHA256) as file, lzma.open(file) as content:
        for line in io.TextIOWrapper(content, "utf-8", newline="\n"):
            yield Pair(*line.rstrip("\n").split("\t"))


@validated
def split(part: Part) -> list[Pair]:
    """The verses of "train", "validation" or "test", whole books each.

    Raises:
        ValueError: for another part.
    """
    books = {"validation": VALIDATION, "test": TEST}
    if part == "train":
        return [pair for pair in pairs() if pair.book not in VALIDATION + TEST]
    return [pair for pair in pairs() if pair.book in books[part]]


class LengthBuckets:
    """Batches of sentence pairs of similar length, so that little is padding.

    Each example is a whole batch: read them with `Batches(buckets, batch_size=1)`. The token 0
    starts, ends and pads a target. Rows of padding fill up a batch; they have no weight.

    Args:
        sources: Token ids of each sentence, (S,) integers above 0.
        targets: Token ids of each translation, as many as `sources`.
        tokens: Number of tokens on either side of a batch, padding included. A batch holds at
            least one pair.
        max_length: Number of tokens of the longest sentence; pairs with longer ones are left out.
        seed: Seed of the choice of pairs that share a batch.

    Raises:
        ValueError: If `sources` and `targets` differ in number or are none, an id is below 1, or
            all pairs are too long.
    """

    @validated
    def __init__(
        self,
        sources: Annotated[Sequence[np.ndarray], each(array("iu", "(T,)"), most=MAX_COUNT)],
        targets: Annotated[Sequence[np.ndarray], each(array("iu", "(T,)"), most=MAX_COUNT)],
        tokens: Size = 2048,
        max_length: Size = _WIDTHS[-1],
        seed: Seed = 0,
    ):
        if len(sources) != len(targets) or not len(sources):
            raise ValueError(
                "`sources` and `targets` must be as many, one at least. "
                f"Received: {len(sources)} sources, {len(targets)} targets"
            )
        if not all(len(ids) for ids in (*sources, *targets)):
            raise ValueError(
                "`sources` and `targets` must hold sentences of one token at least. Received: an "
                "empty sentence"
            )
        lowest = min(int(ids.min()) for ids in (*sources, *targets))
        if lowest < 1:
            raise ValueError(
                "`sources` and `targets` must hold ids above 0, which starts and ends a sentence. "
                f"Received: id {lowest}"
            )
        widths = [width for width in _WIDTHS if width < max_length] + [max_length]
        lengths = np.array([max(len(s), len(t) + 1) for s, t in zip(sources, targets)])
        bucket = np.searchsorted(widths, lengths)
        order = np.asarray(random.permutation(random.key(seed, "buckets"), len(sources)))
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []
        for number, width in enumerate(widths):
            members = order[bucket[order] == number]
            rows = max(tokens // width, 1)
            for first in range(0, len(members), rows):
                source = np.zeros((rows, width), np.int32)
                target = np.zeros((rows, width + 1), np.int32)
                for row, pair in enumerate(members[first : first + rows]):
                    source[row, : len(sources[pair])] = sources[pair]
                    target[row, 1 : 1 + len(targets[pair])] = targets[pair]
                self._batches.append((source, target))
        self.pairs = int((lengths <= max_length).sum())
        if not self.pairs:
            raise ValueError(
                f"`max_length` must leave a pair at least. Received: max_length={max_length}, and "
                f"the shortest pair needs {lengths.min()}"
            )

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], Any, Any]:
        """The batch with this number, (1,), as `fit` takes it.

        Returns:
            A tuple of {"source": (B, S), "target": (B, T)} int32; the next tokens (B, T) int32; and
            their weights (B, T) float32, 0 after the end of a sentence.
        """
        (index,) = map(int, indices)
        source, target = self._batches[index]
        tokens, labels = target[:, :-1], target[:, 1:]
        weights = ((tokens != 0) | (labels != 0)).astype(np.float32)
        return {"source": source, "target": tokens}, labels, weights


@validated
def make_tokenizer(saved: FilePath, size: Vocabulary) -> Tokenizer:
    """What a run has saved; else of so many subwords, of both languages.

    Args:
        saved: a file, which need not be there.
        size: of the vocabulary. It is made from all training pairs, so that each character of the
            others is known.
    """
    if saved.exists():
        return Tokenizer.load(saved)
    texts = (text for pair in split("train") for text in (pair.source, pair.target))
    return Tokenizer.train(texts, size)


@validated
def encoded(
    chosen: Sequence[Pair], vocabulary: Tokenizer
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ids of sources and of targets."""
    sources, targets = zip(*((pair.source, pair.target) for pair in chosen))
    return [vocabulary.encode(s) for s in sources], [vocabulary.encode(t) for t in targets]
