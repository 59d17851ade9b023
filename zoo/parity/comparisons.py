"""Comparisons of the rungs: convert the workers' results to rows of the report.

`zoo.parity.rungs` lists the tolerances, `zoo.parity.measurements` explains their derivation.
"""

import math
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from zoo.evaluation.distance import column_distance, distance, typical_distance
from zoo.parity import tasks
from zoo.parity.measurements import (
    U16,
    Measurement,
    Measurements,
    U,
    error_growth,
    float64_tolerance,
    half_precision_errors,
    summarize,
)
from zoo.parity.report import Row, Status


def parameters(measurements: Measurements) -> Iterator[Row]:
    """Compares names, shapes, dtypes, parameter counts and initial weights."""
    precision = measurements.precisions[0]
    names = measurements.done("describe", precision)
    described = {name: measurements.results["describe", name, precision] for name in names}
    for a, b in combinations(names, 2):
        ours, theirs = described[a]["variables"], described[b]["variables"]
        for path in [*ours, *(path for path in theirs if path not in ours)]:
            if path not in ours or path not in theirs:
                detail = f"only on {a if path in ours else b}"
            elif path in described[a]["generators"]:
                continue
            elif ours[path][0] != theirs[path][0]:
                detail = f"shape {ours[path][0]} and {theirs[path][0]}"
            elif ours[path][1] != theirs[path][1] and "float" in ours[path][1]:
                detail = f"{ours[path][1]} and {theirs[path][1]}"
            elif ours[path][2] != theirs[path][2]:
                detail = "trainable on one only"
            else:
                continue
            yield Row("variables", (a, b), precision, "differs", where=path, detail=detail)
            break
        else:
            count = f"{len(ours)} variables, {described[a]['parameters']:,} parameters"
            outcome: Status = "agrees" if ours else "ruled out"
            yield Row("variables", (a, b), precision, outcome, detail=count)
        digests, other_digests = described[a]["digests"], described[b]["digests"]
        unequal = [path for path in digests if digests[path] != other_digests.get(path)]
        comparison = "initial weights"
        if not digests:
            yield Row(comparison, (a, b), precision, "ruled out", detail="nothing to compare")
        elif not unequal:
            yield Row(comparison, (a, b), precision, "agrees", detail="the same bits")
        elif measurements.case.portable:
            detail = "different bits, although the model is registered as portable"
            yield Row(comparison, (a, b), precision, "differs", where=unequal[0], detail=detail)
        else:
            detail = (
                f"{len(unequal)} tensors come from the backend's own generator; the check loads "
                "the same weights on all backends"
            )
            yield Row(comparison, (a, b), precision, "ruled out", where=unequal[0], detail=detail)
    for name in names if measurements.case.parameters is not None else ():
        count, expected = described[name]["parameters"], measurements.case.parameters
        status: Status = "agrees" if count == expected else "differs"
        detail = f"{count:,}; the closed form gives {expected:,}"
        yield Row("closed form", (name,), precision, status, detail=detail)


def outputs(precision: str) -> Callable[[Measurements], Iterator[Row]]:
    """Creates the comparison of all layer outputs, in the order of the calls."""

    def compare(measurements: Measurements) -> Iterator[Row]:
        in_float64 = measurements.done("outputs", "float64") if precision == "float32" else []
        for mode in ("inference", "training"):
            for a, b in combinations(measurements.done("outputs", precision), 2):
                distances = layer_distances(measurements, mode, a, b, precision)
                agrees_in_float64 = {a, b} <= {*in_float64} and all(
                    measurement.distance <= measurement.tolerance
                    for measurement in layer_distances(measurements, mode, a, b, "float64")
                )
                # The tolerance includes the measured rounding, so there is no second limit.
                yield summarize(f"{mode} mode", (a, b), precision, distances, agrees_in_float64)

    return compare


