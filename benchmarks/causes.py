"""Small models with a typical cause of a difference each, and what the check reports of them.

    python -m benchmarks.causes
    python -m benchmarks.causes stray_stop_gradient random_dropout

Needs all three backends. The words of the reports are kept in results/book/causes.json, and
`python -m benchmarks.book write` puts them into the guide to the check.
"""

import json
import os
import re
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tyro
from keras import layers, ops

from benchmarks.pages import RESULTS, ROOT
from zoo.parity import InputSpec, Report, Workers, check
from zoo.parity.report import format_number, most_severe

Tensor = Any
FILE = RESULTS / "causes.json"


class Cause(NamedTuple):
    """Model with a cause, and the options of its check.

    Attributes:
        build: Builder of the model.
        options: Arguments of `zoo.parity.check`.
    """

    build: Callable[[], keras.Model]
    options: dict[str, Any]


CAUSES: dict[str, Cause] = {}


def cause(rungs: str, **options: Any) -> Callable[..., Callable[[], keras.Model]]:
    """Registers a builder in `CAUSES`, with the rungs that its guide shows."""

    def register(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
        CAUSES[build.__name__] = Cause(build, {"rungs": rungs, **options})
        return build

    return register


def dense_around(*middle: layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(1)  # the same weights in each check
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, name="first"), *middle, layers.Dense(4, name="last")],
        name="model",
    )


# ------------------------------------------------------------------ the models


@cause("1,2,6")
def random_dropout() -> keras.Model:
    return dense_around(layers.Dropout(0.5, name="drop"))


@cause("1")
def random_weights() -> keras.Model:
    return dense_around()  # Keras' default initializer


class Detached(layers.Dense):
    def call(self, inputs: Tensor) -> Tensor:
        products = ops.matmul(inputs, self.kernel)
        if keras.backend.backend() == "torch":
            products = products.detach()
        return products + self.bias


@cause("2-4")
def stray_stop_gradient() -> keras.Model:
    return dense_around(Detached(8, name="middle"))


@cause("2-3")
def another_epsilon() -> keras.Model:
    epsilon = {"torch": 1e-5}.get(keras.backend.backend(), 1e-3)
    return dense_around(layers.LayerNormalization(epsilon=epsilon, name="norm"))


class RunningMean(layers.Layer):
    def build(self, shape: Any) -> None:
        hidden = [keras.Variable(ops.zeros(shape[-1:]), trainable=False, name="mean")]
        self.__dict__["hidden"] = hidden  # past Keras, which would track the variable

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        (mean,) = self.__dict__["hidden"]
        if training:
            mean.assign(0.9 * mean + 0.1 * ops.stop_gradient(ops.mean(inputs, axis=0)))
        return inputs - mean.value


@cause("2,7,9")
def untracked_statistic() -> keras.Model:
    return dense_around(RunningMean(name="norm"))


@cause("1-2", inputs=InputSpec((6,), "int32", 0, 40))
def ids_outside_the_vocabulary() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(32, 8, name="embedding"),
            layers.Dense(4, name="last"),
        ],
        name="model",
    )


class Softmax32(layers.Layer):
    def call(self, inputs: Tensor) -> Tensor:
        dtype = "float32" if keras.backend.backend() == "jax" else inputs.dtype
        return ops.cast(ops.softmax(ops.cast(inputs, dtype)), inputs.dtype)


@cause("2-3")
def float32_in_float64() -> keras.Model:
    return dense_around(Softmax32(name="probabilities"))


class LargerLevel(layers.Layer):
    def call(self, left: Tensor, right: Tensor) -> Tensor:
        levels = (x + ops.stop_gradient(ops.round(x) - x) for x in (left, right))  # many are equal
        return ops.maximum(*levels)


@cause("2,4")
def ties() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((8,), name="image")
    towers = [layers.Dense(4, name=name)(image) for name in ("left", "right")]
    return keras.Model(image, LargerLevel(name="larger")(*towers), name="model")


@cause("2-3")
def bicubic_upsampling() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6, 6, 3)), layers.UpSampling2D(2, interpolation="bicubic", name="up")],
        name="model",
    )


@cause("1-2")
def order_of_a_set() -> keras.Model:
    image = keras.Input((8,), name="image")
    towers = {"edges", "colours", "corners", "textures", "shapes"}  # in another order each time
    x = [layers.Dense(4, name=name)(image) for name in towers]
    return keras.Model(image, layers.Concatenate(name="joined")(x), name="model")


# ------------------------------------------------------------------ the reports


def words(report: Report) -> list[str]:
    """What a report says: its verdict, the most severe row of each rung, notes and explanation."""
    lines = [f"{report.model} {report.verdict}", ""]
    for rung in report.rungs:
        row = most_severe(rung)
        parts = [f"{rung.number:2}  {rung.title}: {rung.status}"]
        if row and row.distance is not None:
            limit = format_number(row.tolerance)
            parts.append(f"{format_number(row.distance)} (tolerance {limit}) at {row.where}")
        elif row and row.status == "failed":
            parts.append(f"on {', '.join(row.between)}: {row.detail.splitlines()[0]}")
        elif row and row.detail:
            parts.append(row.detail)
        lines.append(": ".join(parts))
        others = {
            r.comparison: r.detail for r in rung.rows if r.status == "ruled out" != rung.status
        }
        lines += [f"    {comparison}: {detail}" for comparison, detail in others.items() if detail]
    for sentences in (report.notes, report.explanation):
        lines += ["", *sentences] if sentences else []
    return [re.sub(rf"{re.escape(str(ROOT))}{os.sep}", "", line) for line in lines]


def report_of(name: str, workers: Workers) -> list[str]:
    """Checks a model, and gives the words of the report."""
    build, options = CAUSES[name]
    return words(check(build, workers=workers, **options))


def section(name: str) -> str:
    """The words of a report as a block of a page."""
    lines: list[str] = []
    for line in json.loads(FILE.read_text("utf-8"))[name]:
        lines += textwrap.wrap(line, 100, subsequent_indent="    ") or [""]
    return "\n".join(["```text", *lines, "```"])


def main(names: tyro.conf.Positional[tuple[str, ...]] = tuple(CAUSES)) -> None:
    """Check the models and keep the words of the reports.

    Args:
        names: Names of the models; by default all.
    """
    content = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    with Workers() as workers:
        for name in names:
            content[name] = report_of(name, workers)
            print(f"--- {name}", *content[name], sep="\n", flush=True)
    ordered = {name: content[name] for name in CAUSES}
    FILE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    tyro.cli(main)
