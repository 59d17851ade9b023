"""Measures the package on a GPU, without a network, the most important jobs first.

    python -m benchmarks.gpu --minutes 8 --out gpu-run
    python -m benchmarks.gpu --device cpu --minutes 1 --out dry-run

Each job runs in a process of its own, on each installed backend that finds a GPU. A job is skipped
if the time left is less than its estimate. DIR/gpu.json is written after every job, and DIR holds
the output of each job. Copied to results/gpu-NAME.json, the file becomes rows of the book's table
(`python -m benchmarks.results`).
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.contenders import BACKENDS
from benchmarks.gpu_session import JobFailed, OutOfTime, Session

PACKAGES = (
    "keras", "torch", "jax", "tensorflow", "numpy", "scipy", "scikit-learn", "matplotlib", "pillow",
)  # fmt: skip
TF32 = {  # what float32 products do by default on a GPU that has TF32
    "torch": "in convolutions", "jax": "in all products", "tensorflow": "in all products",
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Run the jobs that the time allows."""

    out: Path
    """Directory of gpu.json, the jobs' output and their run directories."""
    minutes: float = 8.0
    """Time for all jobs together."""
    device: Literal["auto", "cpu"] = "auto"
    """auto uses the backends that find a GPU; cpu runs small sizes on the CPU, as a test."""
    backends: tuple[str, ...] = BACKENDS
    """Backends that take part, if they are installed."""
    jobs: tuple[str, ...] = ()
    """Names of the jobs to run, such as parameters or cnn_step; by default all."""
    worker: str | None = None
    """Internal: the job that this process runs."""

    def __post_init__(self) -> None:
        if unknown := set(self.jobs) - set(JOBS):
            raise SystemExit(
                f"`jobs` must be among {', '.join(JOBS)}. Received: {', '.join(sorted(unknown))}"
            )


# ------------------------------------------------------------------ jobs in this process


def quick_recipe(session: Session) -> dict[str, Any]:
    small = ("--train-examples", 640, "--test-examples", 200) if session.small else ()
    return session.recipe("mnist", "--quick", *small)


def document_setting(session: Session, *arguments: str) -> dict[str, Any]:
    small = (
        ("--model", "mlp", "--epochs", 2, "--train-examples", 640, "--test-examples", 500)
        if session.small
        else ()
    )
    return session.recipe("mnist", *arguments, *small)


def cosine_schedule(session: Session) -> dict[str, Any]:
    return document_setting(session, "--schedule", "cosine")


def cnn_step(session: Session, tf32: str = "default") -> dict[str, Any]:
    size = ("--batch-size", 8) if session.small else ()
    figures = session.compare("train_step", "--references", "document", "--tf32", tf32, *size)
    return {"tf32": tf32_states(session.backend, tf32), "contenders": figures}


def cnn_step_without_tf32(session: Session) -> dict[str, Any]:
    return cnn_step(session, "off")


def gpt_step(session: Session) -> dict[str, Any]:
    figures = session.compare("shakespeare_step")
    return {"tf32": tf32_states(session.backend, "default"), "contenders": figures}


def text_to_image(session: Session) -> dict[str, Any]:
    small: tuple[Any, ...] = ()
    if session.small:
        small = ("--train-examples", 64, "--epochs", 1, "--samples", 20, "--steps", 5)
        small += ("--channels", 8, 16)
        classifier = session.run_directory("document_setting")
        small += ("--classifier", classifier) if (classifier / "metrics.json").exists() else ()
    return session.recipe("text_to_image", "--quick", *small)


def tf32_states(backend: str, state: str) -> dict[str, str]:
    """Where TF32 is used by the PyTorch code that is compared with, and by a backend."""
    return {name: TF32[name] if state == "default" else "nowhere" for name in ("torch", backend)}


# ------------------------------------------------------------------ jobs in a worker process


def count_parameters(device: str) -> dict[str, Any]:
    """The device and, if it is the one that is asked for, the parameters of every model."""
    from zoo import registry
    from zoo.backends import backend

    result: dict[str, Any] = {"device": backend.device(), "version": backend.version()}
    if device == "auto" and result["device"] == "cpu":
        return result
    counts = {name: entry.build().count_params() for name, entry in registry.models.items()}
    expected = {name: entry.parameter_count() for name, entry in registry.models.items()}
    if counts != expected:
        raise ValueError(f"The models have {counts} parameters instead of {expected}")
    return {**result, "parameters": counts}


def check_devices(device: str) -> dict[str, Any]:
    """Rung 10 of the cross-backend check: outputs of the CPU beside those of the GPU."""
    from zoo import backends
    from zoo.parity import Workers, check

    models = ("mlp",) if device == "cpu" else ("cnn_48x48", "mlp")
    with Workers([backends.name], min_backends=1) as workers:
        reports = [check(model, rungs="10", workers=workers) for model in models]
    return {
        report.model: {
            "verdict": report.verdict,
            "rows": [
                {"comparison": row.comparison, "status": row.status, "distance": row.distance,
                 "tolerance": row.tolerance, "detail": row.detail}
                for row in report.rows
            ],
        }
        for report in reports
    }  # fmt: skip


