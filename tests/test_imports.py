"""What may import what, and what an import may cost."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

PACKAGE = Path(zoo.__file__).parent
BACKENDS = {"tensorflow", "torch", "jax", "jaxlib"}


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_backends_are_imported_in_one_folder_only() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "backends" not in path.parts]
    assert len(files) > 10
    for path in files:
        assert not imported(path) & BACKENDS, path
    for name in zoo.backends.NAMES:  # the test sees an import where there is one
        assert name in imported(PACKAGE / "backends" / f"{name}.py")


def test_families_know_no_recipes_and_recipes_no_backends() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not imported(path) & {"recipes", "tests", "benchmarks"}, path
    for path in (PACKAGE.parent / "recipes").glob("*.py"):
        assert not imported(path) & BACKENDS, path


def what_importing_zoo_adds() -> tuple[float, set[str]]:
    """Seconds and packages, in a process that has imported Keras."""
    result = run(
        "import keras, json, sys, time; before = list(sys.modules); start = time.perf_counter(); "
        "import zoo; seconds = time.perf_counter() - start; "
        "print(json.dumps([seconds, before, list(sys.modules)]))"
    )
    seconds, *modules = json.loads(result.stdout.splitlines()[-1])
    before, after = ({name.split(".")[0] for name in names} for names in modules)
    return seconds, after - before


def test_importing_zoo_loads_nothing_but_keras() -> None:
    """No second backend, nothing that plots, reports or downloads."""
    _, added = what_importing_zoo_adds()
    assert "zoo" in added
    assert added <= {"zoo", "PIL", "ctypes", "_ctypes", "statistics", "_statistics"}


def test_importing_zoo_adds_at_most_a_fifth_of_a_second() -> None:
    """In one of three attempts: others may use the machine."""
    assert any(what_importing_zoo_adds()[0] < 0.2 for _ in range(3))


def test_public_names() -> None:
    for name in zoo.__all__:
        assert callable(getattr(zoo, name))
    assert zoo.__version__


def test_an_unknown_backend_is_refused_with_those_installed() -> None:
    result = run("import zoo", KERAS_BACKEND="theano")
    assert result.returncode
    assert "KERAS_BACKEND=theano. Installed here: " in result.stderr
    assert zoo.backends.name in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", zoo.backends.NAMES)
def test_a_backend_that_is_not_installed_says_what_to_install(name: str) -> None:
    if name in zoo.backends.installed():
        pytest.skip(f"{name} is installed here")
    result = run("import zoo", KERAS_BACKEND=name)
    assert result.returncode
    assert f'pip install "keras-zoo[{name}]"' in result.stderr.splitlines()[-1]
