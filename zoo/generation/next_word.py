"""The next word: what a recurrent language model thinks likely after a prompt, word by word.

A word may be several tokens, and a token may end one word and begin another.
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
from zoo.generation import decoding

Tensor = Any
Ids = tuple[int, ...]
Predict = Callable[[Sequence[Ids]], np.ndarray]

_ROWS = 32  # sequences that the model is asked of at once

_WORD = re.compile(r"(?:[^\W_]|')*[^\W_](?:[^\W_]|')*")  # letters and digits, and apostrophes
_WORD_END = re.compile(r"(?:[^\W_]|')*\Z")
_WORD_HEAD = re.compile(r"(?:[^\W_]|')*")


def next_token(model: keras.Model) -> Predict:
    """Compiles a function from sequences of token ids to log-probabilities of the token after each.

    It keeps the state after each sequence it has read, so that one token more is one step.

    Args:
        model: an `rnn_language_model`.

    Returns:
        A function of N tuples of ids to (N, V) float64. It raises ValueError if one is empty or
        holds an id outside the vocabulary.
    """
    stepper = decoding.with_explicit_states(model)

    def step(*arrays: Tensor) -> Any:
        return stepper([ops.convert_to_tensor(array) for array in arrays], training=False)

    forward = backend.inference_function(stepper, step)
    zeros = decoding.initial_states(stepper, _ROWS)
    known: dict[Ids, list[np.ndarray]] = {(): [state[0] for state in zeros]}

    def read(sequences: Sequence[Ids]) -> np.ndarray:
        """One step for sequences whose beginnings are known, in rows that are always as many."""
        last = np.zeros((_ROWS, 1), np.int32)
        states = [state.copy() for state in zeros]
        for row, ids in enumerate(sequences):
            last[row] = ids[-1]
            for state, kept in zip(states, known[ids[:-1]]):
                state[row] = kept
        logits, *after = (
            ops.convert_to_numpy(ops.cast(x, "float32")) for x in forward(last, *states)
        )
        for row, ids in enumerate(sequences):
            known[ids] = [state[row] for state in after]
        return np.asarray(log_softmax(logits[: len(sequences), -1].astype(np.float64), axis=-1))

    def predict(sequences: Sequence[Ids]) -> np.ndarray:
        for ids in sequences:
            if not ids:
                raise ValueError("`ids` must not be empty. Received: (). Give a token at least")
            check_ids(np.array(ids), int(model.output.shape[-1]))
            for length in range(1, len(ids)):
                if ids[:length] not in known:
                    read([ids[:length]])
        return np.concatenate(
            [read(sequences[first : first + _ROWS]) for first in range(0, len(sequences), _ROWS)]
        )

    return predict


def next_words(
    predict: Predict,
    vocabulary: Tokenizer,
    prompt: str,
    count: int = 5,
    tolerance: float = 5e-3,
    most: int = 1000,
) -> list[tuple[str, float]]:
    """The likeliest next words, whatever tokens they are made of.

    A word is letters, digits and apostrophes; it ends where a token begins with something else.
    The prompt's last word is taken to be whole. What stands before the next word (a space, a comma,
    a new line) does not matter: its probability is the sum over all the ways to it.

    The search is best first: the likeliest beginnings of words are taken up, the model is asked for
    the token after each, and each token ends the word or makes a longer beginning. It is over when
    the beginnings left could add no more than `tolerance` to any word, found or not.

    Args:
        predict: from sequences of ids to log-probabilities of the next token, as of `next_token`.
        vocabulary: of the tokens.
        prompt: the text before.
        count: how many words, at least 1.
        tolerance: what a word's probability may lack.
        most: the beginnings taken up at most, or a few more. A model that has not learnt anything
            has no likeliest words to be found.

    Returns:
        (word, probability), the likeliest first.

    Raises:
        ValueError: for an empty prompt, or one that `vocabulary` cannot encode.
    """
    prompt = prompt.rstrip(" ")  # the space belongs to the token of the next word
    start = tuple(vocabulary.encode(prompt, "prompt").tolist())
    tokens = vocabulary.tokens
    ends_word = np.array([not _head(token) for token in tokens])  # (V,)
    first_words = [_read(token)[0] for token in tokens]

    words: dict[str, float] = defaultdict(float)
    left: dict[str, float] = defaultdict(float, {"": 1.0})  # not taken up yet, by the word so far
    rare = np.zeros(len(tokens))  # nor ever, by the token that a word would begin with
    order = itertools.count()
    queue = [(-1.0, next(order), start, "")]
    asked = 0
    while queue and asked < most and _most_to_come(left, rare, first_words) > tolerance:
        taken = [heapq.heappop(queue) for _ in range(min(_ROWS, len(queue)))]
        asked += len(taken)
        answers = np.exp(predict([ids for _, _, ids, _ in taken]))
        for (negative, _, ids, begun), probabilities in zip(taken, answers):
            left[begun] += negative
            probabilities[vocabulary.BOS] = 0  # another work: there is no next word
            if ids == start and _head(prompt[-1]):
                probabilities[~ends_word] = 0
                probabilities /= probabilities.sum()
            probabilities *= -negative
            if _WORD.fullmatch(begun):
                words[begun] += float(probabilities[ends_word].sum())
                probabilities[ends_word] = 0
            # Ways that are less likely by far are not followed, but counted as left.
            followed = np.flatnonzero(probabilities > tolerance / 1000)
            others = probabilities.copy()
            others[followed] = 0
            if begun:
                left[begun] += float(others.sum())
            else:
                rare += others
            for token in followed.tolist():
                probability = float(probabilities[token])
                word, ended = _read(begun + tokens[token])
                if ended:
                    words[word] += probability
                    continue
                left[word] += probability
                heapq.heappush(queue, (-probability, next(order), (*ids, token), word))
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))[:count]


def _head(token: str) -> str:
    found = _WORD_HEAD.match(token)
    return found.group() if found else ""


def _read(text: str) -> tuple[str, bool]:
    """The first word, and whether it has ended; else the beginning of one, which may be empty."""
    found = _WORD.search(text)
    if found:
        return found.group(), found.end() < len(text)
    end = _WORD_END.search(text)
    return end.group() if end else "", False


def _most_to_come(left: Mapping[str, float], rare: np.ndarray, first_words: Sequence[str]) -> float:
    """What a single word could still gain: the sum over its beginnings, at its most."""
    gains: dict[str, float] = defaultdict(float)
    for word, probability in itertools.chain(left.items(), zip(first_words, rare.tolist())):
        # An apostrophe alone may yet be a quotation mark, and any word come after it.
        gains[word if word.strip("'") else ""] += probability
    most = 0.0
    beginnings: list[tuple[str, float]] = []  # of the word, each with the sum so far
    for word in sorted(gains):
        while beginnings and not word.startswith(beginnings[-1][0]):
            beginnings.pop()
        total = gains[word] + (beginnings[-1][1] if beginnings else 0.0)
        beginnings.append((word, total))
        most = max(most, total)
    return most
