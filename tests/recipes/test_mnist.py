"""Tests of `recipes/mnist.py`, as a user runs it from the command line.

Runs that are killed, or need the backend's deterministic switches, have a process of their own,
forked from one that has imported Keras. All others run in this one.
"""

import csv
import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tyro

import zoo
from recipes import mnist
from tests import recipe
from tests.datasets import pictures
from zoo import cli
from zoo.backends import backend
from zoo.files.runs import load_model
from zoo.training.lock import DirectoryLock

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "mnist.py"
# A hundred steps of a small network, with a checkpoint after every other one. What is tested with
# it does not depend on how long they take. (Damaged checkpoints: training/test_checkpoints.py.)
SMALL = ["--quick", "--train-examples", "400", "--test-examples", "20", "--batch-size", "4",
         "--model", "mlp", "--checkpoint-steps", "2"]  # fmt: skip
RESTARTED = [*SMALL, "--deterministic"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": zoo.backends.name, "PYTHONPATH": str(ROOT)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(RECIPE), *arguments]


def words(text: str) -> str:
    """The text without line breaks and the frame around it."""
    return " ".join(text.replace("│", " ").split())


def weights(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]} if hasattr(item, "shape") else {})
        )
    return arrays


def assert_same_results(first: Path, second: Path) -> None:
    """Checks that weights and history of two runs are the same to the bit."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (first / "history.csv").read_text() == (second / "history.csv").read_text()


# ------------------------------------------------------------------ a run and its files


FEW = {"model": "mlp", "quick": True, "train_examples": 8, "test_examples": 20}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run directory and metrics of a short run of a small network."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    metrics, _ = recipe.run(mnist, FEW, folder)
    return folder, json.loads(json.dumps(metrics))


def test_main_returns_metrics_and_writes_history(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "mnist",
        "model": "mlp",
        "dataset": "mnist",
        "backend": zoo.backends.name,
        "backends": [zoo.backends.name],
        "backend_version": backend.version(),
        "device": backend.device(),
        "seed": 0,
        "train_examples": 8,
        "test_examples": 20,
        "epochs": 1,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert {"keras_version", "parameters", "test_loss", "wall_seconds"} <= set(metrics)
    (row,) = csv.DictReader((folder / "history.csv").read_text().splitlines())
    assert list(row) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert float(row["val_accuracy"]) == metrics["test_accuracy"]
    assert float(row["val_loss"]) == metrics["test_loss"]


def test_main_writes_complete_run_directory(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    assert sorted(os.listdir(folder)) == [
        "checkpoints",
        "config.json",
        "confusion.png",
        "curves.png",
        "history.csv",
        "manifest.json",
        "metrics.json",
        "mistakes.png",
        "model.json",
        "model.weights.h5",
    ]
    assert load_model(folder).count_params() == 407_050
    config = json.loads((folder / "config.json").read_text())
    assert config["learning_rate"] == 1e-3
    assert config["weight_decay"] == 1e-4
    assert config["batch_size"] == 64


def test_main_reports_finished_run(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, output = recipe.run(mnist, FEW, folder)
    assert again == metrics
    assert "is finished" in output
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_main_rejects_other_configuration(
    finished: tuple[Path, dict[str, Any]], in_process: Run
) -> None:
    folder, _ = finished
    result = in_process(
        RECIPE, "--quick", "--model", "mlp", "--train-examples", "8", "--seed", "1",
        "--test-examples", "10", "--run-dir", str(folder),
    )  # fmt: skip
    assert result.returncode == 2
    text = "belongs to another configuration: seed was 0 and is 1, test_examples was 20 and is 10."
    assert text in result.stderr
    assert "\nerror: " in f"\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert (folder / "metrics.json").exists()


# ------------------------------------------------------------------ damaged and missing files


def do_nothing(folder: Path) -> Path:
    return folder


def remove(*names: str) -> Callable[[Path], Path]:
    """The remedy "Remove that file": the same directory, without it."""

    def run(folder: Path) -> Path:
        for name in names:
            (folder / name).unlink()
        return folder

    return run


def give_another(folder: Path) -> Path:
    """The remedy "Give another `--run-dir`"."""
    return folder.with_name("another")


def damage(*names: str) -> Callable[[Path], None]:
    """Cuts files to half of their size."""

    def run(folder: Path) -> None:
        for name in names:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])

    return run


def edit(name: str, before: str, after: str) -> Callable[[Path], None]:
    """Replaces a text in a file."""

    def run(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))

    return run


def lose(*names: str) -> Callable[[Path], None]:
    """Removes files and folders."""

    def run(folder: Path) -> None:
        for name in names:
            (shutil.rmtree if (folder / name).is_dir() else os.remove)(folder / name)

    return run


def each(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [step(folder) for step in steps] and None


FIRST, SECOND = (f"checkpoints/step-{step:09d}.npz" for step in (1, 2))
REMOVE_CONFIG = (
    r"config\.json must be valid JSON.*Remove that file to go on after the last checkpoint"
)
ANOTHER = r"config\.json must be valid JSON.*or give another `--run-dir`"
CHANGED = (
    r"has changed since the run was finished.* remove it and .*manifest\.json and run `zoo train "
)
NO_CONFIG = r"holds other files and no config\.json\. Give another `--run-dir`"
UNFINISHED = lose("metrics.json")

# What happens to the files of a finished run; what the error or warning of the same command says;
# what its remedy does. Afterwards the same command must end as the run did.
DAMAGES: dict[str, tuple[Callable[[Path], None], str | None, Callable[[Path], Path]]] = {
    "config damaged": (damage("config.json"), REMOVE_CONFIG, remove("config.json")),
    "config and metrics lost": (lose("config.json", "metrics.json"), None, do_nothing),
    "config damaged, no checkpoint": (
        each(damage("config.json"), lose("checkpoints")), ANOTHER, give_another
    ),
    "config lost, no checkpoint": (lose("config.json", "checkpoints"), NO_CONFIG, give_another),
    "history damaged": (each(damage("history.csv"), UNFINISHED), None, do_nothing),
    "history lost": (lose("history.csv", "metrics.json"), None, do_nothing),
    "config edited": (
        edit("config.json", '"seed": 0', '"seed": 7'), f"config.json {CHANGED}",
        remove("config.json", "manifest.json"),
    ),
    "config edited, manifest lost": (
        each(edit("config.json", '"seed": 0', '"seed": 7'), lose("manifest.json")),
        r"Received: seed was 7 and is 0\. Remove that file to go on", remove("config.json"),
    ),
    "metrics damaged": (
        damage("metrics.json"), f"metrics.json {CHANGED}", remove("metrics.json", "manifest.json")
    ),
    "weights damaged": (
        damage("model.weights.h5"), f"model.weights.h5 {CHANGED}",
        remove("model.weights.h5", "manifest.json"),
    ),
    "manifest damaged": (
        damage("manifest.json"), "manifest.json must be .* remove it and run `zoo train mnist` ",
        remove("manifest.json"),
    ),
    "newest checkpoint damaged": (
        each(damage(SECOND), UNFINISHED), r"000002\.npz is damaged .*000001\.npz is tried next",
        do_nothing,
    ),
    "all checkpoints damaged": (
        each(damage(FIRST, SECOND), UNFINISHED), r"000001\.npz is damaged .*training begins anew",
        do_nothing,
    ),
    "all checkpoints lost": (lose("checkpoints", "metrics.json"), None, do_nothing),
    "model and plots lost": (
        each(damage("model.weights.h5"), lose("model.json", "curves.png", "metrics.json")), None,
        do_nothing,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run directory and metrics of a short run with two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    metrics, _ = recipe.run(mnist, FEW, folder, epochs=2)
    return folder, metrics


@pytest.mark.once
@pytest.mark.parametrize("case", DAMAGES)
def test_main_leads_on_from_damaged_and_missing_files(
    two_epochs: tuple[Path, dict[str, Any]], tmp_path: Path, case: str
) -> None:
    finished, expected = two_epochs
    break_files, text, remedy = DAMAGES[case]
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    break_files(folder)
    left = sorted(folder.rglob("*"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            recipe.run(mnist, FEW, folder, epochs=2)
            message = " ".join(str(w.message) for w in caught if w.category is UserWarning)
        except ValueError as error:
            message = str(error)
            assert sorted(folder.rglob("*")) == left  # nothing is lost
    assert re.search(text, message) if text else not message
    folder = remedy(folder)
    metrics, _ = recipe.run(mnist, FEW, folder, epochs=2)
    assert metrics["test_loss"] == expected["test_loss"]
    assert set(os.listdir(finished)) <= set(os.listdir(folder))
    assert_same_results(folder, finished)


# ------------------------------------------------------------------ the command line


@pytest.mark.once
def test_command_line_prints_any_path_on_any_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a training, of the finished run, and of one that is refused."""
    name = "[bold]a[/bold] [x] :smile: [] épée \udce9"  # the last is a byte that is not UTF-8
    folder = tmp_path / name
    # As `PYTHONIOENCODING=ascii` makes them.
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    errors = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(backend, "keep_malloc_pages", lambda: None)
    config = mnist.Config(**FEW, run_dir=folder)
    shown = name.encode("ascii", "backslashreplace").decode()
    assert cli.run(lambda: mnist.main(config)) == 0
    assert cli.run(lambda: mnist.main(config)) == 0
    assert cli.run(lambda: mnist.main(dataclasses.replace(config, seed=1))) == 2
    for stream in (output, errors):
        stream.flush()
    lines = output.buffer.getvalue().decode("ascii").splitlines()
    assert f"Results are in {tmp_path}/{shown}" in lines
    assert sum(f"{tmp_path}/{shown}" in line for line in lines) == 3
    (line,) = errors.buffer.getvalue().decode("ascii").splitlines()
    assert line.startswith(f"error: `run_dir` {tmp_path}/{shown} belongs to another configuration")


