"""Tests of the equivalence test against textbook formulas and simulated runs."""

import numpy as np
import pytest
from scipy import stats

from zoo.parity.equivalence import compare_accuracies, equivalence


def test_equivalence_matches_the_textbook_formula() -> None:
    a, b, margin = [0.971, 0.969, 0.973, 0.970], [0.970, 0.972, 0.968, 0.969, 0.971], 0.005
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 5
    error = np.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 4)
    difference = np.mean(a) - np.mean(b)
    result = equivalence(a, b, margin)
    half = stats.t.ppf(0.95, freedom) * error
    np.testing.assert_allclose(result["interval"], [difference - half, difference + half])
    p = max(
        stats.t.cdf((difference - margin) / error, freedom),
        stats.t.sf((difference + margin) / error, freedom),
    )
    assert result["p_value"] == pytest.approx(p)
    assert result["equivalent"]


def test_paired_equivalence_matches_the_textbook_formula() -> None:
    a, b, margin = np.array([0.90, 0.95, 0.99]), np.array([0.901, 0.948, 0.990]), 0.005
    differences = a - b
    error = np.std(differences, ddof=1) / np.sqrt(3)
    half = stats.t.ppf(0.95, 2) * error
    result = equivalence(a, b, margin, paired=True)
    np.testing.assert_allclose(
        result["interval"], [differences.mean() - half, differences.mean() + half]
    )
    p = max(
        stats.t.cdf((differences.mean() - margin) / error, 2),
        stats.t.sf((differences.mean() + margin) / error, 2),
    )
    assert result["p_value"] == pytest.approx(p)
    assert result["equivalent"]
    assert not equivalence(a, b, margin)["equivalent"]


def test_equivalence_means_an_interval_within_the_margin() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        a, b = generator.normal(0.97, 0.003, (2, 5))
        result = equivalence(a, b, 0.005)
        low, high = result["interval"]
        assert result["equivalent"] == (low > -0.005 and high < 0.005)


def test_equivalence_has_its_nominal_error_rate() -> None:
    """A difference as large as the margin is called equivalent in at most 5 % of the cases."""
    generator = np.random.default_rng(0)
    equivalent = sum(
        equivalence(
            generator.normal(0.975, 0.002, 5), generator.normal(0.970, 0.002, 5), margin=0.005
        )["equivalent"]
        for _ in range(2000)
    )
    assert equivalent <= 0.06 * 2000


def test_equivalence_rejects_few_noisy_runs() -> None:
    """The runs do not differ significantly either, which is no evidence of equivalence."""
    assert not equivalence([0.95, 0.99], [0.99, 0.95], 0.005)["equivalent"]


def test_equivalence_without_variance() -> None:
    assert equivalence([0.97, 0.97], [0.97, 0.97], 0.005)["equivalent"]
    assert not equivalence([0.97, 0.97], [0.98, 0.98], 0.005)["equivalent"]
    assert equivalence([0.9, 0.97], [0.9, 0.97], 0.005, paired=True)["equivalent"]


def test_compare_accuracies_tests_every_pair() -> None:
    result = compare_accuracies({"a": [0.9, 0.91], "b": [0.9, 0.91], "c": [0.5, 0.6]}, 0.005)
    assert [pair["between"] for pair in result["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert result["test_accuracy"]["c"] == [0.5, 0.6]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([0.9, 0.9], [0.9, 0.9], 0.0), "`margin` must be a finite number above 0. .*=0.0"),
        (([0.9], [0.9, 0.9], 0.01), "`first` must be a sequence of at least 2 elements"),
        (
            ([0.9] * 3, [0.9] * 2, 0.01, True),
            "where they are `paired`. Received: 3 and 2",
        ),
    ],
)
def test_equivalence_rejects_invalid_arguments(arguments: tuple, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        equivalence(*arguments)
