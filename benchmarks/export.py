"""Exports every model of the zoo to every format, and writes the proofs to results/export.json.

    python -m benchmarks.export [FORMAT ...]

Needs all three backends and the extras `onnx` and `litert`; takes some 15 minutes on two cores.
"""

import json
import sys
import tempfile
from pathlib import Path

from zoo import registry
from zoo.export import FORMATS, export
from zoo.parity import Workers

RESULTS = Path(__file__).parents[1] / "results" / "export.json"


def main(formats: list[str]) -> None:
    names = [example for name in registry.models for example in registry.examples(name)]
    reports = []
    with Workers() as workers, tempfile.TemporaryDirectory() as folder:
        for name in names:
            for format_name in formats:
                path = Path(folder, name.replace("/", "-"), format_name)
                report = export(name, path, format_name, workers=workers)
                print(f"{name} as {format_name}: {report.verdict}", *report.failures, flush=True)
                reports.append(report.as_dict())
                RESULTS.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(FORMATS))
