"""The n-gram models against a calculation with dictionaries, as in Chen and Goodman's paper."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from zoo.evaluation.ngrams import NGrams

SIZE = 7


def sample(length: int, seed: int = 0) -> np.ndarray:
    """Some tokens are frequent, some pairs more so, some tokens are never seen."""
    generator = np.random.default_rng(seed)
    ids = [0]
    for _ in range(length):
        ids.append((ids[-1] % 3 + 1) if generator.random() < 0.5 else int(generator.integers(1, 6)))
    return np.array(ids, np.uint16)


WORKS = [sample(40), sample(25, seed=1), sample(1, seed=2)]


def brute_force(order: int, history: tuple[int, ...], token: int) -> float:
    """p(token | history) by the formula, from the n-grams one by one."""
    seen: Counter = Counter()
    for work in WORKS:
        padded = (0,) * (order - 1) + tuple(work.tolist())
        for end in range(order, len(padded)):
            seen[padded[end - order + 1 : end + 1]] += 1
    probability = 1 / SIZE
    for length in range(1, order + 1):
        if length == order:
            counts = seen
        else:
            counts = Counter(longer[1:] for longer in {n[order - length - 1 :] for n in seen})
        n = [sum(count == c for count in counts.values()) for c in range(5)]
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            discounts = [min(max(c - (c + 1) * y * n[c + 1] / n[c], 0.05), c) for c in (1, 2, 3)]
        else:
            discounts = [0.75] * 3
        context = history[order - length :]
        after = {k[-1]: c for k, c in counts.items() if k[:-1] == context}
        if not after:
            continue
        taken = {k: discounts[min(c, 3) - 1] for k, c in after.items()}
        total = sum(after.values())
        own = (after[token] - taken[token]) / total if token in after else 0
        probability = own + sum(taken.values()) / total * probability
    return probability


@pytest.mark.parametrize("order", [1, 2, 3])
def test_against_brute_force(order: int) -> None:
    model = NGrams(order, SIZE).fit(WORKS)
    work = sample(30, seed=3)
    found = model.log_probabilities(work)
    padded = (0,) * (order - 1) + tuple(work.tolist())
    for number, token in enumerate(work.tolist()[1:], 1):
        history = padded[number : number + order - 1]
        assert found[number - 1] == pytest.approx(
            math.log(brute_force(order, history, token)), abs=1e-12
        )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    """After histories that were seen, that were not, and at a work's beginning."""
    model = NGrams(order, SIZE).fit(iter(WORKS))
    for history in itertools.product(range(SIZE), repeat=order - 1):
        rows = [np.array([*history, token]) for token in range(SIZE)]
        if order == 1:
            rows = [np.array([0, token]) for token in range(SIZE)]
        total = sum(math.exp(model.log_probabilities(row)[-1]) for row in rows)
        assert total == pytest.approx(1, abs=1e-12)


def test_longer_histories_tell_more() -> None:
    test = sample(3000, seed=9)
    works = [sample(3000, seed=s) for s in range(4)]
    losses = [-NGrams(order, SIZE).fit(works).log_probabilities(test).mean() for order in (1, 2)]
    assert losses[1] < losses[0] - 0.1


@pytest.mark.parametrize(("order", "size"), [(0, 10), (5, 2**16)])
def test_orders_that_cannot_be(order: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"Received: order={order}, vocabulary_size={size}"):
        NGrams(order, size)


def test_nothing_to_count() -> None:
    with pytest.raises(ValueError, match="must hold a work of two tokens or more"):
        NGrams(2, 10).fit([np.array([0])])
