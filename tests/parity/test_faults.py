"""The check reports every planted fault on its rung and location, and no harmless difference."""

import pytest

from tests.parity.faults import FAULTS, HARMLESS
from zoo.parity import Workers, check

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", FAULTS)
def test_check_locates_planted_faults(name: str, workers: Workers) -> None:
    fault = FAULTS[name]
    report = check(fault.build, rungs=range(1, fault.rung + 1), workers=workers, **fault.options)
    assert report.exit_status == 1
    *lower, last = report.rungs
    for rung in lower:
        assert rung.status in ("agrees", "rounding", "ruled out"), report.failures
    rows = [row for row in last.rows if row.status == "differs"]
    assert fault.where in rows[0].where
    assert all(fault.comparison in row.comparison for row in rows), rows
    print(rows[0])


@pytest.mark.parametrize("name", HARMLESS)
def test_check_accepts_harmless_differences(name: str, workers: Workers) -> None:
    report = check(HARMLESS[name], workers=workers)
    assert report.agrees, report.failures
    distances = {row.distance for rung in report.rungs if rung.number == 2 for row in rung.rows}
    assert max(distances) > 0  # the two computations differ
