"""Runs the code of the pages in `docs/`, and writes what is in them from results.

    python -m benchmarks.book run chapters/convolutional-networks guides/install
    python -m benchmarks.book keep runs/activations runs/backprop
    python -m benchmarks.book check check.json
    python -m benchmarks.book write

`run` needs the three backends side by side. It records what each block prints on each backend, and
the seconds, in results/book/PAGE.json. `keep` takes the metrics and the picture of finished runs
into results/book/, and `check` the reports of `zoo check --json`. Each command ends with `write`,
which makes the sections and the linked numbers of all pages anew.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

import zoo.__main__
from benchmarks import pages, results
from zoo.parity import report

CHECKS = pages.RESULTS / "check.json"
RUNS = pages.RESULTS / "runs.json"


def run(names: tyro.conf.Positional[tuple[str, ...]]) -> None:
    """Run pages on the three backends and record what they print.

    Args:
        names: Pages, such as chapters/backpropagation.
    """
    outputs = {backend: _run_on(backend, names) for backend in pages.BACKENDS}
    for name in names:
        content = {
            key: {backend: output[name][key] for backend, output in outputs.items()}
            for key in ("seconds", "printed")
        }
        _write_json(pages.RESULTS / f"{name}.json", content)
    write()


def _run_on(backend: str, names: Sequence[str]) -> dict[str, Any]:
    """What the blocks of pages print on a backend, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "printed.json"
        subprocess.run(
            [sys.executable, "-m", "benchmarks.book", "execute", str(output), *names],
            env={**os.environ, "KERAS_BACKEND": backend},
            cwd=pages.ROOT,
            check=True,
        )
        content: dict[str, Any] = json.loads(output.read_text("utf-8"))
        return content


def execute(
    output: tyro.conf.Positional[Path], names: tyro.conf.Positional[tuple[str, ...]]
) -> None:
    """Run the blocks of pages in this process, in empty folders, and write what they print.

    Args:
        output: JSON file that is written.
        names: Pages, such as chapters/backpropagation.
    """
    content = {}
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            printed = pages.run(pages.DOCS / f"{name}.md")
        content[name] = {"seconds": round(time.perf_counter() - started, 1), "printed": printed}
    _write_json(output, content)


def keep(folders: tyro.conf.Positional[tuple[Path, ...]], picture: str | None = None) -> None:
    """Take the metrics of finished runs into results/book/, and a picture of the last of them.

    Args:
        folders: Run directories; their names become those of the results.
        picture: Name of the picture, such as curves.png.
    """
    content = json.loads(RUNS.read_text("utf-8")) if RUNS.exists() else {}
    for folder in folders:
        content[folder.name] = json.loads((folder / "metrics.json").read_text("utf-8"))
    _write_json(RUNS, dict(sorted(content.items())))
    if picture is not None:
        kept = f"{folders[-1].name}-{picture}"
        shutil.copyfile(folders[-1] / picture, pages.RESULTS / kept)
    write()


def check(files: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Take the reports of `zoo check --json` into results/book/, without layers and curves.

    Args:
        files: JSON files of reports.
    """
    content = json.loads(CHECKS.read_text("utf-8")) if CHECKS.exists() else {}
    for file in files:
        for one in report.read_json(file):
            rungs = []
            for rung in one.rungs:
                row = report.most_severe(rung)
                rungs.append(
                    {
                        "number": rung.number,
                        "title": rung.title,
                        "status": rung.status,
                        "distance": row and row.distance,
                        "tolerance": row and row.tolerance,
                        "where": row.where if row else "",
                    }
                )
            content[one.model] = {
                "verdict": one.verdict,
                "seconds": round(one.seconds),
                "environments": {name: dict(e) for name, e in one.environments.items()},
                "rungs": rungs,
            }
    _write_json(CHECKS, dict(sorted(content.items())))
    write()


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def check_table(model: str) -> str:
    """Table of the check's report: each rung with the comparison nearest to its limit."""
    content = json.loads(CHECKS.read_text("utf-8"))[model]
    rows = [
        (
            str(rung["number"]),
            rung["title"],
            rung["status"],
            report.format_number(rung["distance"]),
            report.format_number(rung["tolerance"]),
            f"`{rung['where']}`" if rung["where"] else "",
        )
        for rung in content["rungs"]
    ]
    head = ("rung", "comparison", "result", "largest distance", "tolerance", "where")
    versions = ", ".join(
        f"{pages.BACKENDS[name]} {environment['backend_version']}"
        for name, environment in content["environments"].items()
    )
    return f"{results.table(head, rows)}\n\n`{model}` **{content['verdict']}** on {versions}."


def help_text(command: str) -> str:
    """What a command prints with `--help`, in lines of 96 characters."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="96"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        zoo.__main__.main([*command.split(), "--help"])
    lines = (line.rstrip() for line in output.getvalue().rstrip().splitlines())
    return "\n".join(["```text", *lines, "```"])


def sections() -> Mapping[str, Callable[[str], str]]:
    """Functions that make the sections of pages, by the first word of the section's name."""
    tables: dict[str, Callable[[str], str]] = {
        name: lambda _, text=text: text for name, text in results.tables().items()
    }
    return {**tables, "check": check_table, "help": help_text}


def write() -> None:
    """Make the sections and the linked numbers of all pages anew."""
    makers = sections()
    for page in pages.paths():
        text = page.read_text("utf-8")
        new = pages.with_numbers(pages.with_sections(text, page, makers), page)
        if new != text:
            page.write_text(new, "utf-8")


if __name__ == "__main__":
    commands = {"run": run, "execute": execute, "keep": keep, "check": check, "write": write}
    tyro.extras.subcommand_cli_from_dict(commands)
