"""How far two arrays are from each other."""

import numpy as np


def distance(a: np.ndarray, b: np.ndarray, least_scale: float = 0.0) -> float:
    """The largest difference, relative to the largest number of the two or to `least_scale`.

    Equal integers, and infinities or NaNs in the same places, are at distance 0. Arrays of
    different shapes, without a finite number, with unequal integers, or with NaNs in different
    places are at infinity.
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
        if a.size == 0:  # that both are NaN throughout is no agreement
            return float("inf")
    difference = np.abs(a.astype(np.float64) - b)
    scale = max(np.abs(a).max(), np.abs(b).max(), least_scale)
    return float(difference.max() / scale) if scale else 0.0


def typical_distance(a: np.ndarray, b: np.ndarray, least_scale: float = 0.0) -> float:
    """The root mean square of the differences, relative to that of the numbers.

    A few numbers that are far off, such as behind the kink of a ReLU, hardly count.
    """
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")

    def size(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0

    scale = max(size(a), size(b), least_scale)
    return size(a.astype(np.float64) - b) / scale if scale else 0.0
