"""Next-word probabilities of a recurrent language model, summed over tokenizations.

A word may be several tokens, and a token may end one word and begin the next.
"""

import heapq
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax

from zoo.backends import backend
from zoo.datasets.tokenizer import Tokenizer, check_ids
from zoo.generation import recurrent_decoding
from zoo.generation.sampling import check_logits
from zoo.validation import Positive, Size, validated

Tensor = Any
Ids = tuple[int, ...]
Predict = Callable[[Sequence[Ids]], np.ndarray]

_BATCH_SIZE = 32  # sequences of one call of the model

_WORD = re.compile(r"(?:[^\W_]|')*[^\W_](?:[^\W_]|')*")  # letters, digits and apostrophes
_WORD_END = re.compile(r"(?:[^\W_]|')*\Z")
_WORD_START = re.compile(r"(?:[^\W_]|')*")


@validated
def next_token(model: keras.Model) -> Predict:
    """Compiles a function from token sequences to log-probabilities of the next token.

    The function caches the states after each sequence, so that a sequence extended by one token
    takes one step.

    Args:
        model: An `rnn_language_model`.

    Returns:
        A function of N tuples of ids to (N, V) float64. It raises ValueError if a tuple is empty or
        holds an id outside the vocabulary.
    """
    stateful_model = recurrent_decoding.with_explicit_states(model)

    def step(*arrays: Tensor) -> Any:
        return stateful_model([ops.convert_to_tensor(array) for array in arrays], training=False)

    compiled_step = backend.inference_function(stateful_model, step)
    zeros = recurrent_decoding.initial_states(stateful_model, _BATCH_SIZE)
    cache: dict[Ids, list[np.ndarray]] = {(): [state[0] for state in zeros]}

    def extend(sequences: Sequence[Ids]) -> np.ndarray:
        """Processes the last token of sequences whose prefixes are cached.

        The batch always has `_BATCH_SIZE` rows, so that one shape is compiled.
        """
        last_tokens = np.zeros((_BATCH_SIZE, 1), np.int32)
        states = [state.copy() for state in zeros]
        for row, ids in enumerate(sequences):
            last_tokens[row] = ids[-1]
            for state, cached in zip(states, cache[ids[:-1]]):
                state[row] = cached
        logits, *new_states = (
            ops.convert_to_numpy(ops.cast(x, "float32"))
            for x in compiled_step(last_tokens, *states)
        )
        for row, ids in enumerate(sequences):
            cache[ids] = [state[row] for state in new_states]
        last = check_logits(logits[: len(sequences), -1], 0)
        return np.asarray(log_softmax(last.astype(np.float64), axis=-1))

    def predict(sequences: Sequence[Ids]) -> np.ndarray:
        for ids in sequences:
            if not ids:
                raise ValueError(
                    "`ids` must not be empty. Received: (). Give at least one token, such as "
                    "`Tokenizer.BOS`"
                )
            check_ids(np.array(ids), int(model.output.shape[-1]))
            for length in range(1, len(ids)):
                if ids[:length] not in cache:
                    extend([ids[:length]])
        return np.concatenate(
            [
                extend(sequences[first : first + _BATCH_SIZE])
                for first in range(0, len(sequences), _BATCH_SIZE)
            ]
        )

    return predict


