"""Explanation of a difference in words: odd backend, layer, rounding, likeliest cause."""

import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import keras

from zoo.parity.report import Row, RungReport, format_number

_LIBRARY = Path(keras.__file__).parent
_NO_TWO_AGREE = "No two backends agree."
_CALL = re.compile(r"( \(call \d+\))?(\[\d+\])?$")  # what `layer_outputs` adds to a layer's path
_CONFIG = ("padding", "strides", "interpolation", "activation")  # what `CAUSES` look at


@dataclass(frozen=True)
class LayerInfo:
    """What the explanation says about a layer.

    Attributes:
        kind: Name of the layer's class.
        bases: Names of the classes between it and `keras.layers.Layer`.
        config: Values of the layer's configuration on which a cause may depend.
        source: File and line where the user's code creates the layer; may be empty.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    bases: Sequence[str] = ()

    @staticmethod
    def of(layer: keras.layers.Layer) -> "LayerInfo":
        config = {name: getattr(layer, name, None) for name in _CONFIG}
        config["activation"] = getattr(config["activation"], "__name__", None)
        classes = itertools.takewhile(lambda c: c is not keras.layers.Layer, type(layer).__mro__)
        kind, *bases = (c.__name__ for c in classes)
        return LayerInfo(kind, config, getattr(layer, "_zoo_source", ""), bases)


@contextmanager
def recorded_sources() -> Iterator[None]:
    """Notes for each layer that is created the line of code outside Keras that creates it."""
    original = keras.layers.Layer.__init__

    def init(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> None:
        original(layer, *args, **kwargs)
        frame = inspect.currentframe()
        while frame and (_is_library(frame) or _is_method_of(frame, layer)):
            frame = frame.f_back
        if frame:
            path = os.path.relpath(frame.f_code.co_filename)
            layer.__dict__["_zoo_source"] = f"{path}:{frame.f_lineno}"

    keras.layers.Layer.__init__ = init
    try:
        yield
    finally:
        keras.layers.Layer.__init__ = original


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file == __file__ or Path(file).is_relative_to(_LIBRARY)


def _is_method_of(frame: FrameType, layer: keras.layers.Layer) -> bool:
    """Whether the frame is that of `__init__` of the layer's own class."""
    arguments = frame.f_code.co_varnames[:1]
    return any(frame.f_locals.get(name) is layer for name in arguments)


@dataclass(frozen=True)
class _Difference:
    """First difference of a check, for `CAUSES`.

    Attributes:
        rung: Number of the rung.
        row: Row of the report.
        layer: Layer at which the difference begins.
        kinds: Names of the classes of this layer and of the layers that contain it, and of their
            bases.
        model_kinds: Names of the classes of all layers.
        float64_agrees: Whether the same comparison agrees in float64.
        no_two_agree: Whether three backends differ in three ways.
    """

    rung: int
    row: Row
    layer: LayerInfo
    kinds: Sequence[str]
    model_kinds: Sequence[str]
    float64_agrees: bool
    no_two_agree: bool

    @property
    def is_output(self) -> bool:
        return self.rung in (2, 3)

    @property
    def only_in_training(self) -> bool:
        return self.row.comparison == "training mode"

    def is_kind(self, *words: str) -> bool:
        return any(word in kind for word in words for kind in self.kinds)


def _is_strided_same(difference: _Difference) -> bool:
    strides = difference.layer.config.get("strides") or 1
    largest = max(strides) if isinstance(strides, tuple) else strides
    return difference.layer.config.get("padding") == "same" and largest > 1


