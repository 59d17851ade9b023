"""Fixtures of all tests, and the rule that a test marked `gpu` fails where there is none."""

import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from zoo.backends import backend
from zoo.datasets import parallel_text, shakespeare

backend.disable_tf32()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and backend.device() == "cpu":
        pytest.fail("This test needs a GPU and the backend sees none")


@pytest.fixture
def images() -> np.ndarray:
    """(8, 48, 48, 1) uint8: drawn figures that leave no row, column or direction alike."""
    drawn = []
    for i in range(8):
        image = Image.new("L", (48, 48), 10 * i)
        draw = ImageDraw.Draw(image)
        draw.line((5 + i, 40, 30, 5 + 2 * i), fill=255, width=4)
        draw.ellipse((20, 18, 40 - i, 42), outline=180, width=3)
        drawn.append(np.asarray(image))
    return np.stack(drawn)[..., None]


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in this process, which saves the seconds that another takes to import Keras.

    Takes a script's path or a package's name, and arguments; gives what `subprocess.run` would.
    """

    def run(program: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # It would stay on for the tests that follow.
        monkeypatch.setattr(backend, "keep_malloc_pages", lambda: None)
        monkeypatch.setattr(sys, "argv", [str(program), *arguments])
        if isinstance(program, str):  # pytest may have loaded it in a way that `runpy` cannot
            program = Path(str(sys.modules[program].__file__)).with_name("__main__.py")
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(program), run_name="__main__")
        output, errors = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), output, errors)

    return run


@pytest.fixture(scope="module")
def small_corpus() -> Iterator[None]:
    """Shakespeare's works are two, and the first pages of those held out."""
    whole = shakespeare.documents
    held_out = (*shakespeare.VALIDATION, *shakespeare.TEST)
    titles = (*held_out, "ALL'S WELL THAT ENDS WELL", "THE TRAGEDY OF KING RICHARD THE SECOND")
    pages = [
        (title, content[: 20_000 if title in held_out else None])
        for title, content in whole()
        if title in titles
    ]
    shakespeare.documents = lambda: iter(pages)
    yield
    shakespeare.documents = whole


@pytest.fixture(scope="module")
def small_parallel_corpus() -> Iterator[None]:
    """The verses are 172 short ones to learn from and 7 that are held out."""
    whole = parallel_text.pairs
    held_out = (*parallel_text.VALIDATION, *parallel_text.TEST)
    short = [pair for pair in whole() if len(pair.source + pair.target) < 90]
    train = [pair for pair in short if pair.book not in held_out][::4]
    known = {character for pair in train for character in pair.source + pair.target}
    chosen = [p for p in short if p.book in held_out and known.issuperset(p.source + p.target)]
    chosen += train
    parallel_text.pairs = lambda: iter(chosen)
    yield
    parallel_text.pairs = whole
