"""Tests of the relative distances between arrays."""

import numpy as np
import pytest

from zoo.evaluation.distance import column_distance, distance, typical_distance

pytestmark = pytest.mark.once

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], 0.25),  # relative to the largest value
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([], [], 0.0),
        ([1.0, NAN, -INF], [1.0, NAN, -INF], 0.0),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, INF], [1.0, -INF], INF),
        ([NAN], [NAN], NAN),  # nothing to compare
        ([NAN, INF], [NAN, INF], NAN),
        ([[1.0, 2.0]], [1.0, 2.0], INF),  # different shapes
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], INF),
        ([True], [True], 0.0),
    ],
)
def test_distance(a: list, b: list, expected: float) -> None:
    assert distance(np.array(a), np.array(b)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("mask", [-1e9, -65504.0, 1e30, -3e38])
def test_distance_compares_masked_scores_apart_from_others(mask: float) -> None:
    a = np.array([[mask, 2.0, 1.0], [mask, mask, 4.0]], np.float32)
    b = a * np.where(abs(a) < 100, 1.001, 1).astype(np.float32)
    assert distance(a, b) == pytest.approx(1e-3, rel=1e-2)
    assert distance(a, a) == 0
    b = a * np.where(abs(a) < 100, 1, 1.001).astype(np.float32)
    assert distance(a, b) == pytest.approx(1e-3, rel=1e-2)


def test_distance_takes_the_rounding_of_large_sums_for_rounding() -> None:
    """Beside numbers of 1e6 to 3e6, 0.1 may be what is left of a sum of such numbers."""
    a = np.array([1e6, 2e6, 3e6, 0.1], np.float32)
    b = np.array([1e6, 2e6, 3e6, 0.2], np.float32)
    assert distance(a, b) < 1e-7
    assert distance(a.astype(float), b.astype(float)) == pytest.approx(0.5, rel=1e-6)


def test_distance_min_scale() -> None:
    """Values that are zero except for rounding are not compared with themselves."""
    a, b = np.array([1e-17]), np.array([-1e-17])
    assert distance(a, b) == 2.0
    assert distance(a, b, min_scale=0.01) == pytest.approx(2e-15)


def test_distance_computes_differences_in_float64() -> None:
    a = np.array([1.0], np.float32)
    assert distance(a, a + np.float32(2**-23)) == pytest.approx(2.0**-23, rel=1e-6)
    assert distance(np.array([1], np.int32), np.array([1], np.uint32)) == 0.0


def test_column_distance_compares_columns_of_different_units() -> None:
    a = np.array([[1e8, 0.5], [3e8, 0.7]])
    b = a * [1.0, 1.001]
    # The small column counts as a thousandth of the large one.
    assert column_distance(a, b) == pytest.approx(0.0007 / 3e5, rel=1e-6)
    assert column_distance(a, b, floor=1e-12) == pytest.approx(0.001, rel=0.01)
    assert (
        column_distance(a, np.add(a, [0.0, np.nan])) == 0.0
    )  # `distance` compares what is not finite
    assert column_distance(np.zeros((2, 3)), np.zeros((2, 3))) == 0.0
    assert column_distance(a[0], b[0]) == column_distance(a, b[:1]) == 0.0


def test_typical_distance_is_insensitive_to_single_outliers() -> None:
    a = np.ones(10_000)
    b = a.copy()
    b[0] = 2.0
    assert distance(a, b) == 0.5
    assert typical_distance(a, b) == pytest.approx(0.01, rel=1e-3)
    assert typical_distance(a, -a) == 2.0
    assert typical_distance(a, a[:-1]) == INF
    assert typical_distance(a, np.full_like(a, NAN)) == INF
    assert typical_distance(np.zeros(2), np.zeros(2)) == 0.0