@validated
def next_words(
    predict: Predict,
    tokenizer: Tokenizer,
    prompt: str,
    num_words: Size = 5,
    tolerance: Positive = 5e-3,
    max_expansions: Size = 1000,
) -> list[tuple[str, float]]:
    """Finds the most likely next words, regardless of their tokenization.

    A word consists of letters, digits and apostrophes; it ends where a token continues with another
    character. The last word of the prompt is taken as complete. Characters between the prompt and
    the next word (a space, a comma, a line end) are marginalized: the probability of a word is the
    sum over all token sequences that lead to the word.

    The algorithm is a best-first search over prefixes of words. Each step expands the most likely
    prefixes by every possible next token, which completes a word or makes a longer prefix. The
    search ends when the unexpanded prefixes could add no more than `tolerance` to any word.

    Args:
        predict: Function from token sequences to log-probabilities of the next token, as returned
            by `next_token`.
        tokenizer: Tokenizer of the model.
        prompt: Text before the next word.
        num_words: Number of words to return, at least 1.
        tolerance: Maximum probability that may be missing from each word.
        max_expansions: Number of expanded prefixes after which the search ends; the last batch may
            exceed the limit. An untrained model has no likely words, so its search ends only here.

    Returns:
        (word, probability) pairs in descending order of probability.

    Raises:
        ValueError: If the prompt is empty or has a character that `tokenizer` cannot encode.
    """
    prompt = prompt.rstrip(" ")  # the space belongs to the token of the next word
    start = tuple(tokenizer.encode(prompt, "prompt").tolist())
    tokens = tokenizer.tokens
    ends_word = np.array([not _word_start(token) for token in tokens])  # (V,)
    first_words = [_first_word(token)[0] for token in tokens]

    words: dict[str, float] = defaultdict(float)
    remaining: dict[str, float] = defaultdict(float, {"": 1.0})  # unexpanded, by prefix
    pruned = np.zeros(len(tokens))  # never expanded, by the first token of a word
    order = itertools.count()
    queue = [(-1.0, next(order), start, "")]
    expansions = 0
    while (
        queue
        and expansions < max_expansions
        and _largest_gain(remaining, pruned, first_words) > tolerance
    ):
        batch = [heapq.heappop(queue) for _ in range(min(_BATCH_SIZE, len(queue)))]
        expansions += len(batch)
        batch_probabilities = np.exp(predict([ids for _, _, ids, _ in batch]))
        if batch_probabilities.shape != (len(batch), len(tokens)):
            raise ValueError(
                "`predict` must give log-probabilities of the tokens of `tokenizer`, "
                f"{(len(batch), len(tokens))}. Received: shape={batch_probabilities.shape}"
            )
        for (negative, _, ids, prefix), probabilities in zip(batch, batch_probabilities):
            remaining[prefix] += negative
            probabilities[tokenizer.BOS] = 0  # the text ends: there is no next word
            if ids == start and _word_start(prompt[-1]):
                probabilities[~ends_word] = 0
                probabilities /= probabilities.sum()
            probabilities *= -negative
            if _WORD.fullmatch(prefix):
                words[prefix] += float(probabilities[ends_word].sum())
                probabilities[ends_word] = 0
            # Very unlikely sequences are not expanded, but their probability counts as remaining.
            expanded = np.flatnonzero(probabilities > tolerance / 1000)
            unlikely = probabilities.copy()
            unlikely[expanded] = 0
            if prefix:
                remaining[prefix] += float(unlikely.sum())
            else:
                pruned += unlikely
            for token in expanded.tolist():
                probability = float(probabilities[token])
                word, is_complete = _first_word(prefix + tokens[token])
                if is_complete:
                    words[word] += probability
                    continue
                remaining[word] += probability
                heapq.heappush(queue, (-probability, next(order), (*ids, token), word))
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))[:num_words]


def _word_start(token: str) -> str:
    """Word characters at the beginning of a token."""
    match = _WORD_START.match(token)
    return match.group() if match else ""


def _first_word(text: str) -> tuple[str, bool]:
    """First word, or prefix of one at the end of the text, and whether the word is complete."""
    match = _WORD.search(text)
    if match:
        return match.group(), match.end() < len(text)
    end = _WORD_END.search(text)
    return end.group() if end else "", False


def _largest_gain(
    remaining: Mapping[str, float], pruned: np.ndarray, first_words: Sequence[str]
) -> float:
    """Largest probability that a single word can still gain: the sum over its prefixes."""
    gains: dict[str, float] = defaultdict(float)
    for prefix, probability in itertools.chain(
        remaining.items(), zip(first_words, pruned.tolist())
    ):
        # An apostrophe alone may be a quotation mark, which any word can follow.
        gains[prefix if prefix.strip("'") else ""] += probability
    largest = 0.0
    prefixes: list[tuple[str, float]] = []  # of the current word, each with the sum so far
    for prefix in sorted(gains):
        while prefixes and not prefix.startswith(prefixes[-1][0]):
            prefixes.pop()
        total = gains[prefix] + (prefixes[-1][1] if prefixes else 0.0)
        prefixes.append((prefix, total))
        largest = max(largest, total)
    return largest
