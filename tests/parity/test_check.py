"""What a user of the check meets: reports, failures, exit statuses, wrong arguments."""

import os
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
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# ------------------------------------------------------------------ models nobody here wrote


def test_a_users_own_model_with_two_inputs(everywhere: Workers, tmp_path: Path) -> None:
    """On all three backends, every rung but 8."""
    report = assert_backends_agree(models.two_inputs, workers=everywhere, folder=tmp_path)
    assert set(report.environments) == set(backends.NAMES)
    assert [rung.number for rung in report.rungs] == list(range(1, 11))
    assert [rung.number for rung in report.rungs if rung.status == "ruled out"] == [8]
    with np.load(tmp_path / "weights.npz") as weights:  # what was constant counts, too
        assert len(np.unique(weights["norm/moving_variance"])) == 8
    assert sum(path.suffix == ".npz" for path in tmp_path.iterdir()) > 20
    layers = [path for path, *_ in report.layers["inference mode, float32, torch and jax"]]
    assert layers.index("conv") < layers.index("norm") < layers.index("scale")


def test_randomness_of_the_backends_own_is_named_and_ruled_out(workers: Workers) -> None:
    report = check(models.with_backends_own_randomness, workers=workers, rungs="2,4,6,7")
    assert report.agrees, report.troubles
    by_number = {rung.number: rung for rung in report.rungs}
    assert by_number[6].status == "ruled out"
    assert by_number[6].rows[0].where == "drop"
    assert by_number[4].status in ("agrees", "rounding")
    assert "drop: drawn from the backend's own generator" in report.notes[0]
    assert "rung 6" in report.notes[0]


def test_layers_that_are_hard_to_see_through(workers: Workers) -> None:
    """Draws that are rare, in every mode, in a loop; a layer in float32; a weight without use."""
    report = check(models.with_stochastic_depth, workers=workers, rungs="2,6")
    assert report.agrees, report.troubles
    assert report.rungs[1].rows[0].where == "depth"
    report = check(models.with_sampling, workers=workers, rungs="1-5")
    assert report.agrees, report.troubles
    assert [r.number for r in report.rungs if r.status == "ruled out"] == [2, 3, 4]
    assert "sampling: drawn from the backend's own generator in inference mode" in report.notes[0]
    report = check(models.stacked_cells, workers=workers, rungs="2,6")
    assert report.agrees, report.troubles
    assert report.rungs[1].rows[0].where == "stacked"
    report = check(models.in_float32_at_the_end, workers=workers, rungs="3-4")
    assert report.agrees, report.troubles
    assert "last: computed in float32" in report.notes[0]
    report = check(models.with_an_unused_weight, workers=workers, rungs="4,6")
    assert report.agrees, report.troubles


def test_models_that_differ_wholly(workers: Workers) -> None:
    report = check(models.renamed_on_jax, workers=workers)
    assert report.exit_status == 1
    assert report.rungs[0].rows[0].detail == "only on torch"
    report = check(models.not_a_number, workers=workers, rungs="2-4")
    assert report.exit_status == 1
    assert report.rungs[0].rows[0].where == "nan"


def test_an_answer_that_cannot_be_read(workers: Workers) -> None:
    worker = workers["jax", "float32"]
    with pytest.raises(WorkerError, match="The answer cannot be read here: ValueError: not here"):
        worker(models.unreadable)
    assert worker(len, "ok") == 2


def test_recurrent_state(workers: Workers) -> None:
    report = check(models.stateful, workers=workers, rungs="7")
    assert report.agrees, report.troubles
    assert {row.where for row in report.rows} & {"lstm/rnn_state[0]", "lstm/rnn_state[1]"}


def test_generated_tokens(workers: Workers) -> None:
    report = check(models.generator, sample=models.tokens_and_noise, workers=workers, rungs="8")
    assert report.agrees, report.troubles
    assert {row.precision for row in report.rows} == {"float32", "float64"}


def test_functions_that_cannot_be_imported(workers: Workers) -> None:
    """Local functions, lambdas and closures are handed over whole."""
    width = 5

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(width, name="dense")])

    report = check(build, workers=workers, rungs="1-2")
    assert report.agrees, report.troubles
    assert "20 parameters" in report.rungs[0].rows[0].detail
    assert check(lambda: build(), workers=workers, rungs="1").agrees


def test_what_cannot_be_handed_over(workers: Workers) -> None:
    lock = threading.Lock()
    with pytest.raises(ValueError, match="must be picklable; make tensors, layers and the like"):
        check(lambda: lock, workers=workers, rungs="1")


def test_checkpoints_of_keras_own_optimizer_for_all_nine_pairs(everywhere: Workers) -> None:
    report = check(models.one_input, optimizer=models.keras_adam, workers=everywhere, rungs="9")
    assert report.agrees, report.troubles
    pairs = {row.between for row in report.rows if row.precision == "float64"}
    assert len(pairs) == 9


