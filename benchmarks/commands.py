"""Times the commands that use trained weights, and notes what they print.

    python -m venv fresh && fresh/bin/pip install keras_zoo-*.whl jax
    KERAS_BACKEND=jax fresh/bin/python benchmarks/commands.py fresh/bin/zoo

Each command runs in an empty directory, in a process of its own that imports Keras, and needs no
network. The results are added to results/commands.json; `python -m benchmarks.results` then writes
the book's transcript.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = (
    'zoo draw "a handwritten seven" --out seven.png',
    "zoo classify seven.png --top 3",
    'zoo generate "ROMEO:" --tokens 160',
    'zoo generate "ROMEO:" --tokens 80 --weights gpt-shakespeare-subwords',
    'zoo next-word "To be, or not to"',
    'zoo translate "In the beginning was the word."',
)
RESULTS = Path(__file__).parents[1] / "results" / "commands.json"


def main(zoo: Path) -> None:
    backend = os.environ["KERAS_BACKEND"]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            arguments = [str(zoo.absolute()), *shlex.split(command)[1:]]
            start = time.perf_counter()
            process = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
            seconds = time.perf_counter() - start
            if process.returncode:
                sys.exit(f"{command}: exit status {process.returncode}\n{process.stderr}")
            print(f"{command}: {seconds:.1f} s\n{process.stdout}")
            result = {"seconds": round(seconds, 1), "output": process.stdout}
            results.setdefault(command, {})[backend] = result
    ordered = {command: dict(sorted(results[command].items())) for command in COMMANDS}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
