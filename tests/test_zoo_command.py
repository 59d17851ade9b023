"""Tests of the console command: a mistyped address is found before Keras is imported."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import zoo_command

pytestmark = pytest.mark.once

MODULE = """
import keras
from functools import partial

def build(units=3):
    return keras.Sequential([keras.layers.Dense(units)])

class Model(keras.Model):
    pass

def _private():
    pass

small = partial(build, units=1)
if True:
    conditional = small
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the modules `mine` and `package.mine`, in which Python looks for modules."""
    (tmp_path / "package").mkdir()
    for path in ("mine.py", "package/__init__.py", "package/mine.py"):
        (tmp_path / path).write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


ABSENT = [
    ("absent:build", "There is no module absent in this folder or among the installed packages."),
    ("package.absent:build", "There is no module package.absent in this folder or among the"),
    ("mine:missing", "There is no missing in mine, which has build, Model. Received: mine:missing"),
    ("package.mine:missing", "There is no missing in package.mine, which has build, Model. Rec"),
]


COMMAND = ["-c", "import zoo_command; zoo_command.entry_point()"]
WATCHED = "import atexit, sys; atexit.register(lambda: print('keras' in sys.modules))"


@pytest.mark.parametrize("command", [COMMAND, ["-m", "zoo"]], ids=["zoo", "python -m zoo"])
@pytest.mark.parametrize(("address", "text"), ABSENT)
def test_check_finds_a_mistyped_address_without_keras(
    address: str, text: str, command: list[str], folder: Path
) -> None:
    (folder / "sitecustomize.py").write_text(WATCHED)
    root = str(Path(zoo_command.__file__).parent)
    result = subprocess.run(
        [sys.executable, *command, "check", address, "--rungs", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root])},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "False\n")
    assert result.stderr.startswith(f"error: {text}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [COMMAND, ["-m", "zoo"]], ids=["zoo", "python -m zoo"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "check Compare models on the installed backends."),
        (("--help",), "check Compare models on the installed backends."),
        (("list",), "cnn_48x48 9,547,360 9,530,944 + 513·num_classes"),
        (("train", "--help"), "translate Trains a transformer to translate English verses"),
    ],
)
def test_lists_and_help_are_printed_without_keras(
    command: list[str], arguments: tuple[str, ...], line: str, folder: Path
) -> None:
    (folder / "sitecustomize.py").write_text(WATCHED)
    root = str(Path(zoo_command.__file__).parent)
    result = subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root])},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert line in re.sub("[ │]+", " ", result.stdout)
    assert result.stdout.endswith("False\n")


INTERRUPTED = """
import os, signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background lacks

class Finder:
    def find_spec(self, name, *_):
        if name == "keras":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("command", [COMMAND, ["-m", "zoo"]], ids=["zoo", "python -m zoo"])
def test_ctrl_c_in_the_import_of_keras_ends_with_one_line(command: list[str], folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(INTERRUPTED)
    root = str(Path(zoo_command.__file__).parent)
    result = subprocess.run(
        [sys.executable, *command, "show", "mlp"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root])},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: Stopped\n")


def test_ctrl_c_in_a_command_can_be_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    original_handler = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            monkeypatch.setattr(sys, "argv", ["zoo", "weights"])
            zoo_command._prepare()
            assert (signal.getsignal(signal.SIGINT) is handler) == (handler is signal.SIG_IGN)
            zoo_command.restore_interrupts()
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, original_handler)


@pytest.mark.parametrize("name", ["build", "Model", "small", "conditional", "build.attribute"])
def test_check_address_accepts_names_of_the_source(name: str, folder: Path) -> None:
    zoo_command.check_address(f"mine:{name}")


@pytest.mark.parametrize(
    "source",
    ["from os.path import *", "def __getattr__(name): ...", "globals()['f'] = len", "f(", ""],
)
def test_check_address_leaves_to_the_import_what_only_it_can_tell(
    source: str, folder: Path
) -> None:
    (folder / "dynamic.py").write_text(source)
    zoo_command.check_address("dynamic:f")
    zoo_command.check_address("package:missing")
    zoo_command.check_address("os.path:missing")


def test_check_takes_values_of_flags_for_no_addresses() -> None:
    arguments = ["check", "mine:build", "--input", "bool:x", "--json", "c:report", "other:f"]
    assert list(zoo_command._addresses(arguments)) == ["mine:build", "other:f"]
    assert not list(zoo_command._addresses(["show", "mine:build"]))


def test_keras_is_imported_without_its_extras() -> None:
    """Scikit-learn, which Keras' wrappers import, is there for whoever imports it later."""
    lean = "import sys, zoo_command; zoo_command.skip_extras_of_keras(); import zoo"
    program = f"{lean}; print('sklearn' in sys.modules); import sklearn; import matplotlib.pyplot"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr
    result = subprocess.run(
        [sys.executable, "-c", "import sys, zoo; print('sklearn' in sys.modules)"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout == "True\n", result.stderr
