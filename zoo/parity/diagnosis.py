"""Explanation of a difference in words: odd backend, layer, rounding, likeliest cause."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import keras

from zoo.parity.report import Row, RungReport, format_number

_LIBRARY = Path(keras.__file__).parent
_CONFIG = ("padding", "strides", "interpolation", "activation")  # what `CAUSES` look at


@dataclass(frozen=True)
class LayerInfo:
    """What the explanation says about a layer.

    Attributes:
        kind: Name of the layer's class.
        config: Values of the layer's configuration on which a cause may depend.
        source: File and line where the user's code creates the layer; may be empty.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @staticmethod
    def of(layer: keras.layers.Layer) -> "LayerInfo":
        config = {name: getattr(layer, name, None) for name in _CONFIG}
        config["activation"] = getattr(config["activation"], "__name__", None)
        return LayerInfo(type(layer).__name__, config, getattr(layer, "_zoo_source", ""))


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
    """First difference of a check, for `CAUSES`."""

    rung: int
    row: Row
    layer: LayerInfo
    only_in_training: bool

    def is_kind(self, *words: str) -> bool:
        return any(word in self.layer.kind for word in words)


def _is_strided_same(difference: _Difference) -> bool:
    strides = difference.layer.config.get("strides") or 1
    largest = max(strides) if isinstance(strides, tuple) else strides
    return difference.layer.config.get("padding") == "same" and largest > 1


# The first that applies is the likeliest.
CAUSES: tuple[tuple[Callable[[_Difference], bool], str], ...] = (
    (lambda d: d.rung == 1, "the builder depends on the backend, for a name, a shape or a count"),
    (lambda d: d.rung == 5, "an optimizer's epsilon, its decay or its bias correction"),
    (
        lambda d: d.only_in_training and d.is_kind("BatchNormalization"),
        "batch statistics: a biased or an unbiased variance, or the momentum",
    ),
    (
        lambda d: d.only_in_training or d.rung == 6,
        "random numbers, masks or statistics that only training uses; unseeded numbers differ",
    ),
    (
        lambda d: d.rung == 4,
        "a gradient that is stopped or has a formula of its own, or ties in a maximum, which share "
        "their gradient differently",
    ),
    (lambda d: d.rung in (7, 9), "a state that is not saved, or saved in another form"),
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
    (lambda d: d.is_kind("Pooling"), "padding that counts in an average, or ties in a maximum"),
    (lambda d: d.layer.config.get("activation") == "gelu", "GELU, exact or by its tanh formula"),
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
    row = next(row for row in rung.rows if row.status == "differs")
    path = owners.get(row.where, row.where)
    difference = _Difference(
        rung.number,
        row,
        layers.get(path, LayerInfo("")),
        only_in_training=row.comparison == "training mode",
    )
    sentences = [_odd_one(rung, row), _place(row, difference.layer)]
    if rung.number in (2, 3) and path in calls and calls.index(path):
        sentences.append(f"All layer calls before it agree: {calls.index(path)}.")
    sentences += _rounding(rungs, rung, row)
    cause = next(text for applies, text in CAUSES if applies(difference))
    return [*sentences, f"Likeliest cause: {cause}."]


def _odd_one(rung: RungReport, row: Row) -> str:
    alike = [
        other
        for other in rung.rows
        if (other.comparison, other.precision) == (row.comparison, row.precision)
    ]
    differing = [{*other.between} for other in alike if other.status == "differs"]
    agreeing = [other.between for other in alike if other.status in ("agrees", "rounding")]
    odd = set.intersection(*differing)
    for pair in agreeing:
        if len(odd - {*pair}) == 1 and len(differing) > 1:
            (name,) = odd - {*pair}
            return f"{name} is the odd one: {' and '.join(pair)} agree with each other."
    if len(row.between) == 1:
        return f"{row.between[0]} differs from what is expected."
    if len(differing) == 1:
        return f"{' and '.join(row.between)} differ."
    return "No two backends agree."


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


def _rounding(rungs: Sequence[RungReport], rung: RungReport, row: Row) -> list[str]:
    if row.precision == "float64":
        return ["Rounding is excluded, since it is float64 that differs."]
    if row.distance is None:
        return []
    in_float64 = [
        other
        for candidate in rungs
        if candidate is rung or candidate.number == 3
        for other in candidate.rows
        if other.precision == "float64"
        and other.between == row.between
        and other.comparison == row.comparison
    ]
    if not in_float64:
        return ["Rounding is not excluded: float64 was not compared."]
    if any(other.status == "differs" for other in in_float64):
        return ["Rounding is excluded: float64 differs, too."]
    return ["float64 agrees, so rounding that the model amplifies is likely."]
