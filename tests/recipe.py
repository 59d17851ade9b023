"""Helpers of the tests that call a recipe in this process."""

import contextlib
import dataclasses
import io
import signal
from pathlib import Path
from typing import Any

import pytest
import tyro

import zoo
from benchmarks.weights import pack
from zoo.training import StepCheckpoint


def run(recipe: Any, settings: dict[str, Any], folder: Path, **changes: Any) -> tuple[dict, str]:
    """Runs a recipe's module in a run directory; returns its metrics and its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        metrics = recipe.main(recipe.Config(**{**settings, "run_dir": folder, **changes}))
    return metrics, output.getvalue()


def assert_packed(
    folder: Path, name: str, into: Path, metrics: dict[str, Any], also: set[str], command: str
) -> None:
    """Packs the weights of a finished run, and checks the card's metrics and command.

    Args:
        folder: Run directory.
        name: Name of the weights folder.
        into: Folder in which the weights folder is made.
        metrics: Metrics of the run.
        also: Names of the card's metrics besides `test_loss`.
        command: Command of the recipe that the card must have.
    """
    card = pack(folder, name, "a machine", commit="1234", into=into)
    measured = card.metrics[zoo.backends.name]
    assert measured.whole["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert set(measured.part) == set(measured.whole) == {"test_loss", *also}
    assert card.training.command == command


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
