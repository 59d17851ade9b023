"""The README: it is short, its code and its commands run, and the files that it names exist."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.once
def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.once
def test_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["model"].output_shape == (None, 43)
    printed = capsys.readouterr().out
    (label,) = re.findall(r"# \('(\d)', 0\.9+\.\.\.\)", code)
    assert printed.startswith(f"('{label}', 0.9999")
    assert "ROMEO:" in printed


@pytest.mark.once
def test_texts_advise_packages_that_an_index_has() -> None:
    """The package itself may not be on an index: a clone installs its extras with `pip -e`."""
    files = [ROOT / "README.md", *(ROOT / "zoo").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    texts = {path: path.read_text("utf-8") for path in files}
    assert any("`pip install jax`" in text for text in texts.values())
    for path, text in texts.items():
        assert not re.search(r"pip install[^`]*keras-zoo", text), path


@pytest.mark.once
def test_readme_names_existing_files() -> None:
    names = re.findall(r"\b((?:tests|recipes|benchmarks|zoo|results|docs)/[\w/.-]+\.\w+)", README)
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.once
def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"```\n(python3 -m venv .*?)\n```", README)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.once
def test_readme_commands_have_existing_recipes_and_flags(in_process: Run) -> None:
    """Checks `zoo COMMAND --FLAG` in code blocks and tables against the help texts."""
    names = "train|classify|generate|next-word|translate|draw|weights|card|check|show|list|export"
    commands = re.findall(rf"\bzoo ((?:{names})\b[^`#\n]*)", README)
    assert len(commands) > 10
    for command in commands:
        words = command.split()
        if words[0] == "train" and words[1].startswith("-"):
            continue
        positional = 2 if words[0] in ("train", "show") else 1
        result = in_process("zoo", *words[:positional], "--help")
        assert result.returncode == 0, command
        for flag in re.findall(r"--[a-z-]+", command):
            assert flag in result.stdout, command
