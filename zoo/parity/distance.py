"""How far two arrays are from each other."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Farthest(NamedTuple):
    """The largest of some distances, and whose it is."""

    where: str
    distance: float


def distance(a: np.ndarray, b: np.ndarray, least_scale: float = 0.0) -> float:
    """The largest difference, relative to the largest number of the two or to `least_scale`.

    Equal integers, and infinities or NaNs in the same places, are at distance 0. Arrays of
    different shapes, unequal integers and NaNs in different places are at infinity.
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
        if a.size == 0:
            return 0.0
    difference = np.abs(a.astype(np.float64) - b)
    scale = max(np.abs(a).max(), np.abs(b).max(), least_scale)
    return float(difference.max() / scale) if scale else 0.0


def farthest(distances: Iterable[tuple[str, float]]) -> Farthest:
    """The first of the largest; of none, nothing at distance 0."""
    largest = Farthest("", 0.0)
    for name, value in distances:
        if value > largest.distance:
            largest = Farthest(name, value)
    return largest
