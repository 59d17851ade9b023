"""Tests of the pytest plugin, with the example of its guide."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks import pages
from zoo import backends

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


PACKAGE = """
import keras

def build_model():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="dense")])

def language_model():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(1000, 4, name="embedding")(ids)
    return keras.Model(ids, keras.layers.Dense(1000, name="logits")(x))
"""
BROKEN = PACKAGE.replace("Dense(4,", "Dense(4 + (keras.backend.backend() == 'jax'),")
FUNCTIONS = """
import keras

def name_and_sum(x):
    return keras.backend.backend(), float(keras.ops.sum(x))

def test_function(keras_worker):
    assert keras_worker(name_and_sum, [1.0, 2.0]) == (keras_worker.backend, 3.0)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Output of pytest for the guide's tests of a correct and a broken package, and of functions.

    One run of pytest executes all tests, which share the workers.
    """
    guide = ROOT / "docs" / "guides" / "test-your-package.md"
    example, with_inputs, _ = (block.code for block in pages.blocks(guide.read_text("utf-8")))
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    assert "from mypackage import" in example
    folder = tmp_path_factory.mktemp("tests")
    files = {
        "mypackage": PACKAGE,
        "test_example": example,
        "test_inputs": with_inputs,
        "broken": BROKEN,
        "test_broken": example.replace("mypackage", "broken"),
        "test_functions": FUNCTIONS,
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-v", "-W", "error", "-p", "no:cacheprovider"]
    command += ["-k", "torch-jax or not broken and not inputs", "."]
    result = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout
    return result.stdout


def test_example_of_the_guide_detects_a_broken_model(output: str) -> None:
    pairs = list(combinations(backends.installed(), 2))
    assert len(pairs) == 3
    for pair in pairs:
        ids = f"test_my_model[{'-'.join(pair)}]"
        assert f"test_example.py::{ids} PASSED" in output
    assert "test_broken.py::test_my_model[torch-jax] FAILED" in output
    assert "shape (8, 4) and (8, 5)" in output
    assert "test_inputs.py::test_my_language_model[torch-jax] PASSED" in output
    assert "1 failed, 7 passed" in output


def test_keras_worker_covers_every_backend(output: str) -> None:
    for name in backends.installed():
        assert f"test_functions.py::test_function[{name}] PASSED" in output


def test_plugin_imports_neither_zoo_nor_keras() -> None:
    code = "import pytest_zoo, sys; print('zoo' in sys.modules or 'keras' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
