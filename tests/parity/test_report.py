"""Tests of the HTML report, in a browser without network access."""

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.parity import models
from zoo.parity import Report, Workers, check
from zoo.parity.html import BACKEND_COLOURS, PAIR_COLOURS, page
from zoo.parity.report import RungReport

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]

ACCURACY = {
    "test_accuracy": {"torch": [0.970, 0.972, 0.971], "jax": [0.971, 0.969, 0.972]},
    "margin": 0.005,
    "pairs": [{"between": ["torch", "jax"], "difference": 0.0003, "interval": [-0.002, 0.0026]}],
}


def browse(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    quiet += "--disable-background-networking --disable-component-update --disable-sync"
    profile = f"--user-data-dir={path.parent / 'profile'}"
    return subprocess.run(
        [browser, *quiet.split(), profile, "--enable-logging=stderr", *arguments, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


class Rows(HTMLParser):
    """HTML parser that counts the rows of each class of table."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self._table = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._table = dict(attributes)["class"] or ""
            self.count[self._table] = self.count.get(self._table, 0) - 1  # excludes the header
        if tag == "tr":
            self.count[self._table] += 1


def count_pixels(pixels: np.ndarray, colour: str) -> int:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels.astype(int) - rgb).max(axis=-1) < 12).sum())


@pytest.fixture(scope="module")
def reports(workers: Workers) -> list[Report]:
    good = check(models.two_inputs, rungs="1-4,6", workers=workers)
    bad = check(models.wider_on_jax, rungs="1-2", workers=workers)
    assert (good.exit_status, bad.exit_status) == (0, 1)
    return [dataclasses.replace(good, accuracy=ACCURACY), bad]


@pytest.fixture(scope="module")
def text(reports: list[Report]) -> str:
    return page(reports)


def test_page_in_a_browser(reports: list[Report], text: str, tmp_path: Path) -> None:
    """The page has no console error, all rows of the tables, and plots in every colour."""
    good, bad = reports
    path = tmp_path / "report.html"
    path.write_text(text)
    screenshot = tmp_path / "shot.png"
    result = browse(path, f"--screenshot={screenshot}", "--window-size=1200,4200")
    assert ":CONSOLE" not in result.stderr
    pixels = np.asarray(Image.open(screenshot).convert("RGB"))
    assert pixels.shape == (4200, 1200, 3)
    for name in ("torch", "jax"):
        assert count_pixels(pixels, BACKEND_COLOURS[name]) > 200, name
    assert count_pixels(pixels, PAIR_COLOURS[0]) > 500
    assert count_pixels(pixels, "#c62a2f") > 20  # a row that differs
    assert count_pixels(pixels, BACKEND_COLOURS["tensorflow"]) == 0  # the test is sensitive

    dom = browse(path, "--dump-dom").stdout
    rows = Rows()
    rows.feed(dom)
    assert rows.count["models"] == 2
    assert rows.count["rungs"] == len(good.rungs) + len(bad.rungs)
    # Three plots of layers and losses, one of accuracies, and two of layers in the second report.
    assert dom.count('<svg role="img"') == 3 + 1 + 1 + 1
    assert rows.count["rows"] == len(good.rows) + len(bad.rows)


def test_browse_reports_console_errors(tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<script>noSuchFunction()</script>")
    assert ":CONSOLE" in browse(path, f"--screenshot={tmp_path / 'shot.png'}").stderr


def test_page_has_no_external_resources(text: str) -> None:
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert "<script" not in text


def test_page_escapes_text() -> None:
    rung = RungReport(1, "<b>", "a & b", ())
    text = page([Report("<script>alert(1)</script>", {}, {}, ("<i>",), (rung,))])
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text
