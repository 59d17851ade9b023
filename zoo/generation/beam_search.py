"""The likeliest text, or nearly: several beginnings are followed at once, and the best one wins.

    (translation,) = beam_search(model, [[1]], 100, sources=[[5, 3, 8]], stop_tokens=[2])

Source: Wu et al., "Google's Neural Machine Translation System", 2016, section 7; Vaswani et al.,
"Attention Is All You Need", 2017, section 6.1.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax

from zoo.generation.sampling import prepare_generation
from zoo.validation import check_sizes


def beam_search(
    model: keras.Model,
    prompts: Sequence[Any],
    max_new_tokens: int,
    num_beams: int = 4,
    length_penalty: float = 0.6,
    stop_tokens: Sequence[int] = (),
    sources: Sequence[Any] | None = None,
) -> list[np.ndarray]:
    """The likeliest continuation of each prompt that a search finds which follows several at once.

    At each step the `num_beams` likeliest beginnings stay. The likeliest of all is that with the
    greatest log p / ((5 + length)/6)^length_penalty; the search ends when so many have ended, or
    none that goes on can come to more.

    Args:
        model: as for `zoo.generation.sampling.stream`.
        prompts: likewise.
        max_new_tokens: likewise.
        num_beams: beginnings that are followed; 1 takes the likeliest token each time.
        length_penalty: 0 or more; 0 prefers short ones, which have lost less probability.
        stop_tokens: a continuation ends with one of these.
        sources: token ids of what a `transformer` reads for each prompt.

    Returns:
        For each prompt (N,) int32 without the prompt: N at most `max_new_tokens`, or the last of
        them a stop token.

    Raises:
        ValueError: as `zoo.generation.sampling.stream`; and for `num_beams` below 1, or
            `length_penalty` below 0.
    """
    decoder, (ids, source_ids), longest = prepare_generation(
        model, prompts, sources, max_new_tokens
    )
    check_sizes(num_beams=num_beams)
    if not 0 <= length_penalty < math.inf:
        raise ValueError(
            f"`length_penalty` must be 0 or more. Received: length_penalty={length_penalty}"
        )

    def repeated(sequences: list[np.ndarray]) -> list[np.ndarray]:
        return [ids for ids in sequences for _ in range(num_beams)]

    searches = [_Search(num_beams, length_penalty, list(stop_tokens), longest) for _ in ids]
    logits = decoder.prefill(
        repeated(ids), longest, None if source_ids is None else repeated(source_ids)
    )
    while True:
        scores = log_softmax(ops.convert_to_numpy(logits).astype(np.float64), axis=-1)
        rows = np.concatenate(
            [
                search.grow(part) + num_beams * number
                for number, (search, part) in enumerate(zip(searches, np.split(scores, len(ids))))
            ]
        )
        if all(search.found is not None for search in searches):
            return [search.found for search in searches]
        decoder.reorder(rows)
        logits = decoder.decode(np.concatenate([search.tokens for search in searches])[:, None])


class _Search:
    """The beginnings that are followed after one prompt, the likeliest first.

    Attributes:
        tokens: (num_beams,) int32, the last of each.
        found: the likeliest continuation, once the search has ended.
    """

    def __init__(self, num_beams: int, length_penalty: float, stop_tokens: list[int], longest: int):
        self._length_penalty = length_penalty
        self._stop_tokens = stop_tokens
        self._longest = longest
        # All begin alike, so only the first is followed at first.
        self._totals = np.array([0.0] + [-math.inf] * (num_beams - 1))
        self._beams = np.zeros((num_beams, 0), np.int32)
        self._ended: tuple[float, np.ndarray] = -math.inf, np.zeros(0, np.int32)  # the best
        self._ends = 0
        self.tokens = np.zeros(num_beams, np.int32)
        self.found: Any = None

    def grow(self, log_probabilities: np.ndarray) -> np.ndarray:
        """Goes on by a token each, (num_beams, V), and says which beam each goes on from."""
        count, vocabulary_size = log_probabilities.shape
        if self.found is not None:  # it waits for the other prompts' searches
            return np.arange(count)
        scores = (self._totals[:, None] + log_probabilities).ravel()
        # Each beam ends with each stop token at most once, so as many are left that go on.
        wanted = min(count * (1 + len(self._stop_tokens)), len(scores))
        likeliest = np.argpartition(-scores, wanted - 1)[:wanted]
        likeliest = likeliest[np.lexsort((likeliest, -scores[likeliest]))]
        likeliest = likeliest[np.isfinite(scores[likeliest])]
        stops = np.isin(likeliest % vocabulary_size, self._stop_tokens)
        for place in likeliest[:count][stops[:count]]:
            beam, token = divmod(int(place), vocabulary_size)
            ended = np.append(self._beams[beam], np.int32(token))
            self._ended = _better(self._ended, (self._scored(scores[place], len(ended)), ended))
            self._ends += 1
        going_on = likeliest[~stops][:count]
        # There may be too few in a small vocabulary: any stand for those that lack.
        kept = np.append(going_on, np.zeros(count - len(going_on), int))
        self._totals = np.append(scores[going_on], np.full(count - len(going_on), -math.inf))
        parents: np.ndarray = kept // vocabulary_size
        self.tokens = (kept % vocabulary_size).astype(np.int32)
        self._beams = np.append(self._beams[parents], self.tokens[:, None], axis=1)
        self._look_for_the_end()
        return parents

    def _look_for_the_end(self) -> None:
        count, length = self._beams.shape
        if length == self._longest:
            unended = self._scored(self._totals[0], length), self._beams[0]
            self.found = _better(self._ended, unended)[1]
        elif self._ends >= count or self._ended[0] >= self._scored(self._totals[0], self._longest):
            self.found = self._ended[1]

    def _scored(self, total: float, length: int) -> float:
        return float(total / ((5 + length) / 6) ** self._length_penalty)


def _better(
    first: tuple[float, np.ndarray], second: tuple[float, np.ndarray]
) -> tuple[float, np.ndarray]:
    return max(first, second, key=lambda scored: scored[0])
