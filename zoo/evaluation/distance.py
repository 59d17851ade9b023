"""Relative distances between two arrays."""

import numpy as np

from zoo.validation import NonNegative, NumberArray, Positive, validated

_HUGE = 1e4  # smallest magnitude of numbers that are compared apart from far smaller ones
_GAP = 1e3  # smallest ratio between the two


@validated
def distance(a: NumberArray, b: NumberArray, min_scale: NonNegative = 0.0) -> float:
    """Relative maximum distance of two arrays.

    The largest absolute difference is divided by the largest absolute value in the two arrays.
    Numbers such as -1e9 in a mask are compared apart from the others, which are a thousand times
    smaller. Differences are computed in float64. Non-finite values are compared by position.

    Args:
        a: First array, of any shape.
        b: Second array, of the same shape.
        min_scale: Smallest divisor, so that values that are zero except for rounding are not
            compared with themselves.

    Returns:
        The distance. It is 0 for equal integers and for empty arrays; infinities and NaNs at the
        same positions are ignored. It is infinite for different shapes, for unequal integers and
        for non-finite values that differ, and NaN for equal arrays without a finite value.
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
            return float("nan")
    difference = np.abs(a.astype(np.float64) - b).ravel()
    magnitude = np.maximum(np.abs(a), np.abs(b)).astype(np.float64).ravel()
    return _relative(difference, magnitude, min_scale, float(np.finfo(a.dtype).eps))


def _relative(
    difference: np.ndarray, magnitude: np.ndarray, min_scale: float, epsilon: float
) -> float:
    """Largest difference relative to the largest magnitude, of huge numbers and others apart."""
    largest = magnitude.max()
    scale = max(largest, min_scale)
    if scale == 0:
        return 0.0
    relative = float(difference.max() / scale)
    ordered = np.sort(magnitude) if largest >= _HUGE else magnitude[:1]
    gaps = np.flatnonzero((ordered[1:] >= _HUGE) & (ordered[1:] > _GAP * ordered[:-1]))
    if not gaps.size:
        return relative
    border = ordered[gaps[-1] + 1]
    others = magnitude < border
    is_mask = border > 0.999 * largest
    # Small numbers beside huge ones that vary may be the rounding of their sums.
    if not is_mask and magnitude[others].max() <= 64 * epsilon * largest:
        return relative
    return max(
        float(difference[~others].max() / scale),
        _relative(difference[others], magnitude[others], min_scale, epsilon),
    )


@validated
def column_distance(a: NumberArray, b: NumberArray, floor: Positive = 1e-3) -> float:
    """Relative maximum distance of the columns of two arrays, for columns of different units.

    The differences in a column, an index of the last axis, are divided by its own largest absolute
    value, but at least by `floor` times that of the arrays: smaller columns may be the rounding of
    sums whose terms cancel.

    Args:
        a: First array, (..., columns).
        b: Second array, of the same shape.
        floor: Smallest divisor, relative to the largest absolute value in the arrays.

    Returns:
        The distance. It is 0 where `distance` tells all there is: for arrays of fewer than two
        axes, of different shapes, without elements or not floating-point. Columns with a value that
        is not finite are left out.
    """
    if a.shape != b.shape or a.ndim < 2 or a.size == 0 or a.dtype.kind != "f":
        return 0.0
    rows = [x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (a, b)]
    finite = np.isfinite(rows[0]).all(0) & np.isfinite(rows[1]).all(0)
    if not finite.any():
        return 0.0
    first, second = (x[:, finite] for x in rows)
    magnitude = np.maximum(np.abs(first).max(0), np.abs(second).max(0))
    scale = np.maximum(magnitude, floor * magnitude.max())
    difference = np.abs(first - second).max(0)
    return float((difference[scale > 0] / scale[scale > 0]).max(initial=0.0))


@validated
def typical_distance(a: NumberArray, b: NumberArray, min_scale: NonNegative = 0.0) -> float:
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
