"""Tests of the explanation and of the statuses, on rows written by hand."""

import math

import pytest

from zoo.parity.diagnosis import LayerInfo, explain
from zoo.parity.measurements import Measurement, summarize
from zoo.parity.report import Row, RungReport, Status

pytestmark = pytest.mark.once

BACKENDS = ("tensorflow", "torch"), ("tensorflow", "jax"), ("torch", "jax")


def rung(number: int, precision: str, *first_differences: str) -> RungReport:
    """Report of the outputs of layers, with the layer where each pair begins to differ, or ""."""
    rows = [
        Row("inference mode", pair, precision, "differs", 0.1, 1e-6, where)
        if where
        else Row("inference mode", pair, precision, "agrees", 1e-8, 1e-6, "last")
        for pair, where in zip(BACKENDS, first_differences, strict=True)
    ]
    return RungReport(number, "outputs", "", tuple(rows))


CALLS = ["first", "pool", "lstm[1]", "lstm (call 2)", "last"]
LAYERS = {
    "first": LayerInfo("Dense"),
    "pool": LayerInfo("AveragePooling2D"),
    "lstm": LayerInfo("LSTM"),
    "last": LayerInfo("Resizing"),
}


def sentences(*rungs: RungReport) -> list[str]:
    return explain(rungs, LAYERS, {}, CALLS)


def test_explain_finds_the_earliest_layer_over_all_pairs() -> None:
    """PyTorch and JAX differ from TensorFlow in `last` and from each other in `pool`."""
    texts = sentences(rung(2, "float32", "last", "pool", "pool"))
    assert texts[0] == (
        "jax is the odd one: tensorflow and torch agree with each other up to last."
    )
    assert "at pool (AveragePooling2D)" in texts[1]
    assert texts[2] == "All layer calls before it agree: 1."
    assert texts[-1] == "Likeliest cause: padding that counts in an average."


def test_explain_names_the_odd_one_of_which_the_others_are_not_finite() -> None:
    rows = [Row("gradients", pair, "float64", "differs", math.inf, 0.0, "w") for pair in BACKENDS]
    rows[2] = Row("gradients", BACKENDS[2], "float64", "failed", math.nan, 0.0, "w")
    texts = sentences(RungReport(4, "gradients", "", tuple(rows)))
    assert texts[0] == "tensorflow is the odd one."
    assert texts[-1].startswith("Likeliest cause: numbers that are not finite on one backend only")


@pytest.mark.parametrize("where", ["lstm[1]", "lstm (call 2)"])
def test_explain_knows_the_layer_of_a_later_call_or_output(where: str) -> None:
    texts = sentences(rung(2, "float32", where, "", where))
    assert texts[0] == "torch is the odd one: tensorflow and jax agree with each other."
    assert f"at {where} (LSTM)" in texts[1]
    assert "the order of the gates" in texts[-1]


@pytest.mark.parametrize(
    ("in_float64", "text", "cause"),
    [
        (("", "", ""), "float64 agrees, so rounding", "a formula that loses digits"),
        (("last", "", "last"), "Rounding is excluded: float64 differs", "interpolation"),
        # Another pair differs in the same layer.
        (("", "last", "last"), "Rounding is excluded: float64 differs", "interpolation"),
    ],
)
def test_explain_excludes_rounding_where_float64_differs(
    in_float64: tuple[str, ...], text: str, cause: str
) -> None:
    texts = sentences(rung(2, "float32", "last", "", "last"), rung(3, "float64", *in_float64))
    assert any(sentence.startswith(text) for sentence in texts)
    assert texts[-1].startswith(f"Likeliest cause: {cause}")


@pytest.mark.parametrize(
    ("distance", "agrees_in_float64", "status", "detail"),
    [
        (1e-7, False, "agrees", ""),
        (1e-5, True, "rounding", ""),
        (1e-5, False, "differs", ""),
        (1e-5, None, "ruled out", "may be rounding: float64, which would tell, failed"),
        (1e-3, None, "differs", ""),
        (math.inf, True, "differs", ""),
        (math.nan, True, "failed", "no number is finite, on either backend"),
    ],
)
def test_summarize_chooses_the_status(
    distance: float, agrees_in_float64: bool | None, status: Status, detail: str
) -> None:
    measurements = [Measurement("first", 0.0, 1e-6, 1e-4), Measurement("x", distance, 1e-6, 1e-4)]
    row = summarize("outputs", BACKENDS[0], "float32", measurements, agrees_in_float64)
    assert (row.status, row.detail) == (status, detail)
