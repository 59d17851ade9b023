"""Tests of the cross-backend check: reports, failures, exit statuses, invalid arguments."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.parity import models
from zoo import backends
from zoo.parity import WorkerError, Workers, assert_backends_agree, check
from zoo.parity.report import read_json, write_json

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "zoo", "check"]
Command = Callable[..., subprocess.CompletedProcess[str]]


def run_check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m zoo check` in a process of its own."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# ------------------------------------------------------------------ models from outside the zoo


def test_check_of_a_model_with_two_inputs(all_backends: Workers, tmp_path: Path) -> None:
    """All rungs except 8 agree on all three backends."""
    report = assert_backends_agree(models.two_inputs, workers=all_backends, folder=tmp_path)
    assert set(report.environments) == set(backends.NAMES)
    assert [rung.number for rung in report.rungs] == list(range(1, 11))
    assert [rung.number for rung in report.rungs if rung.status == "ruled out"] == [8]
    with np.load(tmp_path / "weights.npz") as weights:  # constant weights are varied
        assert len(np.unique(weights["norm/moving_variance"])) == 8
    assert sum(path.suffix == ".npz" for path in tmp_path.iterdir()) > 20
    layers = [path for path, *_ in report.layers["inference mode, float32, torch and jax"]]
    assert layers.index("conv") < layers.index("norm") < layers.index("scale")


def test_check_rules_out_backend_randomness(workers: Workers) -> None:
    report = check(models.with_backends_own_randomness, workers=workers, rungs="2,4,6,7")
    assert report.agrees, report.failures
    by_number = {rung.number: rung for rung in report.rungs}
    assert by_number[6].status == "ruled out"
    assert by_number[6].rows[0].where == "drop"
    assert by_number[4].status in ("agrees", "rounding")
    assert "drop: random numbers come from the backend's own generator" in report.notes[0]
    assert "rung 6" in report.notes[0]


def test_check_of_unusual_layers(workers: Workers) -> None:
    """Rare random numbers, in inference mode, in a loop; a float32 layer; an unused weight."""
    report = check(models.with_stochastic_depth, workers=workers, rungs="2,6")
    assert report.agrees, report.failures
    assert report.rungs[1].rows[0].where == "depth"
    report = check(models.with_sampling, workers=workers, rungs="1-5")
    assert report.agrees, report.failures
    assert [r.number for r in report.rungs if r.status == "ruled out"] == [2, 3, 4]
    assert "own generator in inference mode, too" in report.notes[0]
    assert report.notes[0].startswith("sampling: random numbers come from the backend's")
    report = check(models.stacked_cells, workers=workers, rungs="2,6")
    assert [rung.status for rung in report.rungs] == ["agrees", "ruled out"]
    assert report.rungs[1].rows[0].where == "stacked"
    report = check(models.in_float32_at_the_end, workers=workers, rungs="3-4")
    assert report.agrees, report.failures
    assert "last: computed in float32" in report.notes[0]
    report = check(models.with_an_unused_weight, workers=workers, rungs="4,6")
    assert report.agrees, report.failures


def test_check_of_very_different_models(workers: Workers) -> None:
    report = check(models.renamed_on_jax, workers=workers)
    assert report.exit_status == 1
    assert report.rungs[0].rows[0].detail == "only on torch"
    report = check(models.not_a_number, workers=workers, rungs="2-4")
    assert report.verdict == "could not be checked wholly"
    assert report.rungs[0].rows[0].where == "nan"
    assert report.rungs[0].rows[0].detail == "no number is finite, on either backend"


def test_worker_reports_a_result_that_cannot_be_unpickled(workers: Workers) -> None:
    worker = workers["jax"]
    with pytest.raises(WorkerError, match="The result cannot be unpickled: ValueError: unreadable"):
        worker(models.unreadable)
    assert worker(len, "ok") == 2


def test_check_compares_recurrent_states(workers: Workers) -> None:
    report = check(models.stateful, workers=workers, rungs="7")
    assert report.agrees, report.failures
    assert {row.where for row in report.rows} & {"lstm/rnn_state[0]", "lstm/rnn_state[1]"}


def test_check_compares_generated_tokens(workers: Workers) -> None:
    report = check(models.generator, sample=models.tokens_and_noise, workers=workers, rungs="8")
    assert report.agrees, report.failures
    assert {row.precision for row in report.rows} == {"float32", "float64"}


def test_check_pickles_functions_that_cannot_be_imported(workers: Workers) -> None:
    """Local functions, lambdas and closures are pickled by value."""
    width = 5

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(width, name="dense")])

    report = check(build, workers=workers, rungs="1-2")
    assert report.agrees, report.failures
    assert "20 parameters" in report.rungs[0].rows[0].detail
    assert check(lambda: build(), workers=workers, rungs="1").agrees


def test_check_rejects_functions_that_cannot_be_pickled(workers: Workers) -> None:
    lock = threading.Lock()
    with pytest.raises(ValueError, match="must be picklable; make tensors, layers and the like"):
        check(lambda: lock, workers=workers, rungs="1")


def test_checkpoints_with_a_keras_optimizer_for_all_pairs(all_backends: Workers) -> None:
    report = check(models.one_input, optimizer=models.keras_adam, workers=all_backends, rungs="9")
    assert report.agrees, report.failures
    pairs = {row.between for row in report.rows if row.precision == "float64"}
    assert len(pairs) == 9


# ------------------------------------------------------------------ failing workers


@pytest.mark.parametrize(
    ("build", "texts"),
    [
        (models.crashes_on_jax, ["exit status 7", "about to exit"]),
        (models.raises_on_jax, ["KeyError: 'no such key'", "in raises_on_jax"]),
        (models.killed_on_jax, ["killed (signal 9), as the system does when memory runs out"]),
        (models.hangs_on_jax, ["No result within 5 s; process ended", "waiting forever"]),
        (models.out_of_memory_on_jax, ["MemoryError", "Unable to allocate"]),
    ],
)
def test_check_reports_a_failing_worker(
    build: object, texts: list[str], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers["jax"]
    assert check(models.small, workers=workers, rungs="1").agrees  # the time limit excludes imports
    monkeypatch.setattr(worker, "time_limit", 5 if build is models.hangs_on_jax else 60)
    started = time.monotonic()
    report = check(build, workers=workers, rungs="1-2")
    assert time.monotonic() - started < 90
    assert report.exit_status == 2
    failed = [row for row in report.rows if row.status == "failed"]
    assert failed
    assert all(row.between == ("jax",) for row in failed)
    for text in texts:
        assert text in failed[0].detail
    monkeypatch.undo()
    assert check(models.small, workers=workers, rungs="1").agrees  # later checks still work


def test_check_reports_different_shapes(workers: Workers) -> None:
    report = check(models.wider_on_jax, workers=workers, rungs="1-2")
    assert report.exit_status == 1
    row = report.rungs[0].rows[0]
    assert (row.status, row.where) == ("differs", "small/dense/kernel")
    assert row.detail == "shape (3, 2) and (3, 3)"
    with pytest.raises(AssertionError, match=r"rung 1 \(parameters\): variables, torch and jax"):
        assert_backends_agree(models.wider_on_jax, workers=workers, rungs="1")


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (models.without_input, "Give `input_shape`, the shape of one example, or `inputs`"),
        (models.not_a_model, "`build` must return a keras.Model. Received: <Dense"),
        ("tests.parity.models:no_such_function", "There is no no_such_function in tests.parity"),
        ("no_such_package:build", "There is no module no_such_package"),
    ],
)
def test_check_reports_a_failing_builder(build: object, text: str, workers: Workers) -> None:
    report = check(build, workers=workers, rungs="1-2")
    assert report.exit_status == 2
    assert text in report.rows[0].detail


def test_check_starts_no_third_backend_for_an_error_of_the_model(all_backends: Workers) -> None:
    report = check(models.not_a_model, workers=all_backends, rungs="1-2")
    assert [row.between for row in report.rows] == [("tensorflow", "torch")] * len(report.rows)


def test_worker_calls_any_function(workers: Workers) -> None:
    worker = workers["jax"]
    assert worker(lambda: keras.backend.backend()) == "jax"
    assert worker(lambda: str(keras.ops.ones(1).dtype), floatx="float64") == "float64"
    assert worker(lambda: str(keras.ops.ones(1).dtype)) == "float32"


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rungs": "0-3"}, "`rungs` must be numbers from 1 to 10, such as 1-6 or 2,4. Rec"),
        ({"rungs": "two"}, "Received: rungs=two"),
        ({"backends": ["torch"]}, "`backends` must be two or three of"),
        ({"backends": ["torch", "mxnet"]}, "Received: backends=torch, mxnet"),
        ({"examples": 0}, "`examples` must be a whole number of at least 1. Received: examples=0"),
        ({"steps": 3}, "`steps` must be a whole number of at least 4. Received: steps=3"),
        ({"loss": "hinge"}, "mean_squared_error, cross_entropy or callable. Received: loss='hin"),
        ({"time_limit": 0}, "`time_limit` must be a finite number above 0. Received: time_limit=0"),
        ({"inputs": "int32[0,9):4"}, "an `InputSpec` of each, such as InputSpec((16,), "),
        ({"inputs": [3.0]}, "`inputs` must be arrays whose first axis is the batch"),
    ],
)
def test_check_rejects_invalid_arguments(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        check(models.small, **options)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Name a model, one of autoencoder, cnn_48x48, gpt"),
        (["alexnet"], "must be one of autoencoder, cnn_48x48, gpt, mlp, "),
        (["cnn_48x48", "--rungs", "12"], "Received: rungs=12"),
        (["cnn_48x48", "--arguments", "[1]"], "must be a JSON object"),
        (["cnn_48x48", "--arguments", "{"], "must be a JSON object"),
        (["a:b", "--input-shape", "3x3"], "such as 32,32,3. Received: input_shape=3x3"),
        (["a:b", "--input", "3,3"], "as ids:int32[0,1000):16. Received: input=3,3"),
        (["a:b", "--input", "int99:3"], "such as float32 or int32. Received: dtype='int99'"),
        (["a:b", "--input", "int32[5,5):3"], "below `high`, or neither is given. Received: low=5"),
        (["a:b", "--input-shape", "a=3", "--input-shape", "4"], "or none has. Received: a=3 4"),
        (["no_such_module:build"], "There is no module no_such_module in this folder"),
        (
            ["tests.parity.models:missing"],
            "There is no missing in tests.parity.models, which has Scale, two_inputs, two_named",
        ),
        (["cnn_48x48", "--json", "no/such/folder/r.json"], "There is no folder no/such/folder"),
        (["cnn_48x48", "--backends", "torch"], "`backends` must be two or three"),
    ],
)
def test_check_command_rejects_invalid_arguments(
    arguments: list[str], text: str, in_process: Command
) -> None:
    result = in_process("zoo", "check", *arguments)
    assert result.returncode == 2
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_check_command_prints_errors_without_traceback() -> None:
    result = run_check("cnn_48x48", "--rungs", "12")
    assert result.returncode == 2
    assert "\nerror: `rungs` must be" in f"\n{result.stderr}"
    assert not result.stdout


def test_check_command_on_a_custom_model(tmp_path: Path) -> None:
    """Exit status, table, JSON round trip, and the HTML page from the JSON file."""
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def build(units):\n"
        "    return keras.Sequential([keras.layers.Dense(units, name='dense')])\n"
    )
    result = run_check(
        *("mine:build", "--arguments", '{"units": 3}', "--input-shape", "4", "--rungs", "1-2"),
        *("--backends", "torch,jax", "--json", str(tmp_path / "r.json")),
        *("--html", str(tmp_path / "r.html")),
        PYTHONPATH=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert "mine:build agrees" in result.stdout
    (report,) = read_json(tmp_path / "r.json")
    assert report.model == "mine:build"
    assert "15 parameters" in report.rungs[0].rows[0].detail
    page = (tmp_path / "r.html").read_text()
    command = [sys.executable, "-m", "zoo", "report", str(tmp_path / "r.json")]
    subprocess.run([*command, str(tmp_path / "again.html")], check=True)
    assert (tmp_path / "again.html").read_text() == page


NAMED = ["--input-shape", "left=4", "--input-shape", "right=6"]
SUBCLASS = "tests.parity.models:TwoTexts"


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests.parity.models:two_named_inputs", *NAMED],
        ["tests.parity.models:two_named_inputs", "--input-shape", "4", "--input-shape", "6"],
        [SUBCLASS, "--input", "a:int32[0,50):7", "--input", "b:int32[40,50):3"],
    ],
)
def test_check_command_takes_several_inputs(arguments: list[str], in_process: Command) -> None:
    result = in_process("zoo", "check", *arguments, "--rungs", "1-4", "--backends", "torch,jax")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tests.parity.models:two_named_inputs", "--input-shape", "top=4"], "left, right. Rec"),
        (["tests.parity.models:two_named_inputs", "--input-shape", "left=5"], "left must be (4,)"),
        ([SUBCLASS, "--input-shape", "a=7", "--input-shape", "b=3"], "--input int32[0,50):SIZES"),
    ],
)
def test_check_command_says_which_inputs_a_model_needs(
    arguments: list[str], text: str, in_process: Command
) -> None:
    result = in_process("zoo", "check", *arguments, "--rungs", "1", "--backends", "torch,jax")
    assert result.returncode == 2
    assert " ".join(result.stdout.split()).count(text) == 1, result.stdout


def test_check_command_reports_a_difference(in_process: Command) -> None:
    address = "tests.parity.models:wider_on_jax"
    result = in_process("zoo", "check", address, "--rungs", "1", "--backends", "torch,jax")
    assert result.returncode == 1
    assert "shape (3, 2) and (3, 3)" in " ".join(result.stdout.split())


def test_ctrl_c_ends_all_workers(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "tests.parity.models:hangs_on_jax", "--backends", "torch,jax"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # A test that runs in the background ignores SIGINT, and its child processes inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("zoo-check-*/data.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("zoo-check-*"))
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "zoo.parity.worker"], capture_output=True, text=True
    )
    assert not children.stdout


def test_report_json_keeps_infinite_distances(tmp_path: Path, workers: Workers) -> None:
    report = check(models.wider_on_jax, workers=workers, rungs="1-2")
    assert float("inf") in {row.distance for row in report.rows}
    write_json([report], tmp_path / "report.json")
    assert read_json(tmp_path / "report.json") == [report]
