"""Trains a model on every backend with several seeds and tests whether accuracies are equivalent.

    python -m benchmarks.accuracy cnn_48x48
    python -m benchmarks.accuracy cnn_48x48 --precision mixed_bfloat16 --margin 0.003

The second command compares, on each backend, float32 with another policy of Keras. Needs the
backends to be installed side by side. Finished runs are not repeated, so the command can be
interrupted and started again. The figures go to results/accuracy.json, those of precisions to
results/precision.json.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from zoo import backends
from zoo.parity.equivalence import compare_accuracies

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "accuracy.json"
PRECISIONS = ROOT / "results" / "precision.json"


@dataclass(frozen=True)
class Config:
    """Compare the accuracy of the backends over several seeds, at the quick setting."""

    model: tyro.conf.Positional[str]
    """Network that recipes/mnist.py trains, such as cnn_48x48."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the runs on every backend. The same seed is the same run, so runs are paired."""
    margin: float = 0.005
    """Largest difference of mean accuracies that counts as none; 0.005 is half a point."""
    precision: Literal["bfloat16", "mixed_bfloat16"] | None = None
    """Dtype policy to compare with float32 on each backend, instead of the backends."""
    backends: tuple[str, ...] = ()
    """Backends that take part; by default all that are installed."""
    runs: Path = Path("runs/accuracy")
    """Directory of the run directories."""


HEAD = ("between", "difference", "90 % interval", "effect size", "p", "equivalent")


def cells(pair: dict[str, Any]) -> tuple[str, ...]:
    """Row of a table under `HEAD`, for the comparison of two backends."""
    low, high = pair["interval"]
    return (
        " and ".join(pair["between"]),
        f"{pair['difference']:+.2%}",
        f"{low:+.2%} to {high:+.2%}",
        f"{pair['effect_size']:+.2f}",
        f"{pair['p_value']:.1e}",
        "yes" if pair["equivalent"] else "no",
    )


def train(config: Config, backend: str, seed: int, policy: str = "float32") -> float:
    """Trains a model, unless its run is finished, and returns the test accuracy."""
    precision = "" if policy == "float32" else f"-{policy}"
    folder = config.runs / f"{config.model}-{backend}{precision}-{seed}"
    command = [sys.executable, str(ROOT / "recipes" / "mnist.py"), "--quick"]
    command += ["--model", config.model, "--seed", str(seed), "--run-dir", str(folder)]
    command += ["--dtype-policy", policy]
    subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    return float(metrics["test_accuracy"])


def compare(config: Config, accuracies: dict[str, list[float]]) -> dict[str, Any]:
    """Tests whether accuracies, paired by seed, are equivalent; prints the table."""
    comparison = compare_accuracies(accuracies, config.margin, paired=True)
    table = Table(*HEAD)
    for pair in comparison["pairs"]:
        table.add_row(*cells(pair))
    Console().print(table)
    return {**comparison, "seeds": config.seeds}


def write(path: Path, model: str, comparison: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content[model] = comparison
    path.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def main(config: Config) -> None:
    names = config.backends or backends.installed()
    if config.precision is None:
        accuracies = {name: [train(config, name, seed) for seed in config.seeds] for name in names}
        write(RESULTS, config.model, compare(config, accuracies))
        return
    policies = "float32", config.precision
    comparisons = {
        name: compare(
            config,
            {
                f"{name} {policy}": [train(config, name, seed, policy) for seed in config.seeds]
                for policy in policies
            },
        )
        for name in names
    }
    write(PRECISIONS, config.model, comparisons)


if __name__ == "__main__":
    main(tyro.cli(Config))
