"""Runs the code of the pages in `docs/`, and writes what is in them from results.

    python -m benchmarks.book run chapters/convolutional-networks guides/install
    python -m benchmarks.book keep runs/activations runs/backprop
    python -m benchmarks.book check check.json
    python -m benchmarks.book write

`run` records what each block prints on each installed backend, and the seconds, in
results/book/PAGE.json; a page needs those of all three. `keep` takes the metrics and the picture of
finished runs into results/book/, and `check` the reports of `zoo check --json`. Each command ends
with `write`, which makes the sections and the linked numbers of all pages anew.
"""

import ast
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

import zoo.__main__
from benchmarks import causes, glossary, pages, results
from zoo import backends
from zoo.parity import report

CHECKS = pages.RESULTS / "check.json"
RUNS = pages.RESULTS / "runs.json"


def run(names: tyro.conf.Positional[tuple[str, ...]]) -> None:
    """Run pages on the installed backends and record what they print.

    Args:
        names: Pages, such as chapters/backpropagation.
    """
    failed = False
    for backend in backends.installed():
        command = [sys.executable, "-m", "benchmarks.book", "execute", *names]
        environment = {**os.environ, "KERAS_BACKEND": backend}
        failed |= subprocess.run(command, env=environment, cwd=pages.ROOT).returncode != 0
    if failed:
        raise SystemExit("A page could not be run; see above")
    write()


def execute(names: tyro.conf.Positional[tuple[str, ...]]) -> None:
    """Run pages in this process, each in an empty folder, and record what they print.

    Args:
        names: Pages, such as chapters/backpropagation.
    """
    failed = False
    for name in names:
        started = time.process_time()  # of all threads; other work does not count
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                printed = pages.run(pages.DOCS / f"{name}.md")
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        seconds = round(time.process_time() - started, 1)
        path = pages.RESULTS / f"{name}.json"
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        content[backends.name] = {"seconds": seconds, "printed": printed}
        _write_json(path, dict(sorted(content.items())))
    if failed:
        raise SystemExit(1)


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
        f"{title} {content['environments'][name]['backend_version']}"
        for name, title in pages.BACKENDS.items()
        if name in content["environments"]
    )
    return f"{results.table(head, rows)}\n\n`{model}` **{content['verdict']}** on {versions}."


def footprint(_: str) -> str:
    """Table of the disk and the memory that each backend takes."""
    content = json.loads((pages.ROOT / "results" / "footprint.json").read_text("utf-8"))
    rows = (
        (
            f"{pages.BACKENDS[name]} {measured['version']}",
            f"{measured['megabytes']:,}",
            f"{measured['import_mebibytes']}",
            f"{measured['predict_mebibytes']}",
        )
        for name, measured in content.items()
    )
    head = ("", "disk, MB", "memory after `import zoo`, MiB", "after one prediction, MiB")
    return results.table(head, rows)


def rooms(_: str) -> str:
    """Table of the parts of `zoo/`, with what each imports, read from the code."""
    package = pages.ROOT / "zoo"
    folders = (path for path in package.iterdir() if not path.is_symlink())
    paths = [path for path in folders if (path / "__init__.py").exists()]
    paths += [path for path in package.glob("*.py") if not path.stem.startswith("_")]
    names = {path.stem for path in paths}
    imports: dict[str, set[str]] = {}
    summaries = {}
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        trees = [ast.parse(file.read_text("utf-8")) for file in files]
        found = {name for tree in trees for name in _imported(tree)}
        imports[path.stem] = (found & names) - {path.stem}
        summaries[path.stem] = str(ast.get_docstring(trees[0])).partition("\n")[0]
    depth: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(floor, imports[name]), default=0)
        return depth[name]

    order = sorted(names, key=lambda name: (floor(name), name))
    rows = (
        (
            str(floor(name)),
            f"`{name}`",
            summaries[name],
            ", ".join(f"`{other}`" for other in sorted(imports[name])),
        )
        for name in order
    )
    return results.table(("floor", "part", "contents", "imports"), rows)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names of the parts of `zoo/` that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, *rest = node.module.split(".")
            if first == "zoo":
                yield from rest[:1] or [alias.name for alias in node.names]


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
    return {
        **tables,
        "cause": causes.section,
        "check": check_table,
        "footprint": footprint,
        "glossary": glossary.table,
        "help": help_text,
        "planning": lambda _: results.planning(),
        "planning_check": lambda _: results.planning_check(),
        "rooms": rooms,
    }


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
