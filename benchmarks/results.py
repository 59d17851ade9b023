"""Collects measured results into `results/` and rewrites the README's tables from them.

    python -m benchmarks.results cpu-2-cores --runs runs/a runs/b
    python -m benchmarks.results cpu-2-cores --train-step step.json --pipeline pipeline.json

Each machine has one file, results/MACHINE.json, with a description that is written by hand.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    """Add results to a machine's file and rewrite the README's tables."""

    machine: tyro.conf.Positional[str]
    """Name of the file in results/, without its ending."""
    runs: tuple[Path, ...] = ()
    """Finished run directories; one of the same settings is replaced."""
    train_step: Path | None = None
    """What benchmarks/train_step.py wrote."""
    pipeline: Path | None = None
    """What benchmarks/pipeline.py wrote."""


SETTING = (
    "recipe", "model", "dataset", "backend", "device", "seed", "train_examples", "epochs",
    "schedule", "batch_size", "learning_rate", "weight_decay", "dtype_policy",
)  # fmt: skip

ORDER = ("recipe", "train_examples", "epochs", "backend")


def read_run(folder: Path) -> dict[str, Any]:
    """A run's metrics, the settings that led to them, and its history."""
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    if len(metrics["backends"]) > 1:
        raise SystemExit(f"{folder} was made on several backends: {metrics['backends']}")
    with open(folder / "history.csv", newline="") as file:
        rows = [{k: round(float(v), 6) for k, v in row.items()} for row in csv.DictReader(file)]
    settings = {name: config[name] for name in SETTING if name in config}
    return {**settings, **metrics, "history": rows}


def update(machine: str, config: Config) -> None:
    path = ROOT / "results" / f"{machine}.json"
    content = json.loads(path.read_text())
    for folder in config.runs:
        run = read_run(folder)
        key = [run.get(name) for name in SETTING]
        kept = [other for other in content["runs"] if [other.get(n) for n in SETTING] != key]
        content["runs"] = sorted([*kept, run], key=lambda r: [r[name] for name in ORDER])
    for name in ("train_step", "pipeline"):
        file = getattr(config, name)
        if file:
            content[name] = json.loads(file.read_text())
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [list(head), *map(list, rows)]]
    lines.insert(1, "|" + " --- |" * lines[0].count(" | ") + " --- |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The README's tables by name, in Markdown."""
    machines = [json.loads(path.read_text()) for path in sorted(ROOT.glob("results/*.json"))]
    accuracy = [
        (
            f"{run['train_examples']:,}",
            str(run["epochs"]),
            run["schedule"],
            run["backend"],
            f"**{run['test_accuracy']:.2%}**",
            f"{run['test_loss']:.4f}",
            f"{run['examples_per_second']:.0f}",
            f"{run['wall_seconds']:.0f}",
            machine["name"],
        )
        for machine in machines
        for run in machine["runs"]
    ]
    head = (
        "training images", "epochs", "schedule", "backend", "test accuracy", "test loss",
        "images/s", "seconds", "machine",
    )  # fmt: skip
    speed = [
        (
            name,
            f"{step['examples_per_second']:.0f}",
            f"{step['ratio']:.2f}",
            f"{machine['pipeline'][name]['share_of_step']:.1%}"
            if name in machine["pipeline"]
            else "",
            machine["name"],
        )
        for machine in machines
        if "train_step" in machine and "pipeline" in machine
        for name, step in machine["train_step"].items()
    ]
    speed_head = ("", "images/s", "against the document's code", "of it augmentation", "machine")
    return {
        "accuracy": table(head, accuracy),
        "speed": table(speed_head, speed),
        "machines": "\n".join(f"- **{m['name']}**: {m['description']}" for m in machines),
    }


def with_tables(readme: str) -> str:
    """The README with each table between its markers replaced."""
    for name, content in tables().items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return readme


def main(config: Config) -> None:
    update(config.machine, config)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    main(tyro.cli(Config))