def layer_distances(
    measurements: Measurements, mode: str, a: str, b: str, precision: str
) -> list[Measurement]:
    """Measures the distance of every layer's output between two backends.

    Args:
        measurements: Results of all tasks.
        mode: Mode of the call, "inference" or "training".
        a: Name of the first backend.
        b: Name of the second backend.
        precision: Precision of the workers, "float32" or "float64".
    """
    layer_calls, other_calls = (
        measurements.results["outputs", name, precision][mode] for name in (a, b)
    )
    if [path for path, *_ in layer_calls] != [path for path, *_ in other_calls]:
        pairs = zip(layer_calls, other_calls)
        path = next((x[0] for x, y in pairs if x[0] != y[0]), "the last layers")
        return [Measurement(f"{path} (layers are called in another order)", math.inf, 0.0, 0.0)]
    first, second = (measurements.arrays(mode, name, precision) for name in (a, b))
    rounding = _rounding_errors(measurements, mode) if precision == "float32" else {}
    in_float32 = {}
    if precision == "float64":
        in_float32 = measurements.float32_distances("outputs", mode, a, b)
    distances = []
    growths, errors = error_growth(layer_calls), half_precision_errors(layer_calls)
    for i, ((path, *_), growth, error) in enumerate(zip(layer_calls, growths, errors)):
        tolerance = float64_tolerance(measurements, in_float32.get(str(i)))
        if precision == "float32":
            tolerance = max(8 * U[precision] * growth, 16 * rounding.get(str(i), 0.0))
        tolerance = max(tolerance, error)
        arrays = first[str(i)], second[str(i)]
        if not any(array.size for array in arrays):
            continue
        relative = distance(*arrays)
        if precision == "float64":  # float32 rounds small columns beside large ones too much
            relative = max(relative, column_distance(*arrays))
        distances.append(Measurement(path, relative, tolerance, tolerance))
    return distances


def _rounding_errors(measurements: Measurements, kind: str) -> dict[str, float]:
    """Measures the distance between float32 and float64 of each array, minimal over the backends.

    An ill-conditioned computation amplifies rounding on all backends; a mistake is on one backend.
    """
    smallest: dict[str, float] = {}
    for name in measurements.done("outputs", "float32"):
        if name not in measurements.done("outputs", "float64"):
            continue
        single, double = (measurements.arrays(kind, name, p) for p in ("float32", "float64"))
        for key in single.keys() & double.keys():
            error = distance(single[key].astype(np.float64), double[key])
            if math.isfinite(error):
                smallest[key] = min(error, smallest.get(key, math.inf))
    return smallest


def _compare_pairs(
    measurements: Measurements,
    task: str,
    comparison: str,
    distances: Callable[[str, str, str], list[Measurement]],
) -> Iterator[Row]:
    """Yields a row for each pair and precision; float64 decides whether float32 is rounding."""
    agrees: dict[tuple[str, str], bool] = {}
    unknown = None if "float64" in measurements.precisions else False
    for a, b, precision in sorted(measurements.pairs(task), key=lambda pair: pair[2], reverse=True):
        rounding = agrees.get((a, b), unknown) if precision == "float32" else False
        row = summarize(comparison, (a, b), precision, distances(a, b, precision), rounding)
        if precision == "float64":
            agrees[a, b] = row.status == "agrees"
        yield row


