"""The check reaches the right verdict on models as users write them."""

import keras
import pytest

from tests.parity import verdicts_layers, verdicts_models, verdicts_reports  # noqa: F401 (register)
from tests.parity.verdicts import VERDICTS, Verdict
from zoo.parity import Report, Workers, check

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


def checked(verdict: Verdict, workers: Workers, **options: object) -> Report:
    """The report on a model whose initial weights are the same in every run of the tests."""

    def build() -> keras.Model:
        keras.utils.set_random_seed(0)
        return verdict.build()

    return check(build, workers=workers, **{"rungs": "1-4", **verdict.options, **options})


@pytest.mark.parametrize("name", VERDICTS)
def test_check_reaches_the_right_verdict(name: str, all_backends: Workers) -> None:
    verdict = VERDICTS[name]
    report = checked(verdict, all_backends)
    assert report.exit_status == verdict.exit_status, report.failures
    if verdict.exit_status == 1:
        assert {row.where for row in report.rows if row.status == "differs"} == {verdict.where}
    assert any(verdict.says in text for text in ("", *report.explanation, *report.notes))
    assert not any(row.tolerance and row.tolerance >= 0.5 for row in report.rows)


EXPLANATIONS = {
    "with_unequal_added_losses": [
        "jax is the odd one: tensorflow and torch agree with each other.",
        "Rounding is excluded, since it is float64 that differs.",
        "Likeliest cause: what layers add to the loss by `add_loss`",
    ],
    "beside_a_mask": [
        "torch is the odd one: tensorflow and jax agree with each other.",
        "The first difference is in inference mode at scores (Masked, created in tests/parity/",
        "All layer calls before it agree: 1.",
        "Rounding is not excluded: float64 was not compared.",
    ],
}


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_report_explains_a_difference(name: str, all_backends: Workers) -> None:
    verdict = VERDICTS[name]
    report = checked(verdict, all_backends)
    for beginning in EXPLANATIONS[name]:
        assert any(text.startswith(beginning) for text in report.explanation), report.explanation


def test_check_compares_the_weights_of_a_subclass(all_backends: Workers) -> None:
    verdict = VERDICTS["subclass"]
    report = checked(verdict, all_backends, rungs="1")
    assert "4 variables, 154 parameters" in report.rows[0].detail
    assert not report.notes


def test_report_names_the_backend_that_computes_in_float32(all_backends: Workers) -> None:
    report = checked(VERDICTS["bilinear_upsampling"], all_backends, rungs="3")
    (note,) = report.notes
    assert note.startswith("up on tensorflow: computed in float32 in a float64 model")


def test_check_of_nothing_does_not_agree(all_backends: Workers) -> None:
    report = checked(VERDICTS["without_state"], all_backends)
    assert not report.agrees
    assert report.verdict == "could not be compared"
    assert {row.detail for row in report.rows} == {"nothing to compare"}
