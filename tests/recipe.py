"""Helpers of the tests that call a recipe in this process."""

import contextlib
import dataclasses
import io
import signal
from pathlib import Path
from typing import Any

import pytest
import tyro

from zoo.training import StepCheckpoint


def run(recipe: Any, settings: dict[str, Any], folder: Path, **changes: Any) -> tuple[dict, str]:
    """Runs a recipe's module in a run directory; returns its metrics and its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        metrics = recipe.main(recipe.Config(**{**settings, "run_dir": folder, **changes}))
    return metrics, output.getvalue()


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sends Ctrl-C once, during the step of this number. Returns the growing list of steps."""
    begin, taken = StepCheckpoint.on_train_batch_begin, []

    def interrupted(self: StepCheckpoint, batch: int, logs: Any = None) -> None:
        begin(self, batch, logs)
        taken.append(self.state.step + 1)
        if len(taken) == steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StepCheckpoint, "on_train_batch_begin", interrupted)
    return taken


def help_of(config: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The text of `--help`, after a check that it names every flag."""
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"])
    words = capsys.readouterr().out
    for field in dataclasses.fields(config):
        assert not field.init or f"--{field.name.replace('_', '-')}" in words
    return words
