"""Exports models of the zoo, created on the running backend, and proves the files on all backends.

    KERAS_BACKEND=jax python -m benchmarks.export
    KERAS_BACKEND=torch python -m benchmarks.export --models gpt unet --formats onnx --weights
    KERAS_BACKEND=torch python -m benchmarks.export --models --weights mlp-mnist --test-data whole

The rows of results/export.json that a run computes anew are replaced; the others stay.
`python -m benchmarks.results` then writes the book's tables. Needs all three backends and the
extras `onnx` and `litert`. All models take some 15 minutes on two cores, for each backend.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from zoo import backends, registry
from zoo.export import FORMATS, ExportReport, export
from zoo.export.export import TestData
from zoo.export.storage import DTYPES
from zoo.files.weights import packed_names
from zoo.parity import Workers

RESULTS = Path(__file__).parents[1] / "results" / "export.json"
KEY = ("model", "format", "weights", "starting_backend")
_MEASURED = (
    "bytes", "load_seconds", "file_seconds", "model_seconds", "examples", "file_metrics",
    "model_metrics", "card_metrics",
)  # fmt: skip


def example_names() -> list[str]:
    return [example for name in registry.models for example in registry.examples(name)]


@dataclass(frozen=True)
class Config:
    """Export models and trained weights, and add the proofs to results/export.json."""

    models: tuple[str, ...] = field(default_factory=lambda: tuple(example_names()))
    """Models, created with initial weights and exported in float32; by default all."""
    formats: tuple[str, ...] = tuple(FORMATS)
    """Formats of the models; by default all."""
    weights: tuple[str, ...] = field(default_factory=lambda: tuple(packed_names()))
    """Trained weights, exported in float32, float16 and int8; by default all."""
    weight_formats: tuple[str, ...] = ("onnx", "litert")
    """Formats of the trained weights. The others round as ONNX does."""
    test_data: TestData = "part"
    """Test data of the metrics of trained weights."""


def exports(config: Config, workers: Workers, folder: Path) -> Iterator[dict[str, Any]]:
    """Exports all that a configuration asks for; a row of results for each."""
    jobs: list[tuple[str, str, Any]] = [
        *itertools.product(config.models, config.formats, DTYPES[:1]),
        *itertools.product(config.weights, config.weight_formats, DTYPES),
    ]
    for number, (name, format_name, dtype) in enumerate(jobs):
        model: Any = name
        if name not in config.weights:
            arguments = registry.examples(name)[name]
            model = registry.get(name.partition("/")[0]).build(**arguments)
        row: dict[str, Any] = dict(zip(KEY, (name, format_name, dtype, backends.name)))
        try:
            report = export(
                model, folder / str(number), format_name, workers=workers, dtype=dtype,
                test_data=config.test_data,
            )  # fmt: skip
        except ValueError as error:
            yield {**row, "verdict": "cannot", "proven": False, "failures": [str(error)]}
        else:
            yield {**row, **summary(report)}


def summary(report: ExportReport) -> dict[str, Any]:
    """The report without its rows."""
    (outputs,) = (rung.rows for rung in report.rungs if rung.title == "outputs")
    change = [row for rung in report.rungs if rung.title == "change" for row in rung.rows]
    return {
        "verdict": report.verdict,
        "proven": report.proven,
        "failures": report.failures,
        "environments": {name: dict(values) for name, values in report.environments.items()},
        "distance": max((row.distance or 0 for row in outputs), default=None),
        "tolerance": max((row.tolerance or 0 for row in outputs), default=None),
        "change": max((row.distance or 0 for row in change), default=None),
        **{key: report.settings[key] for key in _MEASURED if key in report.settings},
        "seconds": report.seconds,
    }


def main(config: Config) -> None:
    rows = json.loads(RESULTS.read_text("utf-8"))
    with Workers() as workers, tempfile.TemporaryDirectory() as folder:
        for row in exports(config, workers, Path(folder)):
            print(*(row[key] for key in KEY), row["verdict"], *row["failures"], flush=True)
            rows = [other for other in rows if any(other[key] != row[key] for key in KEY)]
            rows = sorted([*rows, row], key=lambda other: [other[key] for key in KEY])
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
