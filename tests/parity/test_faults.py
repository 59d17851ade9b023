"""The check sees every planted fault on the right rung and in the right place, and no others."""

import pytest

from tests.parity.faults import FAULTS, HARMLESS
from zoo.parity import Workers, check

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_on_its_rung_and_in_its_place(name: str, workers: Workers) -> None:
    fault = FAULTS[name]
    report = check(fault.build, rungs=range(1, fault.rung + 1), workers=workers, **fault.options)
    assert report.exit_status == 1
    *before, last = report.rungs
    for rung in before:
        assert rung.status in ("agrees", "rounding", "ruled out"), report.troubles
    found = [row for row in last.rows if row.status == "differs"]
    assert fault.where in found[0].where
    assert all(fault.what in row.what for row in found), found
    print(found[0])


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_difference_is_not_flagged(name: str, workers: Workers) -> None:
    report = check(HARMLESS[name], workers=workers)
    assert report.agrees, report.troubles
    distances = {row.distance for rung in report.rungs if rung.number == 2 for row in rung.rows}
    assert max(distances) > 0  # the two are not computed alike
