"""Beam search: approximates the most likely continuation of each prompt.

    (translation,) = beam_search(model, [[1]], 100, sources=[[5, 3, 8]], stop_tokens=[2])

Source: Wu et al., "Google's Neural Machine Translation System", 2016, section 7; Vaswani et al.,
"Attention Is All You Need", 2017, section 6.1.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax

from zoo.generation.sampling import check_logits, prepare_generation
from zoo.validation import Beams, NewTokens, NonNegative, TokenIds, TokenSequences, validated


@validated
def beam_search(
    model: keras.Model,
    prompts: TokenSequences,
    max_new_tokens: NewTokens,
    num_beams: Beams = 4,
    length_penalty: NonNegative = 0.6,
    stop_tokens: TokenIds = (),
    sources: TokenSequences | None = None,
) -> list[np.ndarray]:
    """Continues each prompt by a beam search.

    Each step keeps the `num_beams` most likely unfinished hypotheses. The result is the hypothesis
    with the greatest log p / ((5 + length)/6)^length_penalty. The search ends when `num_beams`
    hypotheses are finished, or when no unfinished one can reach a greater score.

    Args:
        model: A `gpt`, `transformer` or `rnn_language_model`.
        prompts: Token ids of each prompt, at least one; of equal length for an
            `rnn_language_model`.
        max_new_tokens: Maximum number of tokens of each continuation. A `transformer` stops earlier
            where the longest prompt has filled its context.
        num_beams: Number of hypotheses that are continued; 1 is greedy decoding.
        length_penalty: Exponent of the length normalization, 0 or more. 0 prefers short
            hypotheses, since every token lowers the probability.
        stop_tokens: Token ids that finish a hypothesis.
        sources: Token ids of the source sequence of each prompt, for a `transformer` only.

    Returns:
        Continuation of each prompt without the prompt, (N,) int32: N is at most `max_new_tokens`,
        and the last token may be a stop token.

    Raises:
        ValueError: If there is no prompt, a prompt is empty or longer than the context, an id is
            outside the vocabulary, `sources` do not fit the model and the prompts,
            `max_new_tokens` or `num_beams` is below 1, or `length_penalty` is below 0.
    """
    decoder, (ids, source_ids), max_new_tokens = prepare_generation(
        model, prompts, sources, max_new_tokens
    )

    def repeat(sequences: list[np.ndarray]) -> list[np.ndarray]:
        return [ids for ids in sequences for _ in range(num_beams)]

    searches = [_Search(num_beams, length_penalty, list(stop_tokens), max_new_tokens) for _ in ids]
    logits = decoder.prefill(
        repeat(ids), max_new_tokens, None if source_ids is None else repeat(source_ids)
    )
    num_new_tokens = 0
    while True:
        scores = check_logits(ops.convert_to_numpy(logits), num_new_tokens, num_beams)
        log_probabilities = log_softmax(scores.astype(np.float64), axis=-1)
        rows = np.concatenate(
            [
                search.advance(beams) + num_beams * number
                for number, (search, beams) in enumerate(
                    zip(searches, np.split(log_probabilities, len(ids)))
                )
            ]
        )
        if all(search.result is not None for search in searches):
            return [search.result for search in searches]
        num_new_tokens += 1
        decoder.reorder(rows)
        logits = decoder.decode(np.concatenate([search.tokens for search in searches])[:, None])


class _Search:
    """Beam search of one prompt. Beams are sorted by descending probability.

    Attributes:
        tokens: Last token of each beam, (num_beams,) int32.
        result: Hypothesis with the greatest score once the search has ended, otherwise None.
    """

    def __init__(
        self,
        num_beams: int,
        length_penalty: float,
        stop_tokens: list[int],
        max_new_tokens: int,
    ):
        self._length_penalty = length_penalty
        self._stop_tokens = stop_tokens
        self._max_new_tokens = max_new_tokens
        # All beams start from the same prompt, so only the first one may be continued at first.
        self._totals = np.array([0.0] + [-math.inf] * (num_beams - 1))
        self._beams = np.zeros((num_beams, 0), np.int32)
        self._best_finished: tuple[float, np.ndarray] = -math.inf, np.zeros(0, np.int32)
        self._num_finished = 0
        self.tokens = np.zeros(num_beams, np.int32)
        self.result: Any = None

    def advance(self, log_probabilities: np.ndarray) -> np.ndarray:
        """Extends the beams by one token each and returns the parent beam of each new beam.

        Args:
            log_probabilities: Log-probabilities of the next token, (num_beams, V).
        """
        num_beams, vocabulary_size = log_probabilities.shape
        if self.result is not None:  # the searches of other prompts have not ended yet
            return np.arange(num_beams)
        totals = (self._totals[:, None] + log_probabilities).ravel()
        # Each beam ends with each stop token at most once, so `num_beams` unfinished ones remain.
        num_candidates = min(num_beams * (1 + len(self._stop_tokens)), len(totals))
        candidates = np.argpartition(-totals, num_candidates - 1)[:num_candidates]
        candidates = candidates[np.lexsort((candidates, -totals[candidates]))]
        candidates = candidates[np.isfinite(totals[candidates])]
        stops = np.isin(candidates % vocabulary_size, self._stop_tokens)
        for candidate in candidates[:num_beams][stops[:num_beams]]:
            beam, token = divmod(int(candidate), vocabulary_size)
            finished = np.append(self._beams[beam], np.int32(token))
            score = self._score(totals[candidate], len(finished))
            self._best_finished = _better(self._best_finished, (score, finished))
            self._num_finished += 1
        unfinished = candidates[~stops][:num_beams]
        # A small vocabulary may give too few candidates: beams of probability 0 fill up.
        num_missing = num_beams - len(unfinished)
        selected = np.append(unfinished, np.zeros(num_missing, int))
        self._totals = np.append(totals[unfinished], np.full(num_missing, -math.inf))
        parents: np.ndarray = selected // vocabulary_size
        self.tokens = (selected % vocabulary_size).astype(np.int32)
        self._beams = np.append(self._beams[parents], self.tokens[:, None], axis=1)
        self._end_if_decided()
        return parents

    def _end_if_decided(self) -> None:
        num_beams, length = self._beams.shape
        upper_bound = self._score(self._totals[0], self._max_new_tokens)
        if length == self._max_new_tokens:
            self.result = _better(self._best_finished, (upper_bound, self._beams[0]))[1]
        elif self._num_finished >= num_beams or self._best_finished[0] >= upper_bound:
            self.result = self._best_finished[1]

    def _score(self, total: float, length: int) -> float:
        return float(total / ((5 + length) / 6) ** self._length_penalty)


def _better(
    first: tuple[float, np.ndarray], second: tuple[float, np.ndarray]
) -> tuple[float, np.ndarray]:
    return max(first, second, key=lambda hypothesis: hypothesis[0])