# The first that applies is the likeliest.
CAUSES: tuple[tuple[Callable[[_Difference], bool], str], ...] = (
    (lambda d: d.rung == 1, "the builder depends on the backend, for a name, a shape or a count"),
    (lambda d: d.rung == 5, "an optimizer's epsilon, its decay or its bias correction"),
    (
        lambda d: d.float64_agrees,
        "a formula that loses digits, such as a variance from the mean of squares, or numbers near "
        "a jump of a function, such as a tie or the border of a cast",
    ),
    (
        lambda d: (d.only_in_training or d.rung == 7) and d.is_kind("BatchNormalization"),
        "batch statistics: a biased or an unbiased variance, or the momentum",
    ),
    (
        lambda d: d.rung == 6 and "Embedding" in d.model_kinds,
        "ids that occur more than once in a batch, whose gradients an optimizer of Keras does not "
        "sum on TensorFlow; else statistics or random numbers of training",
    ),
    (
        lambda d: d.only_in_training or d.rung == 6,
        "random numbers, masks or statistics that only training uses; unseeded numbers differ",
    ),
    (
        lambda d: d.rung == 4 and d.is_kind("Attention"),
        "rows that are masked wholly, through which PyTorch's fused attention has another gradient",
    ),
    (
        lambda d: d.rung in (2, 3, 4) and d.row.distance == math.inf,
        "numbers that are not finite on one backend only, or unequal integers, as by ties in an "
        "argmax, a sort or a top_k",
    ),
    (
        lambda d: d.rung == 4 and d.row.where == "loss",
        "what layers add to the loss by `add_loss` or a regularizer, or the loss function itself",
    ),
    (
        lambda d: d.rung == 4,
        "a gradient that is stopped or has a formula of its own, or ties in a maximum, which share "
        "their gradient differently",
    ),
    (lambda d: d.rung == 7, "a state that is updated in another way, as by another momentum"),
    (lambda d: d.rung == 9, "a state that is not saved, or saved in another form"),
    (lambda d: d.is_kind("AveragePooling"), "padding that counts in an average"),
    (
        _is_strided_same,
        "padding: with a stride, 'same' pads one more on the right, where PyTorch's own layers pad "
        "both sides alike",
    ),
    (
        lambda d: d.is_kind("Normalization"),
        "another epsilon, or a variance that is divided by n - 1",
    ),
    (
        lambda d: d.is_kind("UpSampling", "Resizing"),
        "interpolation: half-pixel centres, antialiasing, or float32 whatever the model's dtype",
    ),
    (
        lambda d: d.is_kind("Attention", "Softmax"),
        "rows that are masked wholly, or another number in the place of masked scores",
    ),
    (
        lambda d: d.is_kind("RNN", "LSTM", "GRU"),
        "the order of the gates, `reset_after`, or steps that a mask skips",
    ),
    (
        lambda d: d.is_kind("Embedding"),
        "ids outside the vocabulary, which raise an error, give NaN or another row",
    ),
    (lambda d: d.layer.config.get("activation") == "gelu", "GELU, exact or by its tanh formula"),
    (
        lambda d: d.is_output and d.no_two_agree and not d.only_in_training,
        "numbers that differ in each process: unseeded ones, such as NumPy's, or hash() of a text",
    ),
    (
        lambda d: True,
        "code that depends on the backend: a default, a dtype, an axis, or the order of an "
        "operation's arguments",
    ),
)


def explain(
    rungs: Sequence[RungReport],
    layers: Mapping[str, LayerInfo],
    owners: Mapping[str, str],
    calls: Sequence[str],
) -> list[str]:
    """Explains the first difference of a check in sentences.

    Args:
        rungs: Rungs of the check, in order.
        layers: The model's layers by path.
        owners: Paths of the layers by the paths of their variables.
        calls: Paths of the layers in the order of their calls.

    Returns:
        Sentences; none if nothing differs.
    """
    rung = next((rung for rung in rungs if rung.status == "differs"), None)
    if rung is None:
        return []
    row = _first_difference(rung, calls)
    path = owners.get(row.where, _CALL.sub("", row.where))
    in_float64 = _in_float64(rungs, rung, row)
    odd_one = _odd_one(rung, row)
    difference = _Difference(
        rung.number,
        row,
        layers.get(path, LayerInfo("")),
        kinds=[
            kind
            for name in _enclosing(path)
            if name in layers
            for kind in (layers[name].kind, *layers[name].bases)
        ],
        model_kinds=[layer.kind for layer in layers.values()],
        float64_agrees=bool(in_float64) and all(other.status == "agrees" for other in in_float64),
        no_two_agree=odd_one == _NO_TWO_AGREE,
    )
    sentences = [odd_one, _place(row, difference.layer)]
    if difference.is_output and row.where in calls and calls.index(row.where):
        sentences.append(f"All layer calls before it agree: {calls.index(row.where)}.")
    sentences += _rounding(row, in_float64)
    cause = next(text for applies, text in CAUSES if applies(difference))
    return [*sentences, f"Likeliest cause: {cause}."]


