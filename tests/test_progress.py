"""Tests of bars and lines of progress."""

import re
import sys
import types

import keras
import numpy as np
import pytest

from zoo import progress
from zoo.progress import Progress, ProgressLines, shows_bar

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("terminal", "notebook", "encoding", "expected"),
    [
        (True, False, "utf-8", True),
        (False, True, "utf-8", True),
        (False, False, "utf-8", False),
        (True, False, "ascii", False),
        (False, True, None, True),
    ],
)
def test_shows_bar_on_terminals_and_in_notebooks(
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    notebook: bool,
    encoding: str | None,
    expected: bool,
) -> None:
    output = types.SimpleNamespace(isatty=lambda: terminal, encoding=encoding)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        shown = shows_bar()
    assert shown == expected


def test_progress_prints_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 10.0, 31.0, 31.0, 40.0, 70.0, 70.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    sampling = Progress("sampling", 4)
    for _ in range(4):
        sampling.advance()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["sampling: 2 of 4 steps", "sampling: 4 of 4 steps"]


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_draws_a_bar_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    """Without ipywidgets, which Rich's bars need there."""
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    sampling = Progress("sampling", 2, quiet)
    for _ in range(2):
        sampling.advance()
    assert ("2/2" in capsys.readouterr().out) == (not quiet)


def test_progress_lines_name_epoch_step_and_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mean_squared_error")
    x, y = np.zeros((6, 2), np.float32), np.ones((6, 1), np.float32)
    # Without Keras' own lines, which another thread prints: a captured stream may then lose one.
    model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[ProgressLines()])
    output = capsys.readouterr().out
    expected = [f"epoch {epoch} of 2, step {step} of 3 - loss: " for epoch in (1, 2)
                for step in (1, 2, 3)]  # fmt: skip
    assert re.findall(r"epoch \d of \d, step \d of \d - loss: ", output) == expected
