"""The arithmetic of many devices, and its tables."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import results, scaling
from benchmarks.scaling import Link, Row

pytestmark = pytest.mark.once

ROWS = [
    Row("gpt", "jax", 2, 0.06, 1_000_000),
    Row("gpt", "jax", 1, 0.1, 1_000_000),
    Row("cnn_48x48", "torch", 1, 1.0, 10_000_000),
    Row("cnn_48x48", "torch", 2, 0.6, 10_000_000),
    Row("cnn_48x48", "jax", 1, 2.0, 10_000_000),
]


def test_ring_sends_twice_the_gradients_but_for_a_part() -> None:
    assert scaling.all_reduce_bytes(1000, 1) == 0
    assert scaling.all_reduce_bytes(1000, 2) == 4000
    assert scaling.all_reduce_bytes(1000, 8) == 7000
    assert scaling.all_reduce_bytes(1000, 512) == pytest.approx(8000, rel=0.002)


def test_step_is_computed_and_exchanged() -> None:
    row, link = ROWS[1], Link(bandwidth=1e9, latency=1e-3)
    # 7 MB at 1 GB/s, and 14 messages.
    assert scaling.all_reduce_seconds(row.parameters, 8, link) == pytest.approx(0.007 + 0.014)
    assert scaling.step_seconds(row, 8, link) == pytest.approx(0.1 / 8 + 0.021)
    assert scaling.step_seconds(row, 8, link, same_batch=False) == pytest.approx(0.1 + 0.021)
    # The exchange of 4 MB took 60 - 100/2 ms.
    assert scaling.implied_bandwidth(ROWS[1], ROWS[0]) == pytest.approx(0.4e9)


def test_rows_are_replaced_and_tables_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scaling.json"
    scaling.save(Row("gpt", "jax", 1, 9.0, 1_000_000), path, "a machine")
    for row in ROWS:
        scaling.save(row, path, "")
    machine, rows = scaling.read(path)
    assert machine == "a machine"
    assert rows == [ROWS[4], *ROWS[2:4], ROWS[1], ROWS[0]]
    assert json.loads(path.read_text())["rows"][-1] == asdict(ROWS[-1])
    monkeypatch.setattr(results, "SCALING", path)
    assert "| `gpt` | jax | 100 | 60 | 1.67 |" in results.scaling_table()
    assert "| `cnn_48x48` | jax | 2000 |  |  |" in results.scaling_table()
    # 8 devices share a batch: 1 s / (1/8 s + 70 MB / 12.5 GB/s + 14 * 10 µs).
    assert "| `cnn_48x48` | torch | 10,000,000 | 1000 | 70.0 | 7.6 | 8.0 |" in results.planning()
    assert "| `gpt` | jax | 2 | 60 | 60 | 0.40 |" in results.planning_check()
