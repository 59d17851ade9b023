"""The README says what is so: its code runs, its tables are those of results/, its files exist."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import zoo
from benchmarks import results
from zoo.interop import pytorch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tables_are_made_from_the_results() -> None:
    assert results.with_tables(README) == README


def test_the_results_reach_what_is_promised() -> None:
    """Full epochs at the document's settings: at least 98.3 % after one, on each backend."""
    runs = json.loads((ROOT / "results" / "cpu-2-cores.json").read_text())["runs"]
    full = [run for run in runs if run["train_examples"] == 60_000]
    assert {run["backend"] for run in full} == set(zoo.backends.NAMES)
    for run in full:
        assert run["parameters"] == 9_536_074
        assert run["history"][0]["test_accuracy"] >= 0.983
    quick = [run["test_accuracy"] for run in runs if run["train_examples"] == 12_800]
    assert len(quick) >= 3
    assert min(quick) >= 0.96
    assert max(quick) - min(quick) <= 0.01


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytorch.save(zoo.cnn_48x48(10), "my_net.safetensors")
    names = {
        "images": np.zeros((4, 48, 48, 3), np.float32),
        "labels": np.array([0, 1, 2, 3]),
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "def test_" not in block]  # tests/parity runs those
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["model"].built


def test_the_files_it_names_exist() -> None:
    names = re.findall(r"\b((?:tests|recipes|benchmarks|zoo|results)/[\w/.]+\.\w+)", README)
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists(), name


def test_ci_runs_its_test_command() -> None:
    commands = re.findall(r"```\n(python3 -m venv .*?)\n```", README)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
