from collections import Counter

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from zoo import rnn_language_model
from zoo.datasets.tokenizer import Tokenizer
from zoo.generation import next_word

IDS = np.random.default_rng(0).integers(1, 12, 6)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return rnn_language_model(12, "lstm", embedding_dim=6, units=8, num_layers=2)


def log_probabilities(model: keras.Model, ids: list[int]) -> np.ndarray:
    """Log-probabilities after the last token, (V,), without incremental decoding."""
    logits = keras.ops.convert_to_numpy(model(np.array([ids], np.int32)))[0, -1]
    return log_softmax(logits.astype(np.float64))


def test_next_token_matches_full_sequence_in_any_order(model: keras.Model) -> None:
    predict = next_word.next_token(model)
    ids = tuple(int(i) for i in IDS)
    for sequence in (ids[:3], ids, ids[:2], (5, 4), ids[:3]):
        expected = log_probabilities(model, list(sequence))
        np.testing.assert_allclose(predict([sequence])[0], expected, atol=1e-5)
    batch = predict([ids[:4], (7,)] * 20)  # more than fit into one call of the model
    np.testing.assert_array_equal(batch[:2], batch[-2:])
    np.testing.assert_allclose(batch[1], log_probabilities(model, [7]), atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "problem"),
    [((), "Give at least one token"), ((3, 12), "id 12 at index 1, vocabulary_size=12")],
)
def test_next_token_rejects_invalid_ids(model: keras.Model, ids: tuple, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        next_word.next_token(model)([ids])


# ------------------------------------------------------------------ next words

TOKENIZER = Tokenizer.train(["be bee, bear' be.\nBe 'tis; a beard- 'Bea\n\n3 beds "] * 4, 32)


def markov_chain(seed: int):  # type: ignore[no-untyped-def]
    """Predictor from the last token alone, so that all paths to a word can be enumerated."""
    scores = np.random.default_rng(seed).normal(scale=2, size=[len(TOKENIZER)] * 2)
    first, last = ([in_word(token[i]) for token in TOKENIZER.tokens] for i in (0, -1))
    scores += 3 * np.not_equal.outer(last, first)  # short words and short gaps between them
    scores[:, TOKENIZER.BOS] -= 8
    table = log_softmax(scores, axis=-1)
    return lambda sequences: table[[ids[-1] for ids in sequences]]


def in_word(character: str) -> bool:
    return character.isalnum() or character == "'"


def enumerate_words(predict, prompt: str) -> Counter:  # type: ignore[no-untyped-def]
    """Probability of each word, summed over all token sequences."""
    words: Counter = Counter()
    states = {(int(TOKENIZER.encode(prompt)[-1]), ""): 1.0}
    first = True
    while states:
        next_states: Counter = Counter()
        for (last, prefix), mass in states.items():
            probabilities = np.exp(predict([(last,)])[0])
            probabilities[TOKENIZER.BOS] = 0
            if first and in_word(prompt[-1]):
                probabilities[[in_word(token[0]) for token in TOKENIZER.tokens]] = 0
                probabilities /= probabilities.sum()
            for token, probability in enumerate(probabilities * mass):
                word = prefix
                for character in TOKENIZER.tokens[token]:
                    if in_word(character):
                        word += character
                    elif word.strip("'"):
                        words[word] += probability
                        break
                    else:
                        word = ""
                else:
                    next_states[token, word] += probability
        first = False
        states = {state: mass for state, mass in next_states.items() if mass > 1e-6}
    return words


@pytest.mark.once
@pytest.mark.parametrize(("seed", "prompt"), list(enumerate(["be", "a be,", "bear'", "be.\n"])))
def test_next_words_match_enumeration(seed: int, prompt: str) -> None:
    predict = markov_chain(seed)
    expected = enumerate_words(predict, prompt)
    assert sum(expected.values()) > 0.98  # the rest are sequences less likely than 1e-6
    expanded = []

    def recording_predict(sequences: list) -> np.ndarray:
        expanded.extend(sequences)
        return predict(sequences)

    words = next_word.next_words(
        recording_predict, TOKENIZER, f"{prompt} ", tolerance=2e-3, max_expansions=4000
    )
    assert len(expanded) < 4000
    assert len(dict(words)) == 5
    for (word, probability), (_, best) in zip(words, expected.most_common(5)):
        assert expected[word] - 2e-3 <= probability <= expected[word] + 1e-4
        assert expected[word] >= best - 2e-3


@pytest.mark.once
def test_next_words_stops_at_max_expansions() -> None:
    """An untrained model predicts nearly uniform probabilities, so no word is likely."""
    expanded = []

    def predict(sequences: list) -> np.ndarray:
        expanded.extend(sequences)
        return np.full((len(sequences), len(TOKENIZER)), -np.log(len(TOKENIZER)))

    words = next_word.next_words(predict, TOKENIZER, "be", num_words=3, max_expansions=50)
    assert len(words) == 3
    assert 50 <= len(expanded) < 50 + 32


@pytest.mark.once
@pytest.mark.parametrize(("prompt", "problem"), [("  ", "`prompt` must not"), ("bé", "'é' at")])
def test_next_words_rejects_invalid_prompts(prompt: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        next_word.next_words(markov_chain(0), TOKENIZER, prompt)