def _enclosing(path: str) -> list[str]:
    """The path of a layer, and those of the layers that contain it."""
    return ["/".join(path.split("/")[:end]) for end in range(path.count("/") + 1, 0, -1)]


def _first_difference(rung: RungReport, calls: Sequence[str]) -> Row:
    """The row of the pair that differs in the earliest layer; other rungs are in order already."""
    rows = [row for row in rung.rows if row.status == "differs"]
    rows = [row for row in rows if row.comparison == rows[0].comparison]
    return min(
        (row for row in rows if row.precision == rows[0].precision),
        key=lambda row: calls.index(row.where) if row.where in calls else 0,
    )


def _odd_one(rung: RungReport, row: Row) -> str:
    """Says which backend differs where the row does; other pairs may differ later."""
    alike = [
        other
        for other in rung.rows
        if (other.comparison, other.precision) == (row.comparison, row.precision)
        and other.status in ("agrees", "rounding", "differs")
    ]
    same_place = [
        other for other in alike if other.status == "differs" and other.where == row.where
    ]
    odd = set.intersection(*({*other.between} for other in same_place))
    for other in alike:
        if other not in same_place and len(odd - {*other.between}) == 1 and len(same_place) > 1:
            (name,) = odd - {*other.between}
            until = f" up to {other.where}" if other.status == "differs" else ""
            pair = " and ".join(other.between)
            return f"{name} is the odd one: {pair} agree with each other{until}."
    if len(same_place) > 1 and len(odd) == 1:  # the others could not be compared
        return f"{odd.pop()} is the odd one."
    if len(row.between) == 1:
        return f"{row.between[0]} differs from what is expected."
    if len(same_place) == 1:
        return f"{' and '.join(row.between)} differ."
    return _NO_TWO_AGREE


def _place(row: Row, layer: LayerInfo) -> str:
    source = f", created in {layer.source}" if layer.source else ""
    kind = f" ({layer.kind}{source})" if layer.kind else ""
    where = f" at {row.where}{kind}" if row.where else ""
    if row.distance is None:
        return f"The first difference is in {row.comparison}{where}: {row.detail}."
    return (
        f"The first difference is in {row.comparison}{where}: {format_number(row.distance)}, where "
        f"{format_number(row.tolerance)} is allowed."
    )


def _in_float64(rungs: Sequence[RungReport], rung: RungReport, row: Row) -> list[Row]:
    """The rows of the same comparison or layer in float64, if the row is in float32."""
    if row.precision == "float64":
        return []
    return [
        other
        for candidate in rungs
        if candidate is rung or candidate.number == 3
        for other in candidate.rows
        if other.precision == "float64"
        and other.comparison == row.comparison
        and (other.between == row.between or (other.status, other.where) == ("differs", row.where))
    ]


def _rounding(row: Row, in_float64: Sequence[Row]) -> list[str]:
    if row.precision == "float64":
        return ["Rounding is excluded, since it is float64 that differs."]
    if row.distance is None:
        return []
    if not in_float64:
        return ["Rounding is not excluded: float64 was not compared."]
    if any(other.status == "differs" for other in in_float64):
        return ["Rounding is excluded: float64 differs, too."]
    return ["float64 agrees, so rounding that the model amplifies is likely."]