def test_quiet_run_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, output = recipe.run(mnist, {**FEW, "quiet": True}, tmp_path / "run")
    assert output == ""
    assert capfd.readouterr() == ("", "")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["recipe"] == "mnist"


@pytest.mark.once
def test_help_explains_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe.help_of(mnist.Config, capsys)
    assert "{float32,bfloat16,mixed_bfloat16}" in text
    assert text.count("default") >= 16


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dataset", "no_such_data"], "dataset=no_such_data"),
        (["--model", "no_such_model"], "lstm, mlp, simple_rnn. Received: model=no_such_model"),
        (["--epochs", "0"], "`epochs` must be a whole number of at least 1. Received: epochs=0"),
        (["--batch-size", "0"], "Received: batch_size=0"),
        (["--patience", "0"], "Received: patience=0"),
        (["--learning-rate", "-0.1"], "Received: learning_rate=-0.1"),
        (["--weight-decay", "-1"], "Received: weight_decay=-1"),
        (["--train-examples", "70000"], "train_examples=70000"),
        (["--seed", "-1"], "seed=-1"),
        (["--run-dir", str(ROOT / "pyproject.toml")], "the file"),
        (["--run-dir", str(ROOT)], "holds other files"),
        (["--run-dir", "/proc/run"], "cannot be created"),
    ],
)
def test_command_line_rejects_invalid_arguments(
    tmp_path: Path, in_process: Run, arguments: list[str], text: str
) -> None:
    if "--run-dir" not in arguments:
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
    result = in_process(RECIPE, *SMALL, *arguments)
    assert result.returncode in (1, 2)
    assert text in words(result.stderr)
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_command_line_rejects_directory_in_use(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, in_process: Run
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "metrics.json").unlink()
    flags = ["--quick", "--model", "mlp", "--train-examples", "8", "--test-examples", "20"]
    lock = DirectoryLock(folder)
    lock.acquire()
    result = in_process(RECIPE, *flags, "--run-dir", str(folder))
    lock.release()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"in use by process {os.getpid()} on" in result.stderr
    assert in_process(RECIPE, *flags, "--run-dir", str(folder)).returncode == 0


