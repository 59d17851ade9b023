"""Tests of run directories and of the flags that all recipes share."""

import csv
import importlib.util
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import keras
import pytest

from tests.training.conftest import Outcome, Training
from zoo.training.run_directory import RunDirectory, TrainingConfig, open_run, set_defaults

pytestmark = pytest.mark.once


def test_run_directory_keeps_results_for_same_configuration(tmp_path: Path) -> None:
    config = {"seed": 0, "data_dir": None, "shape": (1, 2)}
    run = RunDirectory(tmp_path / "a" / "b", config)
    run.write_config()
    assert run.metrics is None
    run.write_history([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    run.write_metrics({"test_accuracy": 0.5})
    again = RunDirectory(tmp_path / "a" / "b", config)
    assert again.metrics == {"test_accuracy": 0.5}
    assert (again.path / "history.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"


@dataclass
class Config:
    seed: int = 0
    quick: bool = False
    run_dir: Path | None = None


def test_open_run_compares_only_decisive_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the results go, and whether `--quick` chose the rest, does not decide them."""
    run = open_run("mine", Config(run_dir=tmp_path / "run"))
    run.write_config()
    assert json.loads((run.path / "config.json").read_text()) == {"recipe": "mine", "seed": 0}
    open_run("mine", Config(quick=True, run_dir=tmp_path / "run"))
    open_run("mine", Config(seed=1, run_dir=tmp_path / "run"), extendable="seed")
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        open_run("mine", Config(seed=1, run_dir=tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert open_run("mine", Config()).path.parts[0] == "runs"
    assert open_run("mine", Config()).path.name.startswith("mine-")


def test_run_directory_removes_unfinished_file(tmp_path: Path) -> None:
    (tmp_path / ".config.json.tmp").write_text('{"see')
    RunDirectory(tmp_path, {"seed": 0}).write_config()
    assert os.listdir(tmp_path) == ["config.json"]


def test_run_directory_belongs_to_no_configuration_before_it_is_written(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", {"seed": -1})
    RunDirectory(tmp_path / "run", {"seed": 1}).write_config()
    with pytest.raises(ValueError, match="seed was 1 and is -1"):
        RunDirectory(tmp_path / "run", {"seed": -1})


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_run_directory_names_damaged_file(tmp_path: Path, name: str) -> None:
    RunDirectory(tmp_path, {}).write_config()
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"holds a damaged {name}"):
        assert RunDirectory(tmp_path, {}).metrics


def test_run_directory_rejects_other_configuration(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", {"seed": 0, "epochs": 5, "recipe": "mnist"}).write_config()
    text = r"another configuration: epochs was 5 and is 3, seed was 0 and is 1\."
    with pytest.raises(ValueError, match=text):
        RunDirectory(tmp_path / "run", {"seed": 1, "epochs": 3, "recipe": "mnist"})
    assert RunDirectory(tmp_path / "run", {"seed": 0, "epochs": 5, "recipe": "mnist"})


def test_run_directory_extends_finished_run(tmp_path: Path) -> None:
    """Its results count until the longer run begins; a shorter one is rejected."""

    def run(epochs: int, seed: int = 0) -> RunDirectory:
        return RunDirectory(tmp_path, {"seed": seed, "epochs": epochs}, extendable="epochs")

    short = run(2)
    short.write_config()
    short.write_metrics({"test_accuracy": 0.5})
    assert run(2).metrics == {"test_accuracy": 0.5}
    longer = run(3)
    assert longer.metrics is None
    assert (tmp_path / "metrics.json").exists()
    longer.write_config()
    assert not (tmp_path / "metrics.json").exists()
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 0, "epochs": 3}
    text = r"`epochs` must be at least 3, the epochs of the run in .*\. Received: epochs=2"
    with pytest.raises(ValueError, match=text):
        run(2)
    with pytest.raises(ValueError, match=r"another configuration: seed was 0 and is 1\."):
        run(3, seed=1)


def test_run_directory_rejects_and_keeps_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"must be a directory or a new path.*the file .*file"):
        RunDirectory(tmp_path / "file", {})
    with pytest.raises(OSError, match=r"cannot be created: Not a directory\. Received: .*file/run"):
        RunDirectory(tmp_path / "file" / "run", {})
    assert (tmp_path / "file").read_text() == "precious"


def test_run_directory_rejects_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"new, empty, or an earlier run's.*holds other files"):
        RunDirectory(tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_directory_rejects_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="must be writable"):
        RunDirectory(tmp_path, {})


def test_run_directory_rejects_read_only_file_system() -> None:
    """Nobody, not even root, writes into /proc."""
    with pytest.raises(OSError, match=r"cannot be created: .*\. Received: /proc/run"):
        RunDirectory(Path("/proc/run"), {})


# ------------------------------------------------------------------ checkpoints of a run


def test_run_checkpoint_keeps_history_file_up_to_date(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """Also where a kill came between the checkpoint and the file."""
    run = RunDirectory(tmp_path, {})
    assert training.fit(run.checkpoint(), epochs=2).state.step == 8
    assert json.loads((tmp_path / "config.json").read_text()) == {}
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name, values in whole.history.history.items():
        assert [float(row[name]) for row in rows] == values[:2]

    text = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").unlink()
    training.fit(RunDirectory(tmp_path, {}).checkpoint(), epochs=2)
    assert (tmp_path / "history.csv").read_text() == text


# ------------------------------------------------------------------ flags


def test_training_config_checks_sizes() -> None:
    TrainingConfig(checkpoint_steps=1, patience=None).check_sizes()
    for name, others in (("checkpoint_steps", ()), ("patience", ()), ("seed", ("seed",))):
        with pytest.raises(ValueError, match=rf"at least 1\. Received: {name}=0"):
            TrainingConfig(**{name: 0}).check_sizes(*others)


def test_training_config_gives_callbacks_that_flags_ask_for(tmp_path: Path) -> None:
    assert TrainingConfig().callbacks() == []
    (stopping,) = TrainingConfig(patience=3).callbacks()
    assert isinstance(stopping, keras.callbacks.EarlyStopping)
    assert (stopping.monitor, stopping.patience) == ("val_loss", 3)


@pytest.mark.parametrize("installed", [set(), {"tensorflow"}, {"tensorboard"}])
def test_training_config_rejects_tensorboard_where_a_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str]
) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    missing = ", ".join(name for name in ("tensorflow", "tensorboard") if name not in installed)
    text = (
        rf"Missing: {missing}\. Received: tensorboard=DIR. Install both with "
        r"`pip install tensorflow tensorboard`, .*history\.csv"
    )
    with pytest.raises(ValueError, match=text):
        TrainingConfig(tensorboard=tmp_path).prepare()


def test_training_config_is_verbose_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, verbose in ((True, 1), (False, 2)):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        assert TrainingConfig().verbose == verbose


def test_set_defaults_sets_only_missing_fields() -> None:
    config = TrainingConfig(seed=3)
    set_defaults(config, patience=5, seed=1)
    assert (config.patience, config.seed) == (5, 3)
