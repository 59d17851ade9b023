"""What the workers answered, and how near is near enough.

`u` is the unit roundoff: 2**-24 in float32, 2**-53 in float64. A sum of n rounded terms is off by
about u·sqrt(n), relative to its terms, and what one layer is off by, the next one takes in; so a
layer's tolerance grows with the square root of all the terms summed up to it. Two libraries also
compute functions such as exp with errors of some u, as if 64 more terms were summed.

float64 tells rounding from a mistake: there rounding shrinks by 2**-29, and a mistake stays. Where
float32 goes beyond its tolerance, but not far, and the same numbers agree in float64, the row says
"rounding".
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.parity import tasks
from zoo.parity.case import Case
from zoo.parity.report import STATUSES, Row, Status

U = {"float32": 2.0**-24, "float64": 2.0**-53}
FLOAT64 = 1e-10  # measured: 1e-14 in `cnn_48x48`, and 1e-15 after ten training steps


@dataclass(eq=False)
class Measurements:
    """What the workers found out.

    Attributes:
        case: what is checked.
        folder: where their arrays lie.
        names: the backends.
        precisions: those that were run.
        results: what the tasks returned, by (task, backend, precision).
        errors: why the others did not, by the same.
    """

    case: Case
    folder: Path
    names: tuple[str, ...]
    precisions: tuple[str, ...]
    results: dict[tuple[str, str, str], Any]
    errors: dict[tuple[str, str, str], str]

    def done(self, task: str, precision: str) -> list[str]:
        """The backends on which a task came to its end."""
        return [name for name in self.names if (task, name, precision) in self.results]

    def pairs(self, task: str) -> Iterator[tuple[str, str, str]]:
        """(backend, backend, precision) of all that can be compared."""
        for precision in self.precisions:
            for a, b in combinations(self.done(task, precision), 2):
                yield a, b, precision

    def arrays(self, what: str, name: str, precision: str) -> dict[str, np.ndarray]:
        with np.load(tasks.path_of(self.folder, what, name, precision)) as file:
            return dict(file)

    @property
    def single(self) -> list[str]:
        """Layers that compute in float32 in a model that is in float64."""
        found: dict[str, None] = {}
        for (task, _, precision), result in self.results.items():
            if task == "describe" and precision == "float64":
                found |= dict.fromkeys(result["single"])
        return list(found)

    @property
    def float64(self) -> float:
        """The tolerance of float64."""
        return 1e-5 if self.single else FLOAT64

    def any_result(self, task: str) -> Any:
        return next((r for (t, _, _), r in self.results.items() if t == task), None)


class Measurement(NamedTuple):
    """A distance measured between two backends, and what is allowed."""

    where: str
    distance: float
    tolerance: float
    rounding_limit: float  # how far beyond is still rounding if float64 agrees
    typical: float | None = None  # what is held against that limit; by default the distance


def summarize(
    what: str,
    between: tuple[str, ...],
    precision: str,
    readings: Iterable[Measurement],
    agrees_in_float64: bool = False,
) -> Row:
    """One row of several readings: the first that is at fault, else the farthest."""
    readings = list(readings)

    def status(reading: Measurement) -> Status:
        if reading.distance <= reading.tolerance:
            return "agrees"
        typical = reading.distance if reading.typical is None else reading.typical
        if agrees_in_float64 and typical <= reading.rounding_limit:
            return "rounding"
        return "differs"

    if not readings:
        return Row(what, between, precision, "agrees", detail="nothing to compare")
    statuses = [status(reading) for reading in readings]
    worst = max(statuses, key=STATUSES.index)
    if worst == "agrees":
        shown = max(readings, key=lambda r: r.distance / r.tolerance if r.tolerance else 0.0)
    else:
        shown = readings[statuses.index(worst)]
    return Row(what, between, precision, worst, shown.distance, shown.tolerance, shown.where)


def growth_of(called: list[tuple[str, int, int]]) -> list[float]:
    """sqrt of the terms summed up to each layer and in it."""
    total, result = 64, []
    for _, terms, _ in called:
        total += terms
        result.append(math.sqrt(total))
    return result
