"""The GPU benchmark, with small sizes on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zoo
from benchmarks import gpu, gpu_session, results
from benchmarks.contenders import environment
from zoo.backends import name

ROOT = Path(__file__).parents[2]
# PyTorch's environment has the code that the zoo is compared with. JAX's ends earlier.
JOBS = {
    "torch": ("parameters", "cnn_step"),
    "jax": ("parameters", "check", "document_setting"),
    "tensorflow": ("parameters",),
}[name]


@pytest.mark.slow
def test_gpu_benchmark_runs_jobs_within_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "1", "--out", tmp_path]
    command += ["--backends", name, "--jobs", *JOBS]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, *map(str, command)], env=environment(name), cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert time.monotonic() - started < 75

    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["device"] == content["backends"][name]["device"] == "cpu"
    assert content["versions"][name]
    assert tuple(job["job"] for job in content["jobs"]) == JOBS
    statuses = {job["job"]: job["status"] for job in content["jobs"]}
    assert set(statuses.values()) <= {"done", "skipped", "stopped"}, content["jobs"]
    done = {job["job"]: job["result"] for job in content["jobs"] if job["status"] == "done"}
    assert done["parameters"]["parameters"]["cnn_48x48"] == zoo.cnn_48x48().count_params()
    assert all("reason" in job for job in content["jobs"] if job["job"] not in done)
    if name == "jax":
        assert done["check"]["mlp"]["verdict"] == "agrees"
    if name == "torch":
        assert done["cnn_step"]["contenders"]
    if "document_setting" in done:
        first, second = done["document_setting"]["history"]
        assert 0 < first["seconds"] <= second["seconds"]
        assert second["val_accuracy"] > 0.5

    # A file of a GPU becomes rows of the book's table; one of a CPU does not.
    monkeypatch.setattr(results, "gpu_files", lambda: [content])
    heading = results.gpu().splitlines()
    assert len(heading) == 2
    content["device"] = content["backends"][name]["device"] = "Some GPU"
    rows = results.gpu().splitlines()[2:]
    assert len(rows) == len(done)
    assert all(row.endswith("| Some GPU |") for row in rows)


@pytest.mark.once
def test_gpu_benchmark_rejects_unknown_jobs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"`jobs` must be among parameters, .* Received: cnn"):
        gpu.Config(out=tmp_path, jobs=("cnn",))


@pytest.mark.once
def test_gpu_job_names_last_line_of_error(tmp_path: Path) -> None:
    session = gpu_session.Session(tmp_path, "auto", "quick", name, time.monotonic() + 60)
    with pytest.raises(gpu_session.JobFailed, match=r"^ValueError: no such thing$"):
        session.execute("-c", "raise ValueError('no such thing')")


@pytest.mark.once
def test_gpu_job_ends_when_its_time_is_over(tmp_path: Path) -> None:
    session = gpu_session.Session(tmp_path, "auto", "quick", name, time.monotonic() + 1)
    started = time.monotonic()
    with pytest.raises(gpu_session.OutOfTime):
        session.execute("-c", "import time; time.sleep(60)")
    assert time.monotonic() - started < 10


@pytest.mark.once
def test_gpu_table_formats_every_job() -> None:
    assert set(results.GPU_TEXTS) == set(gpu.JOBS)
