"""What each rung compares: from the workers' answers to rows of the report.

The tolerances are given with the rungs, in `zoo.parity.rungs`; where they come from is said in
`zoo.parity.measurements`.
"""

import math
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from zoo.evaluation.distance import distance, typical_distance
from zoo.parity import tasks
from zoo.parity.measurements import Measurement, Measurements, U, growth_of, summarize
from zoo.parity.report import Row, Status


def parameters(evidence: Measurements) -> Iterator[Row]:
    """Names, shapes, types, counts, and the initial weights."""
    precision = evidence.precisions[0]
    names = evidence.done("describe", precision)
    found = {name: evidence.results["describe", name, precision] for name in names}
    for a, b in combinations(names, 2):
        ours, theirs = found[a]["variables"], found[b]["variables"]
        for path in [*ours, *(path for path in theirs if path not in ours)]:
            if path not in ours or path not in theirs:
                detail = f"only on {a if path in ours else b}"
            elif path in found[a]["generators"]:
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
            count = f"{len(ours)} variables, {found[a]['parameters']:,} parameters"
            yield Row("variables", (a, b), precision, "agrees", detail=count)
        bits = found[a]["digests"], found[b]["digests"]
        other = [path for path in bits[0] if bits[0][path] != bits[1].get(path)]
        what = "initial weights"
        if not other:
            yield Row(what, (a, b), precision, "agrees", detail="the same bits")
        elif evidence.case.portable:
            detail = "not the same bits, which this model promises"
            yield Row(what, (a, b), precision, "differs", where=other[0], detail=detail)
        else:
            detail = (
                f"{len(other)} tensors come from the backend's own generator; the check gives all "
                "backends the same weights"
            )
            yield Row(what, (a, b), precision, "ruled out", where=other[0], detail=detail)
    for name in names if evidence.case.parameters is not None else ():
        count, expected = found[name]["parameters"], evidence.case.parameters
        status: Status = "agrees" if count == expected else "differs"
        detail = f"{count:,}; the closed form gives {expected:,}"
        yield Row("closed form", (name,), precision, status, detail=detail)


def outputs(precision: str) -> Callable[[Measurements], Iterator[Row]]:
    """Layer by layer, in the order in which they are called."""

    def compare(evidence: Measurements) -> Iterator[Row]:
        for mode in ("inference", "training"):
            for a, b in combinations(evidence.done("outputs", precision), 2):
                readings = layer_readings(evidence, mode, a, b, precision)
                # The measured rounding is in the tolerance: there is no second limit.
                yield summarize(f"{mode} mode", (a, b), precision, readings)

    return compare


def layer_readings(
    evidence: Measurements, mode: str, a: str, b: str, precision: str
) -> list[Measurement]:
    """The distance of every layer's output."""
    called, other = (evidence.results["outputs", name, precision][mode] for name in (a, b))
    if [path for path, *_ in called] != [path for path, *_ in other]:
        odd = next((x[0] for x, y in zip(called, other) if x[0] != y[0]), "the last layers")
        return [Measurement(f"{odd} (layers are called in another order)", math.inf, 0.0, 0.0)]
    first, second = (evidence.arrays(mode, name, precision) for name in (a, b))
    own = _own_rounding(evidence, mode) if precision == "float32" else {}
    readings = []
    for i, ((path, *_), growth) in enumerate(zip(called, growth_of(called))):
        tolerance = evidence.float64
        if precision == "float32":
            tolerance = max(8 * U[precision] * growth, 16 * own.get(str(i), 0.0))
        found = distance(first[str(i)], second[str(i)])
        readings.append(Measurement(path, found, tolerance, tolerance))
    return readings


def _own_rounding(evidence: Measurements, what: str) -> dict[str, float]:
    """How far float32 is from float64 in each array, on the backend where it is least far.

    Ill-conditioned numbers amplify rounding, on all backends alike; a mistake is on one.
    """
    least: dict[str, float] = {}
    for name in evidence.done("outputs", "float32"):
        if name not in evidence.done("outputs", "float64"):
            continue
        single, double = (evidence.arrays(what, name, p) for p in ("float32", "float64"))
        for key in single.keys() & double.keys():
            off = distance(single[key].astype(np.float64), double[key])
            if math.isfinite(off):
                least[key] = min(off, least.get(key, math.inf))
    return least


