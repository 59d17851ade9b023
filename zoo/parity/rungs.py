"""Rungs of the cross-backend check: comparisons with their tolerances and reasons."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zoo.parity import comparisons, tasks
from zoo.parity.measurements import Measurements
from zoo.parity.report import Row


@dataclass(frozen=True)
class Rung:
    """Kind of comparison.

    Attributes:
        number: Number of the rung; higher rungs depend on more of the model's computation.
        title: Title of the rung.
        reason: Tolerances of the rung and their reasons.
        tasks: Tasks of the workers whose results the rung compares.
        precisions: Precisions of the workers, "float32" and "float64".
        compare: Comparison function, which yields the rows of the report.
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
            "Names, shapes and counts must be equal.",
            (tasks.describe,),
            _SINGLE,
            comparisons.parameters,
        ),
        Rung(
            2,
            "outputs of every layer, float32",
            "8·u·sqrt(64 + all terms summed up to the layer), or 16 times the distance between "
            "float32 and float64 on the backend with the smallest distance, which measures the "
            "layer's conditioning. Behind layers in 16 bits at least 4·u·sqrt(these layers), with "
            "their u. At most 262,144 elements of an output are compared, sampled at random.",
            (tasks.outputs,),
            _SINGLE,
            comparisons.outputs("float32"),
        ),
        Rung(
            3,
            "outputs of every layer, float64",
            "1e-10: rounding is below 1e-12 even where the float32 error is 1e-3; a mistake does "
            "not shrink; 16·2^-29 of the distance in float32, if that is larger. 1e-5 if a layer "
            "computes in float32 in a float64 model.",
            (tasks.outputs,),
            _DOUBLE,
            comparisons.outputs("float64"),
        ),
        Rung(
            4,
            "loss and gradients",
            "float32: 8·u·sqrt(64 + 2·terms + positions a weight is used at), and 100 times that "
            "for the root mean square if float64 agrees to 1e-10: a near tie in a maximum, or a "
            "value at the kink of a ReLU, changes the path of a few gradients (measured: up to "
            "0.08 in MobileNetV2).",
            (tasks.describe, tasks.outputs, tasks.gradients),
            _BOTH,
            comparisons.gradients,
        ),
        Rung(
            5,
            "optimizer steps",
            "float32: 32·u of the largest weight, since two steps with given gradients contain no "
            "long sums, and up to 256 times that if float64 agrees: TensorFlow's fused Adam "
            "computes 1 - 0.999 in float32 with an error of 1e-5, and where gradient and penalty "
            "cancel, dividing the rest by its size amplifies its rounding (measured: 1.7e-5).",
            (tasks.optimizer_steps,),
            _BOTH,
            comparisons.optimizer_steps,
        ),
        Rung(
            6,
            "training from one seed",
            "float32: 1e-6·2^step, since each step about doubles the distance, at most 0.01; and "
            "up to 100 times that, at most 0.1, if float64 agrees to 1e-10.",
            (tasks.train,),
            _BOTH,
            comparisons.training,
        ),
        Rung(
            7,
            "state",
            "Counters must be equal; the tolerance of statistics and states is that of their "
            "layer's outputs.",
            (tasks.describe, tasks.outputs),
            _BOTH,
            comparisons.state,
        ),
        Rung(
            8,
            "generated tokens and images",
            "Tokens must be equal; images 1e-4 in float32, 1e-10 in float64.",
            (tasks.sample,),
            _BOTH,
            comparisons.samples,
        ),
        Rung(
            9,
            "checkpoints saved on one backend, restored on another",
            "float64: 1e-10. float32: loss and variables 1e-5, outputs 1e-4; and, if float64 "
            "agrees, 1e-3, 0.1 and 1e-2: Adam divides a gradient by its size, so rounding "
            "determines the step of a weight whose gradient is about 0.",
            (tasks.train, tasks.resume),
            _BOTH,
            comparisons.checkpoints,
        ),
        Rung(
            10,
            "compiled, bfloat16",
            "Against eager float32 on the same backend. Compiled, and on the CPU where the model "
            "runs elsewhere: 8·u·sqrt(64 + all terms summed in the model), as for rung 2. "
            "bfloat16: 2·2^-8·sqrt(layers), since its unit roundoff is 2^-8; or, if more, 4 times "
            "the error of float32 with weights and inputs rounded to bfloat16, since sums whose "
            "terms cancel amplify rounding.",
            (tasks.outputs, tasks.variants),
            _SINGLE,
            comparisons.variants,
        ),
    )
}
