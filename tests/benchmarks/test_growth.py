"""The benchmark of growth, over few steps."""

import json
from pathlib import Path

import pytest

from benchmarks import growth
from zoo.backends import name


@pytest.mark.once
def test_growth_measures_every_curve_and_plots_them(tmp_path: Path) -> None:
    out = tmp_path / "growth.json"
    sizes = {"steps": 30, "generations": 10, "smallest": 60, "turns": 2, "capacities": (64, 128)}
    growth.main(growth.Config(**sizes, out=out))
    curves = json.loads(out.read_text())[name]
    assert curves.keys() == growth.TITLES.keys()
    assert [p["x"] for p in curves["images"]] == [60, 600, 6000]
    assert len(curves["memory_training"]) == 10
    assert all(p["y"] > 0 for c, points in curves.items() if c != "capacity" for p in points)
    growth.main(growth.Config(plot=True, out=out))
    assert out.with_suffix(".png").stat().st_size > 10_000