def gradients(measurements: Measurements) -> Iterator[Row]:
    """Compares the loss and its gradients, in the order of the backward pass."""

    def distances(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (measurements.arrays("gradients", name, precision) for name in (a, b))
        order, positions, growth = _backward_order(measurements, list(first))
        min_scale = _min_gradient_scale(first)
        in_float32 = measurements.float32_distances("gradients", "gradients", a, b, min_scale)
        result = []
        for path in order:
            tolerance = float64_tolerance(measurements, in_float32.get(path))
            if precision == "float32":
                tolerance = 8 * U[precision] * math.sqrt(2 * growth**2 + positions)
            tolerance = max(tolerance, 4 * measurements.half_precision)
            if path not in second:  # rung 1 reports it
                result.append(Measurement(path, math.inf, tolerance, tolerance))
                continue
            x, y = first[path], second[path]
            scale = 0.0 if path == "loss" else min_scale
            relative, typical = distance(x, y, scale), typical_distance(x, y, scale)
            result.append(Measurement(path, relative, tolerance, 100 * tolerance, typical))
        return result

    yield from _compare_pairs(measurements, "gradients", "loss and gradients", distances)


def _min_gradient_scale(arrays: dict[str, np.ndarray]) -> float:
    """Returns a hundredth of the largest gradient, the smallest divisor of gradient distances.

    Some gradients are 0 except for rounding, such as that of a bias before a normalization.
    """
    finite = (x[np.isfinite(x)] for k, x in arrays.items() if k != "loss")
    return 0.01 * max((float(np.abs(x).max(initial=0)) for x in finite), default=0.0)


def _backward_order(measurements: Measurements, paths: list[str]) -> tuple[list[str], int, float]:
    """Sorts the loss and the weights in the order of the backward pass.

    Returns:
        The sorted paths, the largest number of positions at which a weight is used, and the error
        growth of the model.
    """
    described = measurements.any_result("describe")
    layer_calls = (measurements.any_result("outputs") or {}).get("training", [])
    call_numbers = {path: i for i, (path, *_) in enumerate(layer_calls)}
    owners = described["owners"] if described else {}
    weights = [path for path in paths if path != "loss"]

    def position(path: str) -> int:
        owner = owners.get(path, "")
        while owner and owner not in call_numbers:  # a cell has the position of its layer
            owner = owner.rpartition("/")[0]
        return -call_numbers.get(owner, 0)

    positions = max((call.positions for call in layer_calls), default=1)
    growth = error_growth(layer_calls)[-1] if layer_calls else 8.0
    return ["loss", *sorted(weights, key=position)], positions, growth


def optimizer_steps(measurements: Measurements) -> Iterator[Row]:
    """Compares the weights after two steps of each optimizer with the same gradients."""
    names = measurements.any_result("optimizer_steps") or []
    loaded = {
        (name, precision): measurements.arrays("optimizers", name, precision)
        for precision in measurements.precisions
        for name in measurements.done("optimizer_steps", precision)
    }

    for optimizer in names:

        def distances(
            a: str, b: str, precision: str, optimizer: str = optimizer
        ) -> list[Measurement]:
            first, second = loaded[a, precision], loaded[b, precision]
            tolerance = measurements.float64 if precision == "float64" else 32 * U[precision]
            return [
                Measurement(
                    key.removeprefix(f"{optimizer}: "),
                    distance(first[key], second[key]) if key in second else math.inf,
                    tolerance,
                    256 * tolerance,
                )
                for key in first
                if key.startswith(f"{optimizer}: ")
            ]

        yield from _compare_pairs(measurements, "optimizer_steps", optimizer, distances)


def training(measurements: Measurements) -> Iterator[Row]:
    """Compares the losses of training steps from the same seed."""

    def distances(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (
            measurements.arrays("losses", name, precision)["losses"] for name in (a, b)
        )
        result = []
        for step, (x, y) in enumerate(zip(first, second), 1):
            tolerance = min(1e-6 * 2**step, 1e-2)
            if precision == "float64":
                tolerance = max(measurements.float64, min(U["float64"] * 2**step, 1e-2))
            tolerance = max(tolerance, 4 * measurements.half_precision)
            relative = distance(np.atleast_1d(x), np.atleast_1d(y))
            rounding_limit = min(100 * tolerance, 0.1)
            result.append(Measurement(f"step {step}", relative, tolerance, rounding_limit))
        return result

    yield from _compare_pairs(measurements, "train", f"{measurements.case.steps} losses", distances)


def state(measurements: Measurements) -> Iterator[Row]:
    """Compares statistics, states and counters after a call in training mode."""
    described = measurements.any_result("describe")
    owners = described["owners"] if described else {}

    def distances(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (measurements.arrays("state", name, precision) for name in (a, b))
        layer_calls = measurements.results["outputs", a, precision]["training"]
        growth = {path: g for (path, *_), g in zip(layer_calls, error_growth(layer_calls))}
        rounding = _rounding_errors(measurements, "training") if precision == "float32" else {}
        rounding_by_path = {
            path: rounding.get(str(i), 0.0) for i, (path, *_) in enumerate(layer_calls)
        }
        result = []
        for path in [*first, *(path for path in second if path not in first)]:
            owner = owners.get(path, "")
            tolerance = measurements.float64
            if precision == "float32":
                rounding_limit = 16 * rounding_by_path.get(owner, 0.0)
                tolerance = max(8 * U[precision] * growth.get(owner, 8.0), rounding_limit)
            tolerance = max(tolerance, measurements.half_precision)
            common = path in first and path in second
            relative = distance(first[path], second[path]) if common else math.inf
            result.append(Measurement(path, relative, tolerance, 100 * tolerance))
        return result

    yield from _compare_pairs(measurements, "outputs", "after a call in training mode", distances)
    for name in measurements.names:
        result = measurements.results.get(("describe", name, measurements.precisions[0]))
        for paths in result["shared streams"] if result else ():
            detail = "these layers draw the same random numbers; give them different names or seeds"
            where = ", ".join(paths)
            yield Row("random streams", (name,), "", "differs", where=where, detail=detail)


def samples(measurements: Measurements) -> Iterator[Row]:
    """Compares generated arrays: tokens exactly, images with a tolerance."""

    def distances(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (measurements.arrays("samples", name, precision) for name in (a, b))
        tolerance = measurements.float64 if precision == "float64" else 1e-4
        return [
            Measurement(
                key,
                distance(first[key], second[key]) if key in first and key in second else math.inf,
                tolerance,
                tolerance,
            )
            for key in {**first, **second}
        ]

    yield from _compare_pairs(measurements, "sample", "generated", distances)


def checkpoints(measurements: Measurements) -> Iterator[Row]:
    """Compares the step after a restored checkpoint with the same step of the original training."""
    agrees: dict[tuple[str, str, str], bool] = {}
    limits = {  # in float32: the tolerance, and the rounding limit if float64 agrees
        "loss": (1e-5, 1e-3),
        # Adam divides a gradient by its size, so rounding determines steps of gradients near 0.
        "variable": (1e-5, 1e-1),
        "output": (1e-4, 1e-2),
    }
    for precision in sorted(measurements.precisions, reverse=True):
        for target in measurements.done("resume", precision):
            for source, resumed in measurements.results["resume", target, precision].items():
                distances = []
                for where, relative in resumed:
                    tolerance, limit = limits[where.partition(" ")[0]]
                    if precision == "float64":
                        tolerance = limit = measurements.float64
                    tolerance = max(tolerance, 4 * measurements.half_precision)
                    distances.append(Measurement(where, relative, tolerance, limit))
                row = summarize(
                    f"saved on {source}, resumed on {target}",
                    (source, target),
                    precision,
                    distances,
                    agrees.get((source, target, "float64"), False),
                )
                agrees[source, target, precision] = row.status == "agrees"
                yield row


def variants(measurements: Measurements) -> Iterator[Row]:
    """Compares compiled, bfloat16 and CPU outputs with a backend's own eager float32 outputs."""
    for name in measurements.done("variants", "float32"):
        if name not in measurements.done("outputs", "float32"):
            continue
        layer_calls = measurements.results["outputs", name, "float32"]["inference"]
        eager = list(measurements.arrays("inference", name, "float32").values())
        rounding = 8 * U["float32"] * error_growth(layer_calls)[-1]
        rounded = measurements.arrays("rounded", name, "float32")
        amplified = [distance(a, b) for a, b in zip(rounded.values(), eager[-len(rounded) :])]
        tolerances = {
            "compiled": rounding,
            "bfloat16": max(2 * U16["bfloat16"] * math.sqrt(len(layer_calls)), 4 * max(amplified)),
            "CPU": rounding,
        }
        for variant, tolerance in tolerances.items():
            if not tasks.path_of(measurements.folder, variant, name, "float32").exists():
                continue
            arrays = measurements.arrays(variant, name, "float32")
            distances = [
                Measurement(f"output {key}", distance(array, expected), tolerance, tolerance)
                for (key, array), expected in zip(arrays.items(), eager[-len(arrays) :])
            ]
            yield summarize(variant, (name,), "", distances)
