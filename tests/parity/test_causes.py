"""The check still says what the guide shows of it, of two of the ten causes."""

import json
import re

import pytest

from benchmarks import causes
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


def without_numbers(lines: list[str]) -> list[str]:
    """Lines without numbers, nor the layer that is nearest to its limit where all is within it."""
    return [re.sub(r": agrees: .*|\d[\d.e+-]*", "", line) for line in lines]


@pytest.mark.parametrize("name", ["stray_stop_gradient", "float32_in_float64"])
def test_report_of_a_cause_is_that_of_the_guide(name: str, all_backends: Workers) -> None:
    recorded = json.loads(causes.FILE.read_text("utf-8"))
    assert set(recorded) == set(causes.CAUSES)
    assert len(recorded) == 10
    report = causes.report_of(name, all_backends)
    assert without_numbers(report) == without_numbers(recorded[name])
