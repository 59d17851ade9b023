"""Results of the workers, distances between backends, and their tolerances.

`u` is the unit roundoff: 2**-24 in float32, 2**-53 in float64. A sum of n rounded terms has an
error of about u·sqrt(n), relative to its terms, and a layer's error propagates to the next layer.
The tolerance of a layer therefore grows with the square root of all terms summed up to this layer.
Libraries also compute functions such as exp with errors of some u, as if 64 more terms were summed.

float64 distinguishes rounding from a mistake: rounding errors shrink by 2**-29, a mistake does not.
If a float32 distance exceeds its tolerance moderately and the same arrays agree in float64, the
status of the row is "rounding". A layer with a 16-bit dtype policy rounds to 16 bits in both; the
tolerances behind it are those of 16 bits.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.evaluation.distance import distance
from zoo.parity import tasks
from zoo.parity.case import Case
from zoo.parity.report import STATUSES, Row, Status

U = {"float32": 2.0**-24, "float64": 2.0**-53}
U16 = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # of layers with a dtype policy of their own
LARGEST_TOLERANCE = 0.5  # beyond, a mistake of the size of the numbers would be within
FLOAT32 = 1e-5  # of a model in float64 with layers that compute in float32
FLOAT64 = 1e-10  # measured: 1e-14 in `cnn_48x48`, and 1e-15 after ten training steps


@dataclass(eq=False)
class Measurements:
    """Results of all tasks of a check.

    Attributes:
        case: Case that is checked.
        folder: Folder of the arrays that the workers write.
        names: Names of the backends.
        precisions: Precisions of the workers, "float32" and "float64".
        results: Return values of the finished tasks, by (task, backend, precision).
        errors: Error texts of the failed tasks, by (task, backend, precision).
    """

    case: Case
    folder: Path
    names: tuple[str, ...]
    precisions: tuple[str, ...]
    results: dict[tuple[str, str, str], Any]
    errors: dict[tuple[str, str, str], str]
    _first: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    def done(self, task: str, precision: str) -> list[str]:
        """Returns the names of the backends on which a task has finished."""
        return [name for name in self.names if (task, name, precision) in self.results]

    def pairs(self, task: str) -> Iterator[tuple[str, str, str]]:
        """Yields (backend, backend, precision) of all results of a task that can be compared."""
        for precision in self.precisions:
            for a, b in combinations(self.done(task, precision), 2):
                yield a, b, precision

    def arrays(self, kind: str, name: str, precision: str) -> dict[str, np.ndarray]:
        """Loads a worker's arrays of one kind, such as "gradients", by name."""
        with np.load(tasks.path_of(self.folder, kind, name, precision)) as file:
            return dict(file)

    def float32_distances(
        self, task: str, kind: str, a: str, b: str, min_scale: float = 0.0
    ) -> dict[str, float]:
        """Distances in float32 between two backends' arrays of one kind, by name."""
        if not {a, b} <= {*self.done(task, "float32")}:
            return {}
        first, second = (self.arrays(kind, name, "float32") for name in (a, b))
        names = first.keys() & second.keys()
        return {name: distance(first[name], second[name], min_scale) for name in names}

    @property
    def float32_layers(self) -> list[str]:
        """Layers that compute in float32 in a float64 model, wholly or on a backend that is named.

        A layer whose outputs are float32 numbers on some backends only computes in float32 there.
        So does one that has results in float32 and is the first whose outputs are no nearer to
        each other than that.
        """
        layers: dict[str, None] = {}
        for (task, _, precision), result in self.results.items():
            if task == "describe" and precision == "float64":
                dtypes = result["dtypes"].items()
                layers |= dict.fromkeys(path for path, dtype in dtypes if dtype == "float32")
        names = self.done("outputs", "float64")
        by_mode = [self.results["outputs", name, "float64"]["inference"] for name in names]
        previous: list[str] = []  # a layer may only pass on what it is given
        for calls in zip(*by_mode):
            rounding = [name for name, call in zip(names, calls) if call.in_float32]
            if 0 < len(rounding) < len(names) and rounding != previous:
                layers[f"{calls[0].path} on {' and '.join(rounding)}"] = None
            previous = rounding
        named = {layer.partition(" on ")[0] for layer in layers}
        layers |= {path: None for path in self._first_with_float32() if path not in named}
        return list(layers)

    def _first_with_float32(self) -> list[str]:
        """In each mode the first layer that differs in float64, if float32 explains it."""
        names = tuple(self.done("outputs", "float64"))
        if names not in self._first:  # reading the arrays takes long
            paths = []
            for mode in ("inference", "training") if len(names) > 1 else ():
                calls = zip(*(self.results["outputs", name, "float64"][mode] for name in names))
                arrays = [self.arrays(mode, name, "float64") for name in names]
                for index, same in enumerate(calls):
                    outputs = [by_call[str(index)] for by_call in arrays]
                    largest = max(distance(a, b) for a, b in combinations(outputs, 2))
                    if not largest <= FLOAT64:
                        if largest < FLOAT32 and any(call.uses_float32 for call in same):
                            paths.append(same[0].path)
                        break
            self._first[names] = paths
        return self._first[names]

    @property
    def failing_in_float64(self) -> list[str]:
        """Backends on which a task fails in float64 and not in float32."""
        failing = {
            name
            for task, name, precision in self.errors
            if precision == "float64" and (task, name, "float32") in self.results
        }
        return sorted(failing)

    @property
    def half_precision_layers(self) -> dict[str, str]:
        """Layers that compute in 16 bits, with their dtypes."""
        described = self.any_result("describe") or {"dtypes": {}}
        return {path: dtype for path, dtype in described["dtypes"].items() if dtype in U16}

    @property
    def half_precision(self) -> float:
        """Rounding error of the model's layers in 16 bits, 0 without such layers."""
        return 4 * math.hypot(*(U16[dtype] for dtype in self.half_precision_layers.values()))

    @property
    def float64(self) -> float:
        """Tolerance of distances in float64."""
        return FLOAT32 if self.float32_layers else FLOAT64

    def any_result(self, task: str) -> Any:
        """Returns the result of a task on any backend, or None."""
        return next((r for (t, _, _), r in self.results.items() if t == task), None)


