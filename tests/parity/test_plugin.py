"""The pytest plugin, and the test that the README shows."""

import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from zoo import backends

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


def run_tests(folder: Path, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-v", "-W", "error", "-p", "no:cacheprovider"]
    command += [*arguments, "."]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)


def test_the_readmes_very_text(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "def test_" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    package = (
        "import keras\n"
        "def build_model():\n"
        "    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name='dense')])\n"
    )
    result = run_tests(tmp_path, test_example=example, mypackage=package)
    assert result.returncode == 0, result.stdout
    pairs = ["-".join(pair) for pair in combinations(backends.installed(), 2)]
    assert len(pairs) == 3
    for pair in pairs:
        assert f"[{pair}] PASSED" in result.stdout

    broken = package.replace("Dense(4,", "Dense(4 + (keras.backend.backend() == 'jax'),")
    result = run_tests(tmp_path, "-k", "torch-jax", mypackage=broken)
    assert result.returncode == 1
    assert "shape (8, 4) and (8, 5)" in result.stdout


def test_a_function_runs_on_each_backend(tmp_path: Path) -> None:
    text = (
        "import keras\n"
        "def name_and_sum(x):\n"
        "    return keras.backend.backend(), float(keras.ops.sum(x))\n"
        "def test_it(keras_worker):\n"
        "    assert keras_worker(name_and_sum, [1.0, 2.0]) == (keras_worker.backend, 3.0)\n"
    )
    result = run_tests(tmp_path, test_functions=text)
    assert result.returncode == 0, result.stdout
    for name in backends.installed():
        assert f"[{name}] PASSED" in result.stdout


def test_the_plugin_imports_neither_zoo_nor_keras() -> None:
    code = "import pytest_zoo, sys; print('zoo' in sys.modules or 'keras' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