# float64 tells rounding from a mistake. Measured over ten seeds and all pairs, of the loss after
# one more step: 2e-14 in float64; 1.3e-5 in float32, where Adam divides a gradient by its size, so
# rounding decides the step of a weight whose gradient is about 0. Without its state Adam is at
# least 1e-3 off.
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_compiled_models_saved_here_go_on_there(
    everywhere: Workers, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """`.keras` files, for all nine pairs; Keras' own loader fails on those from PyTorch."""
    for source in everywhere.names:
        path = tmp_path / f"{source}.keras"
        expected = everywhere[source, precision](models.save_compiled, path)
        for target in everywhere.names:
            found = everywhere[target, precision](models.load_compiled, path)
            assert found == pytest.approx(expected, rel=tolerance), (source, target)
    lost = everywhere[source, precision](models.load_without_optimizer, path)
    assert lost != pytest.approx(expected, rel=tolerance)  # it would be seen


# ------------------------------------------------------------------ workers that fail


@pytest.mark.parametrize(
    ("build", "texts"),
    [
        (models.crashes_on_jax, ["exit status 7", "about to end"]),
        (models.raises_on_jax, ["KeyError: 'no such thing here'", "in raises_on_jax"]),
        (models.killed_on_jax, ["killed (signal 9), as the system does when memory runs out"]),
        (models.hangs_on_jax, ["No answer within 5 s; it was ended", "waiting for ever"]),
        (models.out_of_memory_on_jax, ["MemoryError", "Unable to allocate"]),
    ],
)
def test_a_worker_that_fails_is_a_row(
    build: object, texts: list[str], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers["jax", "float32"]
    assert check(models.small, workers=workers, rungs="1").agrees  # imports are not in the limit
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
    assert check(models.small, workers=workers, rungs="1").agrees  # the next one is not hurt


def test_shapes_that_differ(workers: Workers) -> None:
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
        ("no_such_package:build", "No module named 'no_such_package'"),
    ],
)
def test_what_cannot_be_built(build: object, text: str, workers: Workers) -> None:
    report = check(build, workers=workers, rungs="1-2")
    assert report.exit_status == 2
    assert text in report.rows[0].detail


def test_a_worker_runs_any_function(workers: Workers) -> None:
    worker = workers["jax", "float64"]
    assert worker(lambda: keras.backend.backend()) == "jax"
    assert worker(lambda: str(keras.ops.ones(1).dtype)) == "float64"


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rungs": "0-3"}, "`rungs` must be numbers from 1 to 10, such as 1-6 or 2,4. Rec"),
        ({"rungs": "two"}, "Received: rungs=two"),
        ({"backends": ["torch"]}, "`backends` must be two or three of"),
        ({"backends": ["torch", "mxnet"]}, "Received: backends=torch, mxnet"),
        ({"examples": 0}, "`examples` must be at least 1. Received: examples=0"),
        ({"steps": 3}, "`steps` must be at least 4. Received: steps=3"),
        ({"loss": "hinge"}, "mean_squared_error, cross_entropy or a function. Received: loss=hin"),
        ({"time_limit": 0}, "`time_limit` must be above 0. Received: time_limit=0"),
    ],
)
def test_wrong_arguments(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        check(models.small, **options)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Name a model, one of cnn_48x48"),
        (["alexnet"], "must be one of autoencoder, cnn_48x48, gpt, mlp, "),
        (["cnn_48x48", "--rungs", "12"], "Received: rungs=12"),
        (["cnn_48x48", "--arguments", "[1]"], "must be a JSON object"),
        (["cnn_48x48", "--arguments", "{"], "must be a JSON object"),
        (["a:b", "--input-shape", "3x3"], "such as 32,32,3. Received: input_shape=3x3"),
        (["cnn_48x48", "--json", "no/such/folder/r.json"], "There is no folder no/such/folder"),
        (["cnn_48x48", "--backends", "torch"], "`backends` must be two or three"),
    ],
)
def test_wrong_commands(arguments: list[str], text: str, in_process: Run) -> None:
    result = in_process("zoo", "check", *arguments)
    assert result.returncode == 2
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_wrong_command_ends_a_process_in_words() -> None:
    result = run("cnn_48x48", "--rungs", "12")
    assert result.returncode == 2
    assert "\nerror: `rungs` must be" in f"\n{result.stderr}"
    assert not result.stdout


def test_the_command_on_a_model_of_ones_own(tmp_path: Path) -> None:
    """Exit status, table, JSON there and back, the page made from it again."""
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def build(units):\n"
        "    return keras.Sequential([keras.layers.Dense(units, name='dense')])\n"
    )
    result = run(
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


def test_the_command_says_that_something_differs(in_process: Run) -> None:
    address = "tests.parity.models:wider_on_jax"
    result = in_process("zoo", "check", address, "--rungs", "1", "--backends", "torch,jax")
    assert result.returncode == 1
    assert "shape (3, 2) and (3, 3)" in " ".join(result.stdout.split())


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "tests.parity.models:hangs_on_jax", "--backends", "torch,jax"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # A test run in the background ignores Ctrl-C and hands that on.
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
    left = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "zoo.parity.worker"], capture_output=True, text=True
    )
    assert not left.stdout


def test_infinite_distances_survive_json(tmp_path: Path, workers: Workers) -> None:
    report = check(models.wider_on_jax, workers=workers, rungs="1-2")
    assert float("inf") in {row.distance for row in report.rows}
    write_json([report], tmp_path / "report.json")
    assert read_json(tmp_path / "report.json") == [report]
