"""Tests of what all recipes have in common: the lock of the run directory, and `--quiet`."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from zoo.training.config import open_run
from zoo.training.run_directory import RunDirectory

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_respects_the_lock_of_its_run_directory(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second process is refused before it reads data, and prints nothing if it is quiet."""
    recipe: Any = importlib.import_module(f"recipes.{name}")
    required = {}
    if name == "finetune_llm":
        (tmp_path / "text").write_text("a")
        required = {"preset": "none", "text": tmp_path / "text"}
    config = recipe.Config(**required, quick=True, quiet=True, run_dir=tmp_path / "run")
    writers: list[RunDirectory] = []

    def open_twice(*arguments: Any, **options: Any) -> RunDirectory:
        writers.append(open_run(*arguments, **options))
        writers[0].write_config()
        return open_run(*arguments, **options)

    monkeypatch.setattr(recipe, "open_run", open_twice)
    with pytest.raises(BlockingIOError, match="in use by process"):
        recipe.main(config)
    with writers[0]:  # which ends the lock
        pass
    assert capsys.readouterr() == ("", "")
