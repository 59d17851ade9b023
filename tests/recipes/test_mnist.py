"""`recipes/mnist.py` as a user runs it, from the command line.

In a process of its own wherever the process matters: its signals, exit statuses and streams. What
only reads arguments is called in this one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

import zoo
from zoo.backends import backend

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "mnist.py"
# Ten steps. What is tested with it does not depend on how long they take.
SMALL = ["--quick", "--train-examples", "40", "--test-examples", "20", "--batch-size", "4"]
# A checkpoint after every other one, and the same bits whenever it is run. A small network: most
# of a process' time is its start. (For damaged checkpoints: tests/training/test_checkpoints.py.)
RESTARTED = [*SMALL, "--model", "mlp", "--deterministic", "--checkpoint-steps", "2"]
# Thirty steps, enough to learn from.
LEARNS = ["--quick", "--train-examples", "1920", "--test-examples", "1000"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(RECIPE), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": zoo.backends.name, "PYTHONPATH": str(ROOT)}


def recipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=500
    )


def words(text: str) -> str:
    """The text without line breaks and the frame around it."""
    return " ".join(text.replace("│", " ").split())


def weights(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {})
        )
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    result = recipe(*LEARNS, "--run-dir", str(folder))
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_it_learns_and_says_so(finished: tuple[Path, str]) -> None:
    folder, output = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.85  # measured: 90.2 to 90.4 %
    assert metrics["examples_per_second"] > 0
    expected = {
        "recipe": "mnist",
        "model": "cnn_48x48",
        "backend": zoo.backends.name,
        "backend_version": backend.version(),
        "device": backend.device(),
        "seed": 0,
        "parameters": 9_536_074,
        "train_examples": 1920,
        "epochs": 1,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert {"keras_version", "test_loss", "wall_seconds"} <= set(metrics)
    assert f"test accuracy {metrics['test_accuracy']:.2%}" in output
    assert "epoch 1/1  loss" in output
    assert "precision" in output
    assert "Confusion matrix" in output


def test_the_run_directory_is_complete(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert sorted(os.listdir(folder)) == [
        "checkpoints",
        "config.json",
        "confusion.png",
        "curves.png",
        "history.csv",
        "metrics.json",
        "mistakes.png",
        "model.weights.h5",
    ]
    model = zoo.cnn_48x48(10)
    model.load_weights(folder / "model.weights.h5")
    config = json.loads((folder / "config.json").read_text())
    assert config["learning_rate"] == 1e-3
    assert config["weight_decay"] == 1e-4
    assert config["batch_size"] == 64


def test_a_finished_run_says_so(finished: tuple[Path, str], in_process: Run) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = in_process(RECIPE, *LEARNS, "--run-dir", str(folder))
    assert result.returncode == 0
    assert "is finished" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_configuration_is_refused(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    result = recipe(*LEARNS, "--seed", "1", "--test-examples", "10", "--run-dir", str(folder))
    assert result.returncode == 2
    text = "belongs to another configuration: seed was 0 and is 1, test_examples was 1000 and is"
    assert text in result.stderr
    assert "\nerror: " in f"\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert (folder / "metrics.json").exists()


@pytest.mark.parametrize(
    ("choice", "text"), [("theano", "Installed here: "), (None, "The backend tensorflow is not")]
)
def test_a_backend_that_is_not_there(tmp_path: Path, choice: str | None, text: str) -> None:
    """Unset, Keras takes its own default, which may not be installed."""
    if choice is None and "tensorflow" in zoo.backends.installed():
        pytest.skip("tensorflow is installed here")
    chosen = {**environment(), "KERAS_BACKEND": choice or "", "KERAS_HOME": str(tmp_path)}
    result = subprocess.run(command("--help"), env=chosen, capture_output=True, text=True)
    assert result.returncode
    assert text in result.stderr


def test_help_explains_every_flag_with_its_default(in_process: Run) -> None:
    output = in_process(RECIPE, "--help").stdout
    flags = "dataset epochs batch-size learning-rate weight-decay seed train-examples run-dir quick"
    for flag in [*flags.split(), "dtype-policy"]:
        assert f"--{flag}" in output
    assert output.count("default") >= 16


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dataset", "no_such_data"], "dataset=no_such_data"),
        (["--model", "no_such_model"], "lstm, mlp, simple_rnn. Received: model=no_such_model"),
        (["--epochs", "0"], "`epochs` must be at least 1. Received: epochs=0"),
        (["--batch-size", "0"], "Received: batch_size=0"),
        (["--learning-rate", "-0.1"], "Received: learning_rate=-0.1"),
        (["--weight-decay", "-1"], "Received: weight_decay=-1"),
        (["--train-examples", "70000"], "train_examples=70000"),
        (["--seed", "-1"], "seed=-1"),
        (["--run-dir", str(ROOT / "pyproject.toml")], "the file"),
        (["--run-dir", str(ROOT)], "holds other files"),
        (["--run-dir", "/proc/run"], "cannot be created"),
    ],
)
def test_wrong_arguments(tmp_path: Path, in_process: Run, arguments: list[str], text: str) -> None:
    """What they end a process with is seen above, for a configuration that is refused."""
    if "--run-dir" not in arguments:
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
    result = in_process(RECIPE, *SMALL, *arguments)
    assert result.returncode in (1, 2)
    assert text in words(result.stderr)
    assert "Traceback" not in result.stderr


def test_a_learning_rate_that_diverges(tmp_path: Path) -> None:
    result = recipe(*SMALL, "--learning-rate", "1e30", "--run-dir", str(tmp_path / "run"))
    assert result.returncode == 1
    assert "at step" in result.stderr
    assert "a lower learning rate may help" in words(result.stderr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing interrupts, with the deterministic switches on, and its seconds."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    started = time.perf_counter()
    result = recipe(*RESTARTED, "--run-dir", str(folder))
    assert result.returncode == 0, result.stderr
    return folder, time.perf_counter() - started


def checkpointed(folder: Path, process: subprocess.Popen[str]) -> None:
    """Waits for the first checkpoint."""
    while process.poll() is None and not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.02)


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path, whole: tuple[Path, float]) -> None:
    arguments = [*RESTARTED, "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        command(*arguments), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    checkpointed(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Stopped after step" in errors
    again = recipe(*arguments)
    assert again.returncode == 0
    assert "Going on after step" in again.stdout
    assert_same_weights(tmp_path / "run", whole[0])


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (first / "history.csv").read_text() == (second / "history.csv").read_text()


def killed(folder: Path, seed: int, kills: int, seconds: float) -> list[Path]:
    """Runs that were killed so many times in all, each taken up again until it was finished."""
    moments = random.Random(seed)
    finished = [folder / "0"]
    while kills:
        process = subprocess.Popen(
            command(*RESTARTED, "--run-dir", str(finished[-1])), env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(moments.uniform(0.2, 1.0) * seconds)
            assert process.returncode == 0
            finished.append(folder / str(len(finished)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills -= 1
    assert recipe(*RESTARTED, "--run-dir", str(finished[-1])).returncode == 0
    return finished


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_ten_random_moments(tmp_path: Path, whole: tuple[Path, float]) -> None:
    """With the deterministic switches on, a killed run ends with the uninterrupted one's bits.

    Two at a time: much of a start is single-threaded, and moments are random in any case.
    """
    expected, seconds = whole
    with ThreadPoolExecutor(2) as pool:
        chains = [
            pool.submit(killed, tmp_path / name, seed, 5, seconds)
            for seed, name in enumerate(("first", "second"))
        ]
        folders = [folder for chain in chains for folder in chain.result()]
    for folder in folders:
        assert_same_weights(folder, expected)
