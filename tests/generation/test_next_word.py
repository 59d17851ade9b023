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
    """After the last token, from the sequence as a whole: (V,)."""
    logits = keras.ops.convert_to_numpy(model(np.array([ids], np.int32)))[0, -1]
    return log_softmax(logits.astype(np.float64))


def test_the_next_token_in_any_order_of_asking(model: keras.Model) -> None:
    predict = next_word.next_token(model)
    ids = tuple(int(i) for i in IDS)
    for asked in (ids[:3], ids, ids[:2], (5, 4), ids[:3]):
        expected = log_probabilities(model, list(asked))
        np.testing.assert_allclose(predict([asked])[0], expected, atol=1e-5)
    both = predict([ids[:4], (7,)] * 20)  # more than are read side by side
    np.testing.assert_array_equal(both[:2], both[-2:])
    np.testing.assert_allclose(both[1], log_probabilities(model, [7]), atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "problem"),
    [((), "Give a token at least"), ((3, 12), "id 12 at index 1, vocabulary_size=12")],
)
def test_tokens_that_cannot_be_read(model: keras.Model, ids: tuple, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        next_word.next_token(model)([ids])


# ------------------------------------------------------------------ next words

VOCABULARY = Tokenizer.train(["be bee, bear' be.\nBe 'tis; a beard- 'Bea\n\n3 beds "] * 4, 32)


def chain(seed: int):  # type: ignore[no-untyped-def]
    """Predicts by the last token alone, so that all ways to a word can be added up."""
    scores = np.random.default_rng(seed).normal(scale=2, size=[len(VOCABULARY)] * 2)
    first, last = ([in_word(token[i]) for token in VOCABULARY.tokens] for i in (0, -1))
    scores += 3 * np.not_equal.outer(last, first)  # words end soon, and soon another begins
    scores[:, VOCABULARY.BOS] -= 8
    table = log_softmax(scores, axis=-1)
    return lambda sequences: table[[ids[-1] for ids in sequences]]


def in_word(character: str) -> bool:
    return character.isalnum() or character == "'"


def all_ways(predict, prompt: str) -> Counter:  # type: ignore[no-untyped-def]
    """The probability of each word, over all token sequences, step by step."""
    found: Counter = Counter()
    states = {(int(VOCABULARY.encode(prompt)[-1]), ""): 1.0}
    first = True
    while states:
        after: Counter = Counter()
        for (last, begun), mass in states.items():
            probabilities = np.exp(predict([(last,)])[0])
            probabilities[VOCABULARY.BOS] = 0
            if first and in_word(prompt[-1]):
                probabilities[[in_word(token[0]) for token in VOCABULARY.tokens]] = 0
                probabilities /= probabilities.sum()
            for token, probability in enumerate(probabilities * mass):
                word = begun
                for character in VOCABULARY.tokens[token]:
                    if in_word(character):
                        word += character
                    elif word.strip("'"):
                        found[word] += probability
                        break
                    else:
                        word = ""
                else:
                    after[token, word] += probability
        first = False
        states = {state: mass for state, mass in after.items() if mass > 1e-6}
    return found


@pytest.mark.parametrize(("seed", "prompt"), list(enumerate(["be", "a be,", "bear'", "be.\n"])))
def test_the_likeliest_words_over_all_ways(seed: int, prompt: str) -> None:
    predict = chain(seed)
    expected = all_ways(predict, prompt)
    assert sum(expected.values()) > 0.98  # the rest are ways less likely than 1e-6
    asked = []

    def counted(sequences: list) -> np.ndarray:
        asked.extend(sequences)
        return predict(sequences)

    found = next_word.next_words(counted, VOCABULARY, f"{prompt} ", tolerance=2e-3, most=4000)
    assert len(asked) < 4000
    assert len(dict(found)) == 5
    for (word, probability), (_, best) in zip(found, expected.most_common(5)):
        assert expected[word] - 2e-3 <= probability <= expected[word] + 1e-4
        assert expected[word] >= best - 2e-3


def test_a_model_that_has_not_learnt_is_asked_no_more_than_so_often() -> None:
    asked = []

    def predict(sequences: list) -> np.ndarray:
        asked.extend(sequences)
        return np.full((len(sequences), len(VOCABULARY)), -np.log(len(VOCABULARY)))

    assert len(next_word.next_words(predict, VOCABULARY, "be", count=3, most=50)) == 3
    assert 50 <= len(asked) < 50 + 32


@pytest.mark.parametrize(("prompt", "problem"), [("  ", "`prompt` must not"), ("bé", "'é' at")])
def test_prompts_that_cannot_be(prompt: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        next_word.next_words(chain(0), VOCABULARY, prompt)
