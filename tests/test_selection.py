"""Tests of the choice of a backend: what `KERAS_BACKEND` and Keras' configuration may hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.backends import selection

IMPORT = "import zoo; print(zoo.backends.name)"
ALIAS = {"tensorflow": "tf", "torch": "PyTorch", "jax": "JAX"}[zoo.backends.name]


def run_python(*arguments: str, home: Path, choice: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a choice of the backend and a folder of Keras' configuration."""
    environment = {**os.environ, "KERAS_BACKEND": choice, "KERAS_HOME": str(home)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_import_zoo_understands_other_names_of_its_backend(tmp_path: Path) -> None:
    result = run_python("-c", IMPORT, home=tmp_path, choice=ALIAS)
    assert result.stdout == f"{zoo.backends.name}\n"
    assert "keras-zoo runs on" not in result.stderr


def test_import_zoo_takes_an_installed_backend_if_none_is_named(tmp_path: Path) -> None:
    """Keras then writes its configuration, which names TensorFlow; from then on that is used."""
    installed = selection.installed()
    expected = next(name for name in ("jax", "torch", "tensorflow") if name in installed)
    result = run_python("-c", IMPORT, home=tmp_path, choice="")
    assert result.stdout == f"{expected}\n"
    assert f"keras-zoo runs on {expected}, as `KERAS_BACKEND` is not set" in result.stderr
    if "tensorflow" in installed:
        again = run_python("-c", IMPORT, home=tmp_path, choice="")
        assert again.stdout == "tensorflow\n"
        assert "keras-zoo runs on" not in again.stderr


@pytest.mark.parametrize("command", [["-c", "import zoo"], ["-m", "zoo", "weights"]])
def test_unknown_backend_ends_with_one_line(tmp_path: Path, command: list[str]) -> None:
    result = run_python(*command, home=tmp_path, choice="theano")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: `KERAS_BACKEND` must be one of tensorflow, torch, jax. Received: "
        "KERAS_BACKEND=theano. Installed here: "
    )
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", selection.NAMES)
def test_missing_backend_ends_with_one_line(tmp_path: Path, name: str) -> None:
    if name in selection.installed():
        pytest.skip(f"{name} is installed")
    result = run_python("-m", "zoo", "weights", home=tmp_path, choice=name)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: The backend {name} is not installed. Installed here: ")
    assert f"`pip install {name}`" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    code = "try:\n    import zoo\nexcept ValueError:\n    1 / 0"
    result = run_python("-c", code, home=tmp_path, choice="theano")
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.once
@pytest.mark.parametrize(
    ("installed", "configuration", "expected", "text"),
    [
        (["jax"], None, "jax", "runs on jax, as `KERAS_BACKEND` is not set\n"),
        (["torch", "jax"], None, "jax", "is not set; installed, too: torch\n"),
        (["torch", "jax"], '{"backend": "torch"}', None, ""),
        (["torch", "jax"], '{"backend": "theano"}', "jax", "runs on jax"),
        (["torch", "jax"], '{"epsilon": 1e-8}', "jax", "runs on jax"),
        (["torch"], "no JSON", "torch", "runs on torch"),
        (["tensorflow", "torch"], None, "torch", "runs on torch, as"),
        (["tensorflow", "torch"], '{"backend": "tensorflow"}', None, ""),
    ],
)
def test_select_prefers_what_is_configured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    installed: list[str],
    configuration: str | None,
    expected: str | None,
    text: str,
) -> None:
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.setattr(selection, "installed", lambda: installed)
    if configuration is not None:
        (tmp_path / "keras.json").write_text(configuration)
    selection.select()
    assert os.environ.get("KERAS_BACKEND") == expected
    assert text in capsys.readouterr().err
    assert bool(text) == (expected is not None)


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ("[1]", "must hold a JSON object. Received: [1]"),
        ('{"floatx": []}', "must have one of float32, float16, float64 as `floatx`. Received: {"),
        ('{"epsilon": 1}', "must have a number with a point as `epsilon`"),
        ('{"image_data_format": "x"}', "must have one of channels_last, channels_first as `image"),
    ],
)
def test_invalid_configuration_of_keras_ends_with_one_line(
    tmp_path: Path, settings: str, rule: str
) -> None:
    path = tmp_path / "keras.json"
    path.write_text(settings)
    for choice in ("", zoo.backends.name):
        result = run_python("-m", "zoo", "weights", home=tmp_path, choice=choice)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: Keras' configuration {path} {rule}")
        assert result.stderr.endswith(". Correct the file or remove it\n")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.once
def test_select_says_that_no_backend_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the error sets it
    monkeypatch.setattr(selection, "installed", list)
    with pytest.raises(ImportError, match=r"No backend is installed.*`pip install jax`"):
        selection.select()


@pytest.mark.skipif(zoo.backends.name != "tensorflow", reason="lines of TensorFlow")
@pytest.mark.parametrize("level", [{}, {"TF_CPP_MIN_LOG_LEVEL": "3"}], ids=["unset", "3"])
def test_commands_hide_startup_lines_of_tensorflow(level: dict[str, str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | level
    command = [sys.executable, "-m", "zoo", "show", "mlp"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr == ""


CRASH = """
import os, sys
sys.argv = ["-m"]
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
import zoo
from zoo.backends import selection
os.environ["KERAS_BACKEND"] = "tensorflow"
with selection.hidden_startup_lines():
    os.write(2, b"I0000 00:00 on\\nW0000 00:00 warning\\nE0000 00:00 failed call to cuInit\\n")
sys.stderr.write("between\\n")
with selection.hidden_startup_lines():
    os.write(2, b"I0000 00:00 on\\nF0000 00:00 last words")
    os.abort()
"""


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is hidden on Windows")
def test_hidden_startup_lines_hides_no_other_line_even_in_a_crash(tmp_path: Path) -> None:
    result = run_python("-c", CRASH, home=tmp_path, choice=zoo.backends.name)
    assert result.returncode < 0
    assert result.stderr == "W0000 00:00 warning\nbetween\nF0000 00:00 last words"


@pytest.mark.once
def test_select_sets_library_settings_unless_the_user_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    selection.select()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