class Measurement(NamedTuple):
    """Distance between two backends and its limits.

    Attributes:
        where: Layer, weight or step that is compared.
        distance: Relative maximum distance.
        tolerance: Largest distance that counts as agreement.
        rounding_limit: Largest typical distance that counts as rounding if float64 agrees.
        typical: Relative root mean square distance; by default `distance`.
    """

    where: str
    distance: float
    tolerance: float
    rounding_limit: float
    typical: float | None = None


def summarize(
    comparison: str,
    between: tuple[str, ...],
    precision: str,
    distances: Iterable[Measurement],
    agrees_in_float64: bool | None = False,
) -> Row:
    """Summarizes several distances in one row of the report.

    The row shows the first distance with the most severe status. If all distances are within their
    tolerances, the row shows the one that is largest relative to its tolerance.

    Args:
        comparison: Name of the comparison.
        between: Names of the backends that are compared.
        precision: Precision of the compared arrays.
        distances: Distances of the layers, weights or steps, in order.
        agrees_in_float64: Whether the same comparison agrees in float64; None if float64 failed.
    """
    distances = list(distances)

    def status(measurement: Measurement) -> Status:
        if math.isnan(measurement.distance):
            return "failed"
        if measurement.distance <= measurement.tolerance:
            if measurement.tolerance < LARGEST_TOLERANCE:
                return "agrees"
            return "rounding" if agrees_in_float64 else "ruled out"
        typical = measurement.distance if measurement.typical is None else measurement.typical
        if agrees_in_float64 is False or typical > measurement.rounding_limit:
            return "differs"
        return "rounding" if agrees_in_float64 else "ruled out"

    if not distances:
        return Row(comparison, between, precision, "ruled out", detail="nothing to compare")
    statuses = [status(measurement) for measurement in distances]
    worst = max(statuses, key=STATUSES.index)
    if worst == "agrees" and "ruled out" not in statuses:
        shown = max(distances, key=lambda m: m.distance / m.tolerance if m.tolerance else 0.0)
    else:
        worst = "ruled out" if worst == "agrees" else worst
        shown = distances[statuses.index(worst)]
    detail = ""
    if worst == "failed":
        detail = "no number is finite, on either backend"
    elif worst == "ruled out" and shown.tolerance >= LARGEST_TOLERANCE:
        detail = "rounding is as large as the numbers"
    elif worst == "ruled out":
        detail = "may be rounding: float64, which would tell, failed"
    return Row(
        comparison, between, precision, worst, shown.distance, shown.tolerance, shown.where, detail
    )


def half_precision_errors(layer_calls: Sequence[tasks.LayerCall]) -> list[float]:
    """Computes the rounding error of the layers in 16 bits up to each layer: 4·u·sqrt(layers).

    Products of 16-bit numbers are summed in float32, so a layer rounds its inputs, its weights and
    its outputs only.
    """
    total, result = 0.0, []
    for call in layer_calls:
        total += U16.get(call.dtype, 0.0) ** 2
        result.append(4 * math.sqrt(total))
    return result


def float64_tolerance(measurements: Measurements, float32_distance: float | None) -> float:
    """Tolerance of a distance in float64, from the distance of the same numbers in float32.

    An ill-conditioned computation amplifies rounding in float64, too, and then far more in float32.
    """
    if float32_distance is None or not math.isfinite(float32_distance):
        return measurements.float64
    return max(measurements.float64, 16 * float32_distance * U["float64"] / U["float32"])


def error_growth(layer_calls: Sequence[tasks.LayerCall]) -> list[float]:
    """Computes the error growth of each layer: the square root of all terms summed up to the layer.

    Args:
        layer_calls: Calls of the layers, in order.
    """
    total, result = 64, []
    for call in layer_calls:
        total += call.terms
        result.append(math.sqrt(total))
    return result
