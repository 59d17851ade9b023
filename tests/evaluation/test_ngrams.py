"""Comparison of the n-gram models with the formulas of Chen and Goodman on dictionaries."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from zoo.evaluation.ngrams import NGrams

pytestmark = pytest.mark.once

VOCABULARY_SIZE = 7


def sample(length: int, seed: int = 0) -> np.ndarray:
    """Random token ids with frequent tokens, frequent pairs and tokens that never occur."""
    generator = np.random.default_rng(seed)
    ids = [0]
    for _ in range(length):
        ids.append((ids[-1] % 3 + 1) if generator.random() < 0.5 else int(generator.integers(1, 6)))
    return np.array(ids, np.uint16)


DOCUMENTS = [sample(40), sample(25, seed=1), sample(1, seed=2)]


def brute_force(order: int, history: tuple[int, ...], token: int) -> float:
    """p(token | history) from the formula, with one dictionary entry per n-gram."""
    ngram_counts: Counter = Counter()
    for document in DOCUMENTS:
        padded = (0,) * (order - 1) + tuple(document.tolist())
        for end in range(order, len(padded)):
            ngram_counts[padded[end - order + 1 : end + 1]] += 1
    probability = 1 / VOCABULARY_SIZE
    for length in range(1, order + 1):
        if length == order:
            counts = ngram_counts
        else:
            longer = {ngram[order - length - 1 :] for ngram in ngram_counts}
            counts = Counter(ngram[1:] for ngram in longer)
        n = [sum(count == c for count in counts.values()) for c in range(5)]
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            discounts = [min(max(c - (c + 1) * y * n[c + 1] / n[c], 0.05), c) for c in (1, 2, 3)]
        else:
            discounts = [0.75] * 3
        context = history[order - length :]
        followers = {k[-1]: c for k, c in counts.items() if k[:-1] == context}
        if not followers:
            continue
        removed = {k: discounts[min(c, 3) - 1] for k, c in followers.items()}
        total = sum(followers.values())
        own = (followers[token] - removed[token]) / total if token in followers else 0
        probability = own + sum(removed.values()) / total * probability
    return probability


@pytest.mark.parametrize("order", [1, 2, 3])
def test_log_probabilities_match_brute_force(order: int) -> None:
    model = NGrams(order, VOCABULARY_SIZE).fit(DOCUMENTS)
    document = sample(30, seed=3)
    log_probabilities = model.log_probabilities(document)
    padded = (0,) * (order - 1) + tuple(document.tolist())
    for index, token in enumerate(document.tolist()[1:], 1):
        history = padded[index : index + order - 1]
        assert log_probabilities[index - 1] == pytest.approx(
            math.log(brute_force(order, history, token)), abs=1e-12
        )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    """For seen and unseen histories, and at the beginning of a document."""
    model = NGrams(order, VOCABULARY_SIZE).fit(iter(DOCUMENTS))
    for history in itertools.product(range(VOCABULARY_SIZE), repeat=order - 1):
        prefix = history or (0,)
        documents = [np.array([*prefix, token]) for token in range(VOCABULARY_SIZE)]
        total = sum(math.exp(model.log_probabilities(d)[-1]) for d in documents)
        assert total == pytest.approx(1, abs=1e-12)


def test_bigrams_have_lower_loss_than_unigrams() -> None:
    test = sample(3000, seed=9)
    documents = [sample(3000, seed=s) for s in range(4)]
    models = [NGrams(order, VOCABULARY_SIZE).fit(documents) for order in (1, 2)]
    losses = [-model.log_probabilities(test).mean() for model in models]
    assert losses[1] < losses[0] - 0.1


def test_ngrams_rejects_invalid_order() -> None:
    with pytest.raises(ValueError, match="Received: order=0"):
        NGrams(0, 10)
    with pytest.raises(ValueError, match="Received: order=5, vocabulary_size=65536"):
        NGrams(5, 2**16)


def test_fit_rejects_documents_of_one_token() -> None:
    with pytest.raises(ValueError, match="must hold a document of two tokens or more"):
        NGrams(2, 10).fit([np.array([0])])
