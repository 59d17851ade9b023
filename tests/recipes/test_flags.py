"""Tests of the flags of all recipes: each is refused by its name and rule, before any work."""

import dataclasses
import importlib
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.test_run_directories import RECIPES
from zoo.__main__ import main

pytestmark = pytest.mark.once

REQUIRED = {"finetune_llm": {"preset": "none", "text": Path("none")}}
INVALID: dict[type, tuple[Any, ...]] = {
    float: (float("nan"), float("inf"), -float("inf"), -1.0, "1"),
    int: (10**12, -1, 2.5, True, "1"),
    tuple: ((10**12,), (-1,), (2.5,)),
}


def number_flags(config: type) -> dict[str, type]:
    """Types of the flags that take a number or a tuple of them, by name."""
    flags: dict[str, type] = {}
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        options = typing.get_args(hint) if is_union else (hint,)
        for option in options:
            if option in (int, float):
                flags[field.name] = option
            elif typing.get_origin(option) is tuple and int in typing.get_args(option):
                flags[field.name] = tuple
    return flags


@pytest.mark.parametrize("name", RECIPES)
def test_number_flags_are_refused_by_their_names(name: str) -> None:
    config = importlib.import_module(f"recipes.{name}").Config
    flags = number_flags(config)
    assert "seed" in flags
    for flag, kind in flags.items():
        for value in INVALID[kind]:
            with pytest.raises(ValueError, match=rf"^`{flag}` must be .*\. Received: {flag}="):
                config(**REQUIRED.get(name, {}), **{flag: value})


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("mnist --learning-rate nan", "`learning_rate` must be a finite number above 0"),
        ("diffusion --batch-size 2000000", "`batch_size` must be a whole number of at most"),
        ("long_memory --lengths 5 99999999999", "`lengths` must be a sequence of .* at most"),
        ("long_memory --lengths 0", "`lengths` must be a sequence of .* at least 2"),
        ("translate --num-beams 2000", "`num_beams` must be a whole number of at most 1024"),
        ("translate --max-length 257", "`max_length` must be a whole number of at most 256"),
        ("text_to_image --guidance-scale inf", "`guidance_scale` must be a finite number of at"),
    ],
)
def test_commands_refuse_flags_before_anything_is_made(
    command: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["train", *command.split(), "--run-dir", "run"])
    assert exit_.value.code == 2
    words = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(text, words)
    assert not list(tmp_path.iterdir())