@pytest.mark.once
def test_quick_takes_a_smaller_data_set_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = np.arange(30 * 784).reshape(30, 28, 28, 1) % 256, np.arange(30) % 10
    parts = {part: (images.astype(np.uint8), labels) for part in ("train", "test")}
    monkeypatch.setattr(mnist.datasets.images, "_mnist", lambda: parts)
    metrics = mnist.main(mnist.Config(model="mlp", quick=True, run_dir=tmp_path / "run"))
    assert (metrics["train_examples"], metrics["test_examples"]) == (30, 30)
    with pytest.raises(ValueError, match="`train_examples` must be at most 30, the size of mnist"):
        mnist.main(mnist.Config(model="mlp", quick=True, train_examples=31, run_dir=tmp_path / "2"))


def test_main_trains_on_a_folder_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Run
) -> None:
    """Three classes of 30 images in mixed sizes and modes, one of which is broken."""
    photos = pictures.shapes_folder(tmp_path / "mes photos d'été $2$", 30, pictures.MODES)
    (photos / "square" / "004.jpg").write_text("This is no image.")
    flags = ["--dataset", str(photos), "--model", "mlp", "--batch-size", "8", "--epochs", "5"]
    flags += ["--run-dir", str(tmp_path / "run")]
    refused = in_process(RECIPE, *flags)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"{photos}/square/004.jpg: cannot identify image file" in refused.stderr
    assert not (tmp_path / "run").exists()

    with monkeypatch.context() as patch:
        recipe.interrupt_after(12, patch)
        with pytest.warns(UserWarning, match=r"without 1 unreadable file: 004\.jpg"):
            stopped = in_process(RECIPE, *flags, "--skip-unreadable")
    assert stopped.returncode == 130
    with pytest.warns(UserWarning, match=r"without 1 unreadable file: 004\.jpg"):
        result = in_process(RECIPE, *flags, "--skip-unreadable")
    assert result.returncode == 0
    assert "Going on after step 12" in result.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["class_names"] == ["circle", "square", "triangle"]
    assert metrics["dataset"] == photos.name
    assert metrics["train_examples"] + metrics["test_examples"] == 89
    assert metrics["test_accuracy"] > 0.8
    for name in metrics["class_names"]:
        assert re.search(rf"^ +{name} +[01]\.\d+ ", result.stdout, re.MULTILINE)
    assert "is finished" in in_process(RECIPE, *flags).stdout


