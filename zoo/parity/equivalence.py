"""Rung 11: are models trained on two backends equally accurate?

That a test finds no difference says little: with few runs it rarely does. Equivalence is claimed
the other way round, by two one-sided tests: that the difference is below the margin, and that it is
above minus the margin. Both hold at 5 % where the 90 % interval of the difference lies within the
margin.

Runs that share their seeds are pairs: what a seed does to its accuracy it does on both backends, so
the differences are tested and the seeds' own spread drops out. Where a seed means another run on
each backend the means are tested, with Welch's variances.

Source: Schuirmann, "A comparison of the two one-sided tests procedure", 1987.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats


def equivalence(
    first: Sequence[float], second: Sequence[float], margin: float, paired: bool = False
) -> dict[str, Any]:
    """Two one-sided tests on the means of two samples.

    Args:
        first: accuracies in [0, 1], one a seed, at least two.
        second: likewise.
        margin: the largest difference that does not matter, above 0.
        paired: whether numbers in the same place are of the same seed and thus of the same run.

    Returns:
        `difference` of the means, its 90 % `interval`, the `p_value` of the weaker of the two
        tests, `effect_size` (the difference in standard deviations between seeds, pooled: Cohen's
        d) and whether the two are `equivalent` at 5 %.

    Raises:
        ValueError: for a margin that is not above 0, fewer than two numbers, or pairs of which one
            is missing.
    """
    if not margin > 0:
        raise ValueError(f"`margin` must be above 0. Received: margin={margin}")
    for name, values in (("first", first), ("second", second)):
        if len(values) < 2:
            raise ValueError(f"`{name}` must have at least two numbers. Received: {len(values)}")
    a, b = np.asarray(first, float), np.asarray(second, float)
    if paired and len(a) != len(b):
        raise ValueError(
            "`first` and `second` must have a number for each seed where they are `paired`. "
            f"Received: {len(a)} and {len(b)}"
        )
    difference = float(a.mean() - b.mean())
    spread = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    effect = difference / spread if spread else 0.0
    if np.ptp(a - b) == 0 if paired else spread == 0:
        within = abs(difference) < margin
        interval, p_value = [difference] * 2, float(not within)
    else:
        test = stats.ttest_rel if paired else partial(stats.ttest_ind, equal_var=False)
        interval = [float(x) for x in test(a, b).confidence_interval(0.9)]
        below = test(a - margin, b, alternative="less").pvalue
        above = test(a + margin, b, alternative="greater").pvalue
        p_value = float(max(below, above))
    return {
        "difference": difference,
        "interval": interval,
        "p_value": p_value,
        "effect_size": effect,
        "equivalent": p_value < 0.05,
    }


def compare_accuracies(
    accuracies: Mapping[str, Sequence[float]], margin: float, paired: bool = False
) -> dict[str, Any]:
    """Every two backends' accuracies, as `zoo.parity.Report.accuracy` holds them.

    Args:
        accuracies: one a seed, by backend.
        margin: as for `equivalence`.
        paired: likewise.
    """
    pairs = [
        {"between": [a, b], **equivalence(accuracies[a], accuracies[b], margin, paired)}
        for a, b in combinations(accuracies, 2)
    ]
    return {
        "test_accuracy": {name: list(values) for name, values in accuracies.items()},
        "margin": margin,
        "paired": paired,
        "pairs": pairs,
    }
