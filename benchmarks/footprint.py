"""Disk and memory that a backend takes: results/footprint.json.

    KERAS_BACKEND=jax python -m benchmarks.footprint

The disk is that of the backend's package and of all that it requires, without what this package
requires itself. The memory is the largest of a process that imports `zoo`, and of one that also
computes the probabilities of one image with trained weights.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from zoo import backends

RESULTS = Path(__file__).parents[1] / "results" / "footprint.json"

PROGRAMS = {
    "import": "import zoo",
    "predict": "import numpy, zoo;"
    "zoo.load('mlp-mnist').probabilities(numpy.zeros((1, 28, 28, 1), 'uint8'))",
}


def requirements(name: str) -> set[str]:
    """Names of a distribution and of all that it requires here, without extras."""
    names: set[str] = set()
    waiting = [name]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in names:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        names.add(name)
        parsed = [Requirement(text) for text in required]
        waiting += [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return names


def megabytes(names: set[str]) -> float:
    """Size of the files of distributions, in MB."""
    files = (file for name in names for file in importlib.metadata.files(name) or [])
    paths = {Path(str(file.locate())) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def mebibytes(program: str) -> float:
    """Largest memory of a process that runs a program, in MiB."""
    code = f"{program}; import resource as r; print(r.getrusage(r.RUSAGE_SELF).ru_maxrss)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    factor = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return int(result.stdout.split()[-1]) / factor


def main() -> None:
    own = requirements("keras-zoo")
    measured = {
        "version": importlib.metadata.version(backends.name),
        "megabytes": round(megabytes(requirements(backends.name) - own)),
        **{f"{name}_mebibytes": round(mebibytes(code)) for name, code in PROGRAMS.items()},
    }
    content = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    content[backends.name] = measured
    RESULTS.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