def test_command_line_reports_divergence(tmp_path: Path, in_process: Run) -> None:
    result = in_process(
        RECIPE, *SMALL, "--learning-rate", "1e30", "--run-dir", str(tmp_path / "run")
    )
    assert result.returncode == 1
    assert "at step" in result.stderr
    assert "A lower learning rate, with another `--run-dir`, may help" in words(result.stderr)


def test_patience_ends_training_without_improvement(tmp_path: Path, in_process: Run) -> None:
    """The learning rate is too small for any."""
    flags = ["--epochs", "4", "--patience", "1", "--learning-rate", "1e-30"]
    arguments = [*SMALL, "--train-examples", "8", *flags, "--run-dir", str(tmp_path / "run")]
    assert in_process(RECIPE, *arguments).returncode == 0
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert "is finished" in in_process(RECIPE, *arguments).stdout


def test_tensorboard_writes_event_files_or_says_what_is_missing(
    tmp_path: Path, in_process: Run
) -> None:
    board, run = tmp_path / "board", tmp_path / "run"
    result = in_process(
        RECIPE, *SMALL, "--train-examples", "8", "--tensorboard", str(board), "--run-dir", str(run)
    )
    if all(map(importlib.util.find_spec, ("tensorflow", "tensorboard"))):
        assert result.returncode == 0
        assert list(board.glob("train/events.*"))
        assert list(board.glob("validation/events.*"))
    else:
        assert result.returncode == 2
        assert "error: `tensorboard` needs the packages tensorflow and" in words(result.stderr)
        assert "`pip install tensorflow tensorboard`" in words(result.stderr)
        assert not run.exists()
        assert not board.exists()


# ------------------------------------------------------------------ in processes of their own


def run_forked(arguments: list[str], output: Path, variables: dict[str, str]) -> None:
    """Runs the recipe in a forked process, with its output in a file."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    sys.argv = [str(RECIPE), *arguments]
    sys.exit(cli.run(lambda: mnist.main(tyro.cli(mnist.Config))))


def output_of(folder: Path) -> str:
    """What the last process for this run directory has printed."""
    return folder.with_suffix(".txt").read_text()


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start() -> Start:
    """Starts the recipe in a process that is forked from one with Keras imported."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        context.set_forkserver_preload([__name__])
        forkserver.ensure_running()

    def started(folder: Path, *arguments: str, **variables: str) -> Any:
        arguments = (*arguments, "--run-dir", str(folder))
        process = context.Process(
            target=run_forked, args=(arguments, folder.with_suffix(".txt"), variables)
        )
        process.start()
        return process

    return started


def finish(process: Any) -> None:
    process.join(300)
    assert process.exitcode == 0
    process.close()


@pytest.mark.slow
def test_main_learns_and_reports(tmp_path: Path, start: Start) -> None:
    """Forty steps of the document's network, which XLA compiles well here."""
    folder = tmp_path / "run"
    sizes = ["--train-examples", "640", "--batch-size", "16", "--test-examples", "200"]
    finish(start(folder, "--quick", *sizes, XLA_FLAGS=""))
    metrics, output = json.loads((folder / "metrics.json").read_text()), output_of(folder)
    assert metrics["test_accuracy"] > 0.85  # measured: 88.0 %
    assert (metrics["model"], metrics["parameters"]) == ("cnn_48x48", 9_536_074)
    assert metrics["examples_per_second"] > 0
    assert "40/40" in output
    assert f"val_accuracy: {metrics['test_accuracy']:.4f}" in output
    assert f"Test loss {metrics['test_loss']:.4f}" in output
    assert f"test accuracy {metrics['test_accuracy']:.2%}" in output
    assert "precision" in output
    assert "Confusion matrix" in output


# ------------------------------------------------------------------ interrupted and longer runs


