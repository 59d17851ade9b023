"""Relative distances between two arrays."""

import numpy as np


def distance(a: np.ndarray, b: np.ndarray, min_scale: float = 0.0) -> float:
    """Relative maximum distance of two arrays.

    The largest absolute difference is divided by the largest absolute value in the two arrays.
    Differences are computed in float64. Non-finite values are compared by position.

    Args:
        a: First array, of any shape.
        b: Second array, of the same shape.
        min_scale: Smallest divisor, so that values that are zero except for rounding are not
            compared with themselves.

    Returns:
        The distance. It is 0 for equal integers and for empty arrays; infinities and NaNs at the
        same positions are ignored. It is infinite for different shapes, for unequal integers, for
        non-finite values that differ, and for arrays without a finite value.
    """
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return 0.0 if (a == b).all() else float("inf")
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return float("inf")
        a, b = a[finite], b[finite]
        if a.size == 0:  # two arrays of NaNs do not count as agreement
            return float("inf")
    difference = np.abs(a.astype(np.float64) - b)
    scale = max(np.abs(a).max(), np.abs(b).max(), min_scale)
    return float(difference.max() / scale) if scale else 0.0


def typical_distance(a: np.ndarray, b: np.ndarray, min_scale: float = 0.0) -> float:
    """Relative root mean square distance of two arrays.

    A few large differences, such as those at the kink of a ReLU, have little influence.

    Args:
        a: First array, of any shape.
        b: Second array, of the same shape.
        min_scale: Smallest divisor.

    Returns:
        The root mean square of the differences, divided by the larger root mean square of the two
        arrays. It is infinite for different shapes and where a value is not finite.
    """
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")

    def root_mean_square(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0

    scale = max(root_mean_square(a), root_mean_square(b), min_scale)
    return root_mean_square(a.astype(np.float64) - b) / scale if scale else 0.0
