"""Rung 11: equivalence tests of the accuracies of models trained on two backends.

A test that does not find a difference is weak evidence, because with few runs it rarely finds one.
Equivalence is shown by two one-sided tests (TOST) instead: that the difference is below the margin,
and that it is above minus the margin. Both tests are significant at 5 % if the 90 % confidence
interval of the difference lies within the margin.

Runs with the same seed are paired: a seed has the same effect on accuracy on both backends, so the
differences are tested and the variance between seeds cancels. If a seed gives a different run on
each backend, the means are compared with Welch's test.

Source: Schuirmann, "A comparison of the two one-sided tests procedure", 1987.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Annotated, Any

import numpy as np
from scipy import stats

from zoo.validation import Positive, each, number, validated

Accuracies = Annotated[Sequence[float], each(number(), 2)]


@validated
def equivalence(
    first: Accuracies, second: Accuracies, margin: Positive, paired: bool = False
) -> dict[str, Any]:
    """Performs two one-sided tests (TOST) on the means of two samples.

    Args:
        first: Accuracies of the first backend in [0, 1], one per seed, at least two.
        second: Accuracies of the second backend in [0, 1], one per seed, at least two.
        margin: Equivalence margin: the largest difference that is irrelevant, above 0.
        paired: Whether the accuracies at the same index have the same seed and thus the same run.

    Returns:
        A dictionary with the `difference` of the means, its 90 % confidence `interval`, the
        `p_value` of the weaker test, the `effect_size` (Cohen's d: the difference in pooled
        standard deviations between seeds) and whether the samples are `equivalent` at 5 %.

    Raises:
        ValueError: If `margin` is not above 0, a sample has fewer than two numbers, or paired
            samples have different lengths.
    """
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


@validated
def compare_accuracies(
    accuracies: Mapping[str, Accuracies], margin: Positive, paired: bool = False
) -> dict[str, Any]:
    """Tests the equivalence of the accuracies of each pair of backends.

    Args:
        accuracies: Accuracies in [0, 1] by backend, one per seed.
        margin: Equivalence margin: the largest difference that is irrelevant, above 0.
        paired: Whether the accuracies at the same index have the same seed and thus the same run.

    Returns:
        A dictionary for `zoo.parity.Report.accuracy`: the accuracies, the margin, and the result
        of `equivalence` for each pair.
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