def steps_done(folder: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    return max((int(path.stem[5:]) for path in folder.glob("checkpoints/step-*.npz")), default=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start: Start) -> tuple[Path, float]:
    """Run that nothing interrupts, with the deterministic switches on, and its seconds."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start(folder.with_name("first"), "--epochs", "0").join(300)  # the server imports Keras
    started = time.perf_counter()
    finish(start(folder, *RESTARTED))
    return folder, time.perf_counter() - started


@pytest.mark.slow
def test_ctrl_c_saves_and_same_command_resumes(
    tmp_path: Path, whole: tuple[Path, float], start: Start
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(*RESTARTED, "--run-dir", str(folder)), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.poll() is None and not steps_done(folder):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    step = steps_done(folder)
    assert 0 < step < 100
    assert f"Stopped after step {step}; the same command with `--run-dir " in words(errors)
    finish(start(folder, *RESTARTED))
    assert f"Going on after step {step}" in output_of(folder)
    assert_same_results(folder, whole[0])


@pytest.mark.slow
def test_finished_run_goes_on_when_epochs_are_raised(
    tmp_path: Path, whole: tuple[Path, float], start: Start
) -> None:
    """To the same bits as a run that was long from the beginning; not back to fewer epochs."""
    longer, extended = tmp_path / "longer", tmp_path / "extended"
    shutil.copytree(whole[0], extended)
    for folder in (longer, extended):
        finish(start(folder, *RESTARTED, "--epochs", "2"))
        assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2
    assert "Going on after step 100" in output_of(extended)
    assert_same_results(extended, longer)
    shorter = start(extended, *RESTARTED, "--epochs", "1")
    shorter.join(300)
    assert shorter.exitcode == 2
    assert "`epochs` must be at least 2" in output_of(extended)


def killed_at(moment: Callable[[Path], bool], start: Start, folder: Path, kills: int) -> list[Path]:
    """Runs that were killed so many times in all, each resumed until it was finished."""
    finished = [folder / "0"]
    while kills:
        process = start(finished[-1], *RESTARTED)
        if moment(finished[-1], process):
            process.kill()
            process.join()
            kills -= 1
        else:
            assert process.exitcode == 0
            finished.append(folder / str(len(finished)))
        process.close()
    finish(start(finished[-1], *RESTARTED))
    return finished


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_with_same_bits(
    tmp_path: Path, whole: tuple[Path, float], start: Start
) -> None:
    """Twice at a random time, twice at a random step; `benchmarks.hardship` kills more.

    Two at a time: much of a start is single-threaded, and moments are random in any case.
    """
    expected, seconds = whole
    moments = random.Random(0)

    def at_time(folder: Path, process: Any) -> bool:
        process.join(moments.uniform(0.2, 1.2) * seconds)
        return process.exitcode is None

    def at_step(folder: Path, process: Any) -> bool:
        step = steps_done(folder) + moments.randint(1, 30)
        while steps_done(folder) < step and process.exitcode is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.01))
        return process.exitcode is None

    for name in ("time", "step"):
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor(2) as pool:
        chains = [
            pool.submit(killed_at, moment, start, tmp_path / name, 2)
            for moment, name in ((at_time, "time"), (at_step, "step"))
        ]
        folders = [folder for chain in chains for folder in chain.result()]
    for folder in folders:
        assert_same_results(folder, expected)


def test_main_begins_with_trained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of another width is begun anew, and the layers below are the trained ones."""
    settings = {"model": "mlp", "weights": "mlp-mnist", "train_examples": 64, "epochs": 1}
    settings |= {"test_examples": 500, "learning_rate": 1e-4}
    metrics, output = recipe.run(mnist, settings, tmp_path / "same")
    assert metrics["test_accuracy"] > 0.95
    assert "mlp begins with the weights of mlp-mnist\n" in output
    digits = zoo.datasets.load("mnist", 28, 300, 300)
    odd = dataclasses.replace(
        digits, y_train=digits.y_train % 2, y_test=digits.y_test % 2, num_classes=2,
        class_names=("even", "odd"),
    )  # fmt: skip
    monkeypatch.setattr(mnist.datasets, "load", lambda *_, **__: odd)
    settings |= {"train_examples": 300, "epochs": 4, "learning_rate": 1e-3}
    metrics, output = recipe.run(mnist, settings, tmp_path / "parity")
    assert "mlp-mnist; output, the head for 2 classes, is begun anew" in output
    assert metrics["test_accuracy"] > 0.9
    with pytest.raises(ValueError, match=r"`weights` must be those of a cnn_48x48 with the same"):
        recipe.run(mnist, {**settings, "model": "cnn_48x48"}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"`weights` must be one of .*weights='lenet'"):
        recipe.run(mnist, {**settings, "weights": "lenet"}, tmp_path / "other")