WORKERS = {"parameters": count_parameters, "check": check_devices}


# ------------------------------------------------------------------ all jobs


@dataclass(frozen=True)
class Job:
    """A measurement.

    Attributes:
        title: Name in the book.
        run: Function that measures.
        estimate: Seconds that it takes on a GPU.
        small_estimate: Seconds that it takes with small sizes on two CPU cores.
        needs_torch: Whether it compares with code in PyTorch.
    """

    title: str
    run: Callable[[Session], dict[str, Any]]
    estimate: float
    small_estimate: float
    needs_torch: bool = False


JOBS = {
    "parameters": Job("parameters of every model", Session.work, 15, 8),
    "check": Job("outputs of CPU and GPU, TF32 off", Session.work, 45, 15),
    "quick": Job("`recipes/mnist.py --quick`", quick_recipe, 30, 15),
    "document_setting": Job("`recipes/mnist.py`, 5 epochs", document_setting, 60, 12),
    "cosine": Job("`recipes/mnist.py --schedule cosine`, 5 epochs", cosine_schedule, 60, 12),
    "cnn_step": Job("training step of `cnn_48x48`, batch 64", cnn_step, 35, 20, True),
    "gpt_step": Job("training step of `recipes/shakespeare.py`", gpt_step, 35, 20, True),
    "text_to_image": Job("`recipes/text_to_image.py --quick`", text_to_image, 100, 25),
    "cnn_step_without_tf32": Job(
        "training step of `cnn_48x48`, batch 64, TF32 off", cnn_step_without_tf32, 35, 20, True
    ),
}


class Results:
    """The content of gpu.json, which is written after every job."""

    def __init__(self, config: Config):
        self._path = config.out / "gpu.json"
        self._started = time.monotonic()
        self.content: dict[str, Any] = {
            "device": None,
            "driver": driver(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "versions": {"python": platform.python_version(), **dict(versions())},
            "minutes": config.minutes,
            "seconds": 0.0,
            "backends": {},
            "jobs": [],
        }

    def add(self, job: str, backend: str, status: str, **entries: Any) -> None:
        entry = {"job": job, "title": JOBS[job].title, "backend": backend, "status": status}
        if "seconds" in entries:
            entries["seconds"] = round(entries["seconds"], 1)
        self.content["jobs"].append({**entry, **entries})
        text = entries.get("error") or entries.get("reason") or ""
        seconds = f", {entries['seconds']:.0f} s" if "seconds" in entries else ""
        print(f"{job}, {backend}: {status}{seconds}{text and ': ' + text}", flush=True)
        self.write()

    def write(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self._started, 1)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1, default=str) + "\n")
        temporary.replace(self._path)


def versions() -> Iterator[tuple[str, str | None]]:
    """Versions of the packages that matter; None for one that is not installed."""
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, None


def driver() -> str | None:
    """Version of the GPU's driver, if there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    return answer.stdout.strip() or None


def run_job(session: Session, results: Results) -> dict[str, Any] | None:
    """Runs a job, or says why it is not run, and returns its result."""
    job, started = JOBS[session.job], time.monotonic()
    identity = session.job, session.backend
    left = session.deadline - started
    estimate = job.small_estimate if session.small else job.estimate
    if job.needs_torch and not importlib.util.find_spec("torch"):
        results.add(*identity, "skipped", reason="needs PyTorch")
        return None
    if estimate > left:
        reason = f"takes about {estimate:.0f} s, and {max(left, 0):.0f} s are left"
        results.add(*identity, "skipped", reason=reason)
        return None
    try:
        result = job.run(session)
    except OutOfTime:
        reason = "no time was left"
        results.add(*identity, "stopped", seconds=left, reason=reason, history=session.history)
    except Exception as error:  # the other jobs go on
        text = str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"
        results.add(*identity, "failed", seconds=time.monotonic() - started, error=text)
    else:
        results.add(*identity, "done", seconds=time.monotonic() - started, result=result)
        return result
    return None


def run_all(config: Config) -> int:
    """Runs the jobs and returns the exit status: 1 if no backend finds a GPU."""
    config.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a job's processes end, too
    deadline = time.monotonic() + 60 * config.minutes
    results = Results(config)
    with tempfile.TemporaryDirectory(prefix="zoo-gpu-") as scratch:

        def run(job: str, backend: str) -> dict[str, Any] | None:
            return run_job(
                Session(config.out, config.device, job, backend, deadline, Path(scratch)), results
            )

        usable: list[str] = []
        for backend in filter(importlib.util.find_spec, config.backends):
            counted = run("parameters", backend)  # also says which device there is
            if counted is None:
                continue
            about = {name: counted[name] for name in ("device", "version")}
            results.content["backends"][backend] = about
            if "parameters" in counted:
                usable.append(backend)
                results.content["device"] = about["device"]
        results.write()
        for job in config.jobs or JOBS:
            for backend in usable:
                if job != "parameters":
                    run(job, backend)
    if not usable:
        print("No backend finds a GPU; see the log files", flush=True)
    return 0 if usable else 1


def main(config: Config) -> int:
    if config.worker:
        config.out.write_text(json.dumps(WORKERS[config.worker](config.device)))
        return 0
    return run_all(config)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
