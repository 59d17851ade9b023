"""Processes of a job of benchmarks/gpu.py, which end when its time is over."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import ROOT, environment, quartiles, ratio


class JobFailed(RuntimeError):
    """A process ended with an error; the text is the last line of its output."""


class OutOfTime(RuntimeError):
    """The time for all jobs ended during a job."""


@dataclass
class Session:
    """A job on one backend, and the time until which it may run.

    Attributes:
        out: Directory of gpu.json and of the jobs' output.
        device: auto, or cpu for small sizes on the CPU.
        job: Name of the job.
        backend: Backend of Keras in the job's processes.
        deadline: Time by `time.monotonic` at which the job is ended.
        scratch: Directory of the run directories, whose checkpoints are large.
        history: Rows of history.csv, as far as a recipe has come.
    """

    out: Path
    device: str
    job: str
    backend: str
    deadline: float
    scratch: Path = Path()
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def small(self) -> bool:
        """Whether sizes are small."""
        return self.device == "cpu"

    def path(self, ending: str) -> Path:
        """File or directory of the job's output."""
        return self.out.absolute() / f"{self.job}-{self.backend}{ending}"

    def execute(self, *arguments: Any, watch: Callable[[], None] = lambda: None) -> None:
        """Runs Python with these arguments until it ends, with its output in a log file.

        Raises:
            JobFailed: If the exit status is not 0.
            OutOfTime: If the process has to be ended.
        """
        variables = environment(self.backend)
        if self.small:
            variables |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        log = self.path(".log")
        with open(log, "w") as output:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)], env=variables, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                while process.poll() is None:
                    if time.monotonic() > self.deadline:
                        raise OutOfTime
                    watch()
                    time.sleep(0.05)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        watch()
        if process.returncode:
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
            last = next((line for line in reversed(lines) if line), "")
            raise JobFailed(last or f"exit status {process.returncode}")

    def work(self) -> dict[str, Any]:
        """Runs the function in `benchmarks.gpu.WORKERS` of the job's name; returns its result."""
        out = self.path(".json")
        self.execute("-m", "benchmarks.gpu", "--device", self.device, "--out", out,
                     "--worker", self.job)  # fmt: skip
        return read_json(out)

    def run_directory(self, job: str) -> Path:
        """Run directory of a job."""
        return self.scratch.absolute() / f"{job}-{self.backend}"

    def recipe(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Runs a recipe and copies the small files of its run directory.

        Returns:
            The content of metrics.json and the rows of history.csv. The entry `seconds` of a row
            is the time from the start of the process to the end of the epoch.
        """
        run_dir = self.run_directory(self.job)
        started = time.monotonic()

        def watch() -> None:
            path = run_dir / "history.csv"
            rows = read_csv(path) if path.exists() else []
            seconds = round(time.monotonic() - started, 1)
            self.history += [{**row, "seconds": seconds} for row in rows[len(self.history) :]]

        try:
            self.execute(f"recipes/{name}.py", "--run-dir", run_dir, *arguments, watch=watch)
        finally:
            for file in run_dir.glob("*.*"):
                if file.suffix in (".json", ".csv", ".png", ".gif"):
                    self.path("").mkdir(exist_ok=True)
                    shutil.copy(file, self.path(""))
        return {**read_json(run_dir / "metrics.json"), "history": self.history}

    def compare(self, row: str, reference: str, ours: str, *arguments: Any) -> dict[str, Any]:
        """Runs two contenders of a row of benchmarks/all.py.

        Args:
            row: Name of the row.
            reference: Name of the contender that the ratios refer to.
            ours: Name of the other contender.
            *arguments: Further arguments of benchmarks/all.py.

        Returns:
            The median seconds of a step of each contender, and the median of its ratios.
        """
        out = self.path(".json")
        sizes = ("--small", "--rounds", 2, "--steps", 2, "--warmup", 1)
        kinds, names = zip(reference.split(), ours.split(), strict=True)
        self.execute("-m", "benchmarks.all", "--rows", row, "--json", out,
                     "--backends", *dict.fromkeys(names), "--kinds", *dict.fromkeys(kinds),
                     *(sizes if self.small else ("--steps", 50, "--rounds", 10)),
                     *arguments)  # fmt: skip
        seconds = read_json(out)["rows"][row]["seconds"]
        return {
            name: {
                "seconds": quartiles(seconds[name])[1],
                "ratio": ratio(seconds[reference], seconds[name])[1],
            }
            for name in (reference, ours)
        }


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def read_csv(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [
            {name: round(float(value), 6) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