def _compared(
    evidence: Measurements,
    task: str,
    what: str,
    readings: Callable[[str, str, str], list[Measurement]],
) -> Iterator[Row]:
    """A row for each pair and precision; float64 is the judge of float32."""
    agrees: dict[tuple[str, str], bool] = {}
    for a, b, precision in sorted(evidence.pairs(task), key=lambda pair: pair[2], reverse=True):
        row = summarize(
            what, (a, b), precision, readings(a, b, precision), agrees.get((a, b), False)
        )
        if precision == "float64":
            agrees[a, b] = row.status == "agrees"
        yield row


def gradients(evidence: Measurements) -> Iterator[Row]:
    """Of the loss by each weight, the last layer's first, as the backward pass goes."""

    def readings(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (evidence.arrays("gradients", name, precision) for name in (a, b))
        order, places, growth = _backward_order(evidence, list(first))
        tolerance = evidence.float64
        if precision == "float32":
            tolerance = 8 * U[precision] * math.sqrt(2 * growth**2 + places)
        floor = _gradient_floor(first)
        result = []
        for path in order:
            if path not in second:  # rung 1 says so
                result.append(Measurement(path, math.inf, tolerance, tolerance))
                continue
            x, y = first[path], second[path]
            least = 0.0 if path == "loss" else floor
            off, typical = distance(x, y, least), typical_distance(x, y, least)
            result.append(Measurement(path, off, tolerance, 100 * tolerance, typical))
        return result

    yield from _compared(evidence, "gradients", "loss and gradients", readings)


def _gradient_floor(arrays: dict[str, np.ndarray]) -> float:
    """A hundredth of the largest gradient of all.

    It is the least that a gradient's differences are measured against: some are 0 but for rounding,
    such as that of a bias in front of a normalisation.
    """
    finite = (x[np.isfinite(x)] for k, x in arrays.items() if k != "loss")
    return 0.01 * max((float(np.abs(x).max(initial=0)) for x in finite), default=0.0)


def _backward_order(evidence: Measurements, paths: list[str]) -> tuple[list[str], int, float]:
    """The loss, then weights from the output on; the most places, and the model's growth."""
    described = evidence.any_result("describe")
    called = (evidence.any_result("outputs") or {}).get("training", [])
    ready = {path: i for i, (path, *_) in enumerate(called)}
    owners = described["owners"] if described else {}
    weights = [path for path in paths if path != "loss"]

    def position(path: str) -> int:
        owner = owners.get(path, "")
        while owner and owner not in ready:  # a cell stands where its layer does
            owner = owner.rpartition("/")[0]
        return -ready.get(owner, 0)

    places = max((places for *_, places in called), default=1)
    growth = growth_of(called)[-1] if called else 8.0
    return ["loss", *sorted(weights, key=position)], places, growth


def optimizer_steps(evidence: Measurements) -> Iterator[Row]:
    """Each optimizer's weights after two steps on the same gradients."""
    names = evidence.any_result("optimizer_steps") or []
    loaded = {
        (name, precision): evidence.arrays("optimizers", name, precision)
        for precision in evidence.precisions
        for name in evidence.done("optimizer_steps", precision)
    }

    for optimizer in names:

        def readings(
            a: str, b: str, precision: str, optimizer: str = optimizer
        ) -> list[Measurement]:
            first, second = loaded[a, precision], loaded[b, precision]
            tolerance = evidence.float64 if precision == "float64" else 32 * U[precision]
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

        yield from _compared(evidence, "optimizer_steps", optimizer, readings)


def training(evidence: Measurements) -> Iterator[Row]:
    """The losses of training steps from one seed."""

    def readings(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (evidence.arrays("losses", name, precision)["losses"] for name in (a, b))
        result = []
        for step, (x, y) in enumerate(zip(first, second), 1):
            tolerance = min(1e-6 * 2**step, 1e-2)
            if precision == "float64":
                tolerance = max(evidence.float64, min(U["float64"] * 2**step, 1e-2))
            found = distance(np.atleast_1d(x), np.atleast_1d(y))
            result.append(Measurement(f"step {step}", found, tolerance, min(100 * tolerance, 0.1)))
        return result

    yield from _compared(evidence, "train", f"{evidence.case.steps} losses", readings)


def state(evidence: Measurements) -> Iterator[Row]:
    """What a call in training mode leaves behind: statistics, states, counters."""
    described = evidence.any_result("describe")
    owners = described["owners"] if described else {}

    def readings(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (evidence.arrays("state", name, precision) for name in (a, b))
        called = evidence.results["outputs", a, precision]["training"]
        growth = {path: g for (path, *_), g in zip(called, growth_of(called))}
        rounding = _own_rounding(evidence, "training") if precision == "float32" else {}
        own = {path: rounding.get(str(i), 0.0) for i, (path, *_) in enumerate(called)}
        result = []
        for path in [*first, *(path for path in second if path not in first)]:
            owner = owners.get(path, "")
            tolerance = evidence.float64
            if precision == "float32":
                measured = 16 * own.get(owner, 0.0)
                tolerance = max(8 * U[precision] * growth.get(owner, 8.0), measured)
            known = path in first and path in second
            found = distance(first[path], second[path]) if known else math.inf
            result.append(Measurement(path, found, tolerance, 100 * tolerance))
        return result

    yield from _compared(evidence, "outputs", "after a call in training mode", readings)
    for name in evidence.names:
        result = evidence.results.get(("describe", name, evidence.precisions[0]))
        for paths in result["shared streams"] if result else ():
            detail = "these layers draw the same numbers; give them names or seeds of their own"
            where = ", ".join(paths)
            yield Row("random streams", (name,), "", "differs", where=where, detail=detail)


def samples(evidence: Measurements) -> Iterator[Row]:
    """Tokens have to be the same, images near."""

    def readings(a: str, b: str, precision: str) -> list[Measurement]:
        first, second = (evidence.arrays("samples", name, precision) for name in (a, b))
        tolerance = evidence.float64 if precision == "float64" else 1e-4
        return [
            Measurement(
                key,
                distance(first[key], second[key]) if key in first and key in second else math.inf,
                tolerance,
                tolerance,
            )
            for key in {**first, **second}
        ]

    yield from _compared(evidence, "sample", "generated", readings)


def checkpoints(evidence: Measurements) -> Iterator[Row]:
    """The step after a checkpoint, on each backend, against the run that went on."""
    judged: dict[tuple[str, str, str], bool] = {}
    limits = {  # in float32: the tolerance, and what is rounding if float64 agrees
        "loss": (1e-5, 1e-3),
        # Adam divides a gradient by its size: rounding decides where one is about 0.
        "variable": (1e-5, 1e-1),
        "output": (1e-4, 1e-2),
    }
    for precision in sorted(evidence.precisions, reverse=True):
        for target in evidence.done("resume", precision):
            for source, found in evidence.results["resume", target, precision].items():
                readings = []
                for where, off in found:
                    tolerance, limit = limits[where.partition(" ")[0]]
                    if precision == "float64":
                        tolerance = limit = evidence.float64
                    readings.append(Measurement(where, off, tolerance, limit))
                row = summarize(
                    f"saved on {source}, resumed on {target}",
                    (source, target),
                    precision,
                    readings,
                    judged.get((source, target, "float64"), False),
                )
                judged[source, target, precision] = row.status == "agrees"
                yield row


def variants(evidence: Measurements) -> Iterator[Row]:
    """On one backend against eager float32: compiled, in bfloat16, and on the CPU beside a GPU."""
    for name in evidence.done("variants", "float32"):
        if name not in evidence.done("outputs", "float32"):
            continue
        called = evidence.results["outputs", name, "float32"]["inference"]
        eager = list(evidence.arrays("inference", name, "float32").values())
        rounding = 8 * U["float32"] * growth_of(called)[-1]
        tolerances = {
            "compiled": rounding,
            "bfloat16": 4 * 2.0**-9 * math.sqrt(len(called)),
            "CPU": rounding,
        }
        for what, tolerance in tolerances.items():
            if not tasks.path_of(evidence.folder, what, name, "float32").exists():
                continue
            found = evidence.arrays(what, name, "float32")
            readings = [
                Measurement(f"output {key}", distance(array, expected), tolerance, tolerance)
                for (key, array), expected in zip(found.items(), eager[-len(found) :])
            ]
            yield summarize(what, (name,), "", readings)
