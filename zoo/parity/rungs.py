"""The ladder: what is compared on each rung, with which tolerance and why."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zoo.parity import comparisons, tasks
from zoo.parity.measurements import Measurements
from zoo.parity.report import Row


@dataclass(frozen=True)
class Rung:
    """A kind of comparison.

    Attributes:
        number: on the ladder.
        title: what is compared.
        reason: the tolerance, and why.
        tasks: what it needs of a worker.
        precisions: of the workers.
        compare: makes its rows.
    """

    number: int
    title: str
    reason: str
    tasks: tuple[Callable[..., Any], ...]
    precisions: tuple[str, ...]
    compare: Callable[[Measurements], Iterator[Row]]


_BOTH = ("float32", "float64")
_SINGLE, _DOUBLE = ("float32",), ("float64",)

RUNGS = {
    rung.number: rung
    for rung in (
        Rung(
            1,
            "parameters",
            "Names, shapes and counts are equal or not.",
            (tasks.describe,),
            _SINGLE,
            comparisons.parameters,
        ),
        Rung(
            2,
            "outputs of every layer, float32",
            "8·u·sqrt(64 + all terms summed up to the layer), or 16 times what float32 is off from "
            "float64 on the backend where that is least: the layer's own conditioning. Of an "
            "output with more than 262,144 numbers, so many are compared, drawn at random.",
            (tasks.outputs,),
            _SINGLE,
            comparisons.outputs("float32"),
        ),
        Rung(
            3,
            "outputs of every layer, float64",
            "1e-10: rounding is below 1e-12 even where float32 is off by 1e-3; a mistake stays. "
            "1e-5 where a layer computes in float32 whatever the model is in.",
            (tasks.outputs,),
            _DOUBLE,
            comparisons.outputs("float64"),
        ),
        Rung(
            4,
            "loss and gradients",
            "float32: 8·u·sqrt(64 + 2·terms + places a weight is used at), and 100 times that "
            "for the root mean square if float64 agrees to 1e-10: a near tie in a maximum, or a "
            "number next to the kink of a ReLU, sends a few gradients elsewhere (measured: up to "
            "0.08 in MobileNetV2).",
            (tasks.describe, tasks.outputs, tasks.gradients),
            _BOTH,
            comparisons.gradients,
        ),
        Rung(
            5,
            "optimizer steps",
            "float32: 32·u of the largest weight, since nothing is summed in two steps of given "
            "gradients, and up to 256 times that if float64 agrees: TensorFlow's fused Adam "
            "forms 1 - 0.999 in float32, off by 1e-5, and where gradient and penalty cancel, "
            "dividing what is left by its size amplifies its rounding (measured: 1.7e-5).",
            (tasks.optimizer_steps,),
            _BOTH,
            comparisons.optimizer_steps,
        ),
        Rung(
            6,
            "training from one seed",
            "float32: 1e-6·2^step, since each step about doubles what the last was off by, at most "
            "0.01, and up to 100 times that, at most 0.1, if float64 agrees to 1e-10.",
            (tasks.train,),
            _BOTH,
            comparisons.training,
        ),
        Rung(
            7,
            "state",
            "Counters are equal; statistics and states as the outputs of their layer.",
            (tasks.describe, tasks.outputs),
            _BOTH,
            comparisons.state,
        ),
        Rung(
            8,
            "generated tokens and images",
            "Tokens are equal; images 1e-4 in float32, 1e-10 in float64.",
            (tasks.sample,),
            _BOTH,
            comparisons.samples,
        ),
        Rung(
            9,
            "checkpoints: saved here, resumed there",
            "float64: 1e-10. float32: loss and variables 1e-5, outputs 1e-4; and, if float64 "
            "agrees, 1e-3, 0.1 and 1e-2: Adam divides a gradient by its size, so rounding decides "
            "a weight's step where its gradient is about 0.",
            (tasks.train, tasks.resume),
            _BOTH,
            comparisons.checkpoints,
        ),
        Rung(
            10,
            "compiled, bfloat16, CPU beside GPU",
            "Against eager float32 on the same backend. Compiled, CPU: as rung 2. bfloat16: "
            "4·2^-9·sqrt(layers), since its unit roundoff is 2^-9.",
            (tasks.outputs, tasks.variants),
            _SINGLE,
            comparisons.variants,
        ),
    )
}
