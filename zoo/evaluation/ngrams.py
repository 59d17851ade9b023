"""N-gram models: what counting alone can tell of the next token, for a network to be held against.

    bigram = NGrams(2, vocabulary_size=5000)
    bigram.fit(training_works)
    -bigram.log_probabilities(work).mean()  # nats a token

An n-gram's probability is interpolated: with token w, history h of n - 1 tokens and h' without its
first token,

    p(w | h) = (count(h w) - D(count(h w))) / count(h) + weight(h) · p(w | h')

where the weight is what the discounts D took away, and below the unigrams every token is equally
likely. With shorter histories than the longest, `count` is the number of different tokens before.

Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1999,
interpolated Kneser-Ney smoothing with three discounts.
"""

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np

_DISCOUNT = 0.75  # where too few n-grams were seen once, twice, three and four times
_LEAST = 0.05  # so that no history leaves nothing to tokens that were not seen after it


@dataclasses.dataclass(frozen=True)
class _Order:
    """The n-grams of one length. An n-gram is one number, its tokens the digits.

    Attributes:
        ngrams: (N,) int64, ascending.
        discounted: (N,) float64, their counts less the discount.
        histories: (H,) int64, ascending: the n-grams without their last token.
        counts: (H,) float64, of the histories.
        weights: (H,) float64, the probability that is left to shorter histories.
    """

    ngrams: np.ndarray
    discounted: np.ndarray
    histories: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, ngrams: np.ndarray, counts: np.ndarray, vocabulary_size: int) -> Self:
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        histories, place = np.unique(ngrams // vocabulary_size, return_inverse=True)
        totals = np.bincount(place, counts)
        weights = np.bincount(place, discounts) / totals
        return cls(ngrams, counts - discounts, histories, totals, weights)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from a count of 0, 1, 2, and 3 or more, (4,)."""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0, *[_DISCOUNT] * 3])
    y = n1 / (n1 + 2 * n2)
    found = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(found, [0, *[_LEAST] * 3], [0, 1, 2, 3])


class NGrams:
    """An interpolated n-gram model over token ids. A work's first token is given, not predicted.

    It holds every different n-gram of its training works once, 16 bytes each.

    Args:
        order: n, at least 1. A unigram model takes a token's frequency.
        vocabulary_size: how many tokens there are.

    Raises:
        ValueError: if `order` is below 1, or `vocabulary_size` to its power does not fit 63 bits.
    """

    def __init__(self, order: int, vocabulary_size: int):
        if order < 1 or vocabulary_size**order >= 2**63:
            raise ValueError(
                "`order` must be at least 1, and vocabulary_size**order below 2**63. "
                f"Received: order={order}, vocabulary_size={vocabulary_size}"
            )
        self._order = order
        self._size = vocabulary_size
        self._orders: list[_Order] = []

    def fit(self, works: Iterable[np.ndarray]) -> Self:
        """Counts the n-grams of works, each (T,) integers, taken one at a time.

        Raises:
            ValueError: if no work has two tokens.
        """
        ngrams, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for work in works:
            ngrams, place = np.unique(
                np.concatenate([ngrams, self._ngrams(work)]), return_inverse=True
            )
            ones = np.ones(len(place) - len(counts), np.int64)
            counts = np.bincount(place, np.concatenate([counts, ones])).astype(np.int64)
        if not len(ngrams):
            raise ValueError("`works` must hold a work of two tokens or more. Received: none")
        self._orders = [_Order.of(ngrams, counts, self._size)]
        for length in range(self._order - 1, 0, -1):
            # Of each shorter n-gram, in how many different places it was seen.
            ngrams, counts = np.unique(ngrams % self._size**length, return_counts=True)
            self._orders.insert(0, _Order.of(ngrams, counts, self._size))
        return self

    def log_probabilities(self, work: np.ndarray) -> np.ndarray:
        """Of each token but the first, given those before it: (T,) integers to (T - 1,) nats."""
        ngrams = self._ngrams(work)
        probabilities = np.full(len(ngrams), 1 / self._size)
        for length, order in enumerate(self._orders, 1):
            wanted = ngrams % self._size**length
            discounted = _look_up(order.ngrams, order.discounted, wanted, 0)
            history = wanted // self._size
            counts = _look_up(order.histories, order.counts, history, 1)
            weights = _look_up(order.histories, order.weights, history, 1)
            probabilities = discounted / counts + weights * probabilities
        return np.asarray(np.log(probabilities))

    def _ngrams(self, work: np.ndarray) -> np.ndarray:
        """The n-gram that ends with each token but the first, (T - 1,) int64.

        The first token is repeated before the work, so that the histories are all of one length.
        """
        work = np.asarray(work, np.int64)
        padded = np.concatenate([np.repeat(work[:1], self._order - 1), work])[1:]
        count = max(len(work) - 1, 0)
        # (T - 1, n) digits, the last token the lowest
        digits = padded[np.arange(count)[:, None] + np.arange(self._order)]
        places = self._size ** np.arange(self._order - 1, -1, -1, dtype=np.int64)
        return np.asarray(digits @ places)


def _look_up(
    keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: float
) -> np.ndarray:
    """The value of each key that is wanted, or the default."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], default)
