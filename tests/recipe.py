"""What the tests of a recipe that is called in this process share."""

import contextlib
import dataclasses
import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from zoo.training import trainer


def run(recipe: Any, settings: dict[str, Any], folder: Path, **changes: Any) -> tuple[dict, str]:
    """Runs a recipe's module in a run directory: its metrics, and what it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        metrics = recipe.main(recipe.Config(**{**settings, "run_dir": folder, **changes}))
    return metrics, output.getvalue()


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has Ctrl-C come during the step of this number, once. Lists the steps as they are taken."""
    step, taken = trainer._Loop.step, []

    def interrupted(self: trainer._Loop, indices: np.ndarray) -> None:
        step(self, indices)
        taken.append(self._state.step)
        if len(taken) == steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer._Loop, "step", interrupted)
    return taken


def help_of(config: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` prints; every field that can be given is in it."""
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"])
    words = capsys.readouterr().out
    for field in dataclasses.fields(config):
        assert not field.init or f"--{field.name.replace('_', '-')}" in words
    return words
