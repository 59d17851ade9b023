"""N-gram language models with Kneser-Ney smoothing, a baseline for neural language models.

    bigram = NGrams(2, vocabulary_size=5000)
    bigram.fit(training_documents)
    -bigram.log_probabilities(document).mean()  # nats per token

The probability of an n-gram is interpolated. With token w, history h of n - 1 tokens, and h' which
is h without its first token:

    p(w | h) = (count(h w) - D(count(h w))) / count(h) + weight(h) · p(w | h')

The weight is the probability mass that the discounts D remove. Unigrams are interpolated with the
uniform distribution. For histories shorter than n - 1, `count` is the number of different
tokens that precede the n-gram.

Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1999,
interpolated Kneser-Ney smoothing with three discounts.
"""

import dataclasses
from typing import Annotated, Self

import numpy as np

from zoo.validation import Arrays, TokenArray, Vocabulary, validated, whole

_DISCOUNT = 0.75  # used unless n-grams with each of the counts 1, 2, 3 and 4 exist
_MIN_DISCOUNT = 0.05  # so that every history leaves some probability to unseen tokens


@dataclasses.dataclass(frozen=True)
class _NGramTable:
    """Table of the n-grams of one length. An n-gram is one number, whose digits are its tokens.

    Attributes:
        ngrams: N-grams in ascending order, (N,) int64.
        discounted: Counts of the n-grams minus the discount, (N,) float64.
        histories: N-grams without their last token in ascending order, (H,) int64.
        counts: Counts of the histories, (H,) float64.
        weights: Weights of the shorter histories, (H,) float64.
    """

    ngrams: np.ndarray
    discounted: np.ndarray
    histories: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @classmethod
    def from_counts(cls, ngrams: np.ndarray, counts: np.ndarray, vocabulary_size: int) -> Self:
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        histories, inverse = np.unique(ngrams // vocabulary_size, return_inverse=True)
        totals = np.bincount(inverse, counts)
        weights = np.bincount(inverse, discounts) / totals
        return cls(ngrams, counts - discounts, histories, totals, weights)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of the counts 0, 1, 2, and 3 or more, (4,)."""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0, *[_DISCOUNT] * 3])
    y = n1 / (n1 + 2 * n2)
    discounts = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(discounts, [0, *[_MIN_DISCOUNT] * 3], [0, 1, 2, 3])


class NGrams:
    """Interpolated n-gram model of token ids.

    The first token of a document is not predicted. The model stores each distinct n-gram of the
    training documents once, in 16 bytes.

    Args:
        order: Length n of the n-grams, at least 1. Order 1 predicts the frequency of each token.
        vocabulary_size: Number of tokens.

    Raises:
        ValueError: If `order` is below 1, or vocabulary_size**order does not fit in 63 bits.
    """

    @validated
    def __init__(self, order: Annotated[int, whole(1, 62)], vocabulary_size: Vocabulary):
        if vocabulary_size**order >= 2**63:
            raise ValueError(
                "`order` must be small enough that vocabulary_size**order is below 2**63. "
                f"Received: order={order}, vocabulary_size={vocabulary_size}"
            )
        self._order = order
        self._vocabulary_size = vocabulary_size
        self._tables: list[_NGramTable] = []

    @validated
    def fit(self, documents: Arrays) -> Self:
        """Fits the model to the n-gram counts of documents.

        Args:
            documents: Token ids of each document, (T,) integers, read one at a time.

        Returns:
            The model itself.

        Raises:
            ValueError: If no document has two tokens.
        """
        ngrams, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for document in documents:
            ngrams, inverse = np.unique(
                np.concatenate([ngrams, self._ngrams(document)]), return_inverse=True
            )
            ones = np.ones(len(inverse) - len(counts), np.int64)
            counts = np.bincount(inverse, np.concatenate([counts, ones])).astype(np.int64)
        if not len(ngrams):
            raise ValueError(
                "`documents` must hold a document of two tokens or more. Received: none"
            )
        self._tables = [_NGramTable.from_counts(ngrams, counts, self._vocabulary_size)]
        for length in range(self._order - 1, 0, -1):
            # The count of a shorter n-gram is the number of different tokens that precede it.
            ngrams, counts = np.unique(ngrams % self._vocabulary_size**length, return_counts=True)
            self._tables.insert(0, _NGramTable.from_counts(ngrams, counts, self._vocabulary_size))
        return self

    @validated
    def log_probabilities(self, document: TokenArray) -> np.ndarray:
        """Computes the log-probability of each token but the first, given the previous tokens.

        Args:
            document: Token ids, (T,) integers.

        Returns:
            Log-probabilities in nats, (T - 1,) float64.
        """
        ngrams = self._ngrams(document)
        probabilities = np.full(len(ngrams), 1 / self._vocabulary_size)
        for length, table in enumerate(self._tables, 1):
            suffixes = ngrams % self._vocabulary_size**length
            histories = suffixes // self._vocabulary_size
            discounted = _values_at(table.ngrams, table.discounted, suffixes, 0)
            counts = _values_at(table.histories, table.counts, histories, 1)
            weights = _values_at(table.histories, table.weights, histories, 1)
            probabilities = discounted / counts + weights * probabilities
        return np.asarray(np.log(probabilities))

    def _ngrams(self, document: np.ndarray) -> np.ndarray:
        """N-gram that ends with each token but the first, (T - 1,) int64.

        The first token is repeated before the document, so that all histories have the same length.
        """
        document = np.asarray(document, np.int64)
        padded = np.concatenate([np.repeat(document[:1], self._order - 1), document])[1:]
        num_ngrams = max(len(document) - 1, 0)
        # (T - 1, n): the last token is the lowest digit
        digits = padded[np.arange(num_ngrams)[:, None] + np.arange(self._order)]
        powers = self._vocabulary_size ** np.arange(self._order - 1, -1, -1, dtype=np.int64)
        return np.asarray(digits @ powers)


def _values_at(
    sorted_keys: np.ndarray, values: np.ndarray, keys: np.ndarray, default: float
) -> np.ndarray:
    """Value of each of `keys` in a table with ascending keys, or the default for missing keys."""
    indices = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[indices] == keys, values[indices], default)
