"""Training on a GPU; the tests fail if the backend has no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.backends import backend

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[1]


def test_cnn_has_parameter_count() -> None:
    assert backend.device() != "cpu"
    assert zoo.cnn_48x48(10).count_params() == 9_536_074


def test_mnist_recipe_reaches_accuracy(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "recipes" / "mnist.py", "--quick", "--run-dir", tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["device"] == backend.device()
    assert metrics["test_accuracy"] >= 0.96
