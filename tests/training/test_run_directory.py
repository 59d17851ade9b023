"""Tests of run directories and of the flags that all recipes share."""

import csv
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import zoo
from tests.training.conftest import BATCH, Outcome, Training, X, Y
from tests.training.test_callbacks import AfterStep, Poison, Stop, stop
from zoo.training import Batches, Diverged
from zoo.training import config as training_config
from zoo.training.config import open_run
from zoo.training.run_callbacks import StepLosses
from zoo.training.run_directory import RunDirectory

pytestmark = pytest.mark.once


def test_run_directory_keeps_results_for_same_configuration(tmp_path: Path) -> None:
    config = {"seed": 0, "data_dir": None, "shape": (1, 2)}
    with RunDirectory(tmp_path / "a" / "b", config) as run:
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


def test_open_run_compares_the_whole_batch_of_accumulated_gradients(tmp_path: Path) -> None:
    @dataclass
    class Training(Config):
        batch_size: int = 8
        gradient_accumulation: int = 1

    with open_run("mine", Training(run_dir=tmp_path, gradient_accumulation=3)) as run:
        run.write_config()
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 24
    open_run("mine", Training(run_dir=tmp_path, batch_size=24))
    open_run("mine", Training(run_dir=tmp_path, batch_size=12, gradient_accumulation=2))
    with pytest.raises(ValueError, match="batch_size was 24 and is 16"):
        open_run("mine", Training(run_dir=tmp_path, gradient_accumulation=2))


def test_open_run_compares_only_decisive_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the results go, and whether `--quick` chose the rest, does not decide them."""
    with open_run("mine", Config(run_dir=tmp_path / "run")) as run:
        run.write_config()
    assert json.loads((run.path / "config.json").read_text()) == {"recipe": "mine", "seed": 0}
    open_run("mine", Config(quick=True, run_dir=tmp_path / "run"))
    open_run("mine", Config(seed=1, run_dir=tmp_path / "run"), extendable="seed")
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        open_run("mine", Config(seed=1, run_dir=tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert open_run("mine", Config()).path.parts[0] == "runs"
    assert open_run("mine", Config()).path.name.startswith("mine-")


def begin(path: Path, config: dict) -> None:
    """Begins a run and closes its directory."""
    with RunDirectory(path, config) as run:
        run.write_config()


def test_run_directory_is_created_when_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run("mine", Config()), open_run("mine", Config(run_dir=Path("a/b"))):
        assert os.listdir(tmp_path) == []


def test_open_run_gives_runs_of_one_second_a_directory_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(training_config, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    with open_run("mine", Config()) as first, open_run("mine", Config()) as second:
        first.write_config()
        second.write_config()
        with open_run("mine", Config()) as third:
            third.write_config()
            names = [run.path.name for run in (first, second, third)]
    expected = ["mine-20260102-030405", "mine-20260102-030405-2", "mine-20260102-030405-3"]
    assert names == expected
    assert sorted(os.listdir("runs")) == expected


def test_run_directory_removes_unfinished_files_of_its_own(tmp_path: Path) -> None:
    begin(tmp_path, {"seed": 0})
    (tmp_path / ".unfinished-history.csv").write_text("epo")
    for name in (".notes.tmp", ".unfinished-thesis.tex"):
        (tmp_path / name).write_text("precious")
    begin(tmp_path, {"seed": 0})
    assert sorted(os.listdir(tmp_path)) == [
        ".notes.tmp", ".unfinished-thesis.tex", "config.json",
    ]  # fmt: skip


def test_run_directory_takes_one_whose_beginning_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock-holder").write_text('{"pro')
    (tmp_path / ".unfinished-config.json").write_text('{"see')
    begin(tmp_path, {"seed": 0})
    assert os.listdir(tmp_path) == ["config.json"]


def test_run_directory_belongs_to_no_configuration_before_it_is_written(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", {"seed": -1})
    begin(tmp_path / "run", {"seed": 1})
    with pytest.raises(ValueError, match="seed was 1 and is -1"):
        RunDirectory(tmp_path / "run", {"seed": -1})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", r"config\.json must be valid JSON\. Received: an empty file\. Restore"),
        ("metrics.json", r"metrics\.json has changed .* 3 bytes.*Received: 0 bytes"),
    ],
)
def test_run_directory_names_damaged_file(tmp_path: Path, name: str, text: str) -> None:
    RunDirectory(tmp_path, {}).write_config()
    RunDirectory(tmp_path, {}).write_metrics({})
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=text):
        assert RunDirectory(tmp_path, {}).metrics


def test_run_directory_rejects_other_configuration(tmp_path: Path) -> None:
    begin(tmp_path / "run", {"seed": 0, "epochs": 5, "recipe": "mnist"})
    text = r"another configuration: epochs was 5 and is 3, seed was 0 and is 1\."
    with pytest.raises(ValueError, match=text):
        RunDirectory(tmp_path / "run", {"seed": 1, "epochs": 3, "recipe": "mnist"})
    assert RunDirectory(tmp_path / "run", {"seed": 0, "epochs": 5, "recipe": "mnist"})


def test_run_directory_extends_finished_run(tmp_path: Path) -> None:
    """Its results count until the longer run begins; a shorter one is rejected."""

    def run(epochs: int, seed: int = 0) -> RunDirectory:
        return RunDirectory(tmp_path, {"seed": seed, "epochs": epochs}, extendable="epochs")

    with run(2) as short:
        short.write_config()
        short.write_metrics({"test_accuracy": 0.5})
    assert run(2).metrics == {"test_accuracy": 0.5}
    with run(3) as longer:
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
    for name in ("thesis.tex", ".thesis.tex.tmp", ".unfinished-thesis.tex"):
        (tmp_path / name).write_text("precious")
    text = r"new, empty, or an earlier run's.*holds other files.*Give another `--run-dir`"
    with pytest.raises(ValueError, match=text), RunDirectory(tmp_path, {}) as run:
        run.write_config()
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_directory_rejects_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="must be writable"):
        begin(tmp_path, {})
    with pytest.raises(OSError, match="cannot be created: Permission denied"):
        RunDirectory(tmp_path / "run", {})


def test_run_directory_rejects_read_only_file_system() -> None:
    """Nobody, not even root, writes into /proc."""
    with pytest.raises(OSError, match=r"cannot be created: .*\. Received: /proc/run"):
        begin(Path("/proc/run"), {})


def test_run_directory_names_a_changed_configuration_of_an_unfinished_run(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """The checkpoints tell which of two configurations is that of the run."""
    with RunDirectory(tmp_path, {"seed": 0}) as run, pytest.raises(Stop):
        training.fit(run.checkpoint(every=3), callbacks=[AfterStep(5, stop)])
    (tmp_path / "config.json").write_text('{"seed": 7}')
    text = (
        r"config\.json must be that of the checkpoints, which belong to the flags that are given\. "
        r"Received: seed was 7 and is 0\. Remove that file to go on after the last checkpoint"
    )
    with pytest.raises(ValueError, match=text):
        RunDirectory(tmp_path, {"seed": 0})
    with RunDirectory(tmp_path, {"seed": 7}) as run:
        text = r"seed was 0 and is 7\. Give the flags .*, without config\.json if that was edited"
        with pytest.raises(ValueError, match=text):
            training.fit(run.checkpoint(every=3))
    (tmp_path / "config.json").unlink()
    with RunDirectory(tmp_path, {"seed": 0}) as run:
        training.fit(run.checkpoint(every=3)).assert_equal(whole)


@pytest.mark.parametrize("lost", [(), ("inputs.json",), ("checkpoints",)])
def test_run_directory_goes_on_with_no_other_input(
    training: Training, whole: Outcome, tmp_path: Path, lost: tuple[str, ...]
) -> None:
    """Not even of the same size, where the digest is left in one of its two places."""

    def run(vocabulary: bytes, *callbacks: AfterStep) -> Outcome:
        with RunDirectory(tmp_path, {}) as directory:
            directory.write_input("vocabulary.json", vocabulary)
            return training.fit(directory.checkpoint(every=3), callbacks=callbacks)

    with pytest.raises(Stop):
        run(b"ab", AfterStep(5, stop))
    for name in lost:
        (shutil.rmtree if name == "checkpoints" else os.remove)(tmp_path / name)
    digest, other = (sha256(content).hexdigest() for content in (b"ab", b"ac"))
    text = (
        rf"vocabulary\.json must be the file that the run was begun with, of the SHA-256 {digest}"
        rf"\. Received: {other}\..* remove it, so that the same command makes it again"
    )
    with pytest.raises(ValueError, match=text):
        run(b"ac")
    assert (tmp_path / "vocabulary.json").read_bytes() == b"ab"
    run(b"ab").assert_equal(whole)


def test_run_checkpoint_names_another_input(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """Of a forged inputs.json; what is said to do leads on."""
    with RunDirectory(tmp_path, {}) as run:
        run.write_input("vocabulary.json", b"ab")
        with pytest.raises(Stop):
            training.fit(run.checkpoint(every=3), callbacks=[AfterStep(5, stop)])
    (tmp_path / "inputs.json").write_text(f'{{"vocabulary.json": "{sha256(b"ac").hexdigest()}"}}')
    with RunDirectory(tmp_path, {}) as run:
        run.write_input("vocabulary.json", b"ac")
        with pytest.raises(ValueError, match=r"another training: vocabulary\.json was 'fb8e20fc"):
            training.fit(run.checkpoint(every=3))
    (tmp_path / "inputs.json").write_text("{")
    with RunDirectory(tmp_path, {}) as run:
        with pytest.raises(ValueError, match=r"inputs\.json must be valid JSON.* Remove that file"):
            run.write_input("vocabulary.json", b"ab")
        (tmp_path / "inputs.json").unlink()
        run.write_input("vocabulary.json", b"ab")
        training.fit(run.checkpoint(every=3)).assert_equal(whole)


def test_nested_run_rejects_checkpoints_of_another_outer_run(
    training: Training, tmp_path: Path
) -> None:
    for rate in (1, 2):
        with RunDirectory(tmp_path / str(rate), {"rate": rate}) as outer:
            outer.write_config()
            with outer.nested("part", {"cell": "gru"}) as run:
                training.fit(run.checkpoint(), epochs=1)
    other = tmp_path / "2" / "part" / "checkpoints"
    shutil.rmtree(other)
    shutil.copytree(tmp_path / "1" / "part" / "checkpoints", other)
    text = r"within was {'rate': 1} and is {'rate': 2}"
    with (
        RunDirectory(tmp_path / "2", {"rate": 2}) as outer,
        outer.nested("part", {"cell": "gru"}) as run,
        pytest.raises(ValueError, match=text),
    ):
        training.fit(run.checkpoint(), epochs=1)


# ------------------------------------------------------------------ one writer


def test_run_directory_has_one_writer_and_any_readers(tmp_path: Path) -> None:
    config = {"seed": 0}
    with RunDirectory(tmp_path / "run", config) as run:
        run.write_config()
        text = rf"one process at a time\. Received: .*, in use by process {os.getpid()} on .*"
        with pytest.raises(BlockingIOError, match=text + "or give another `--run-dir`"):
            begin(tmp_path / "run", config)
        with pytest.raises(BlockingIOError), RunDirectory(tmp_path / "run", config):
            pytest.fail("The directory of a begun run is locked as soon as it is opened")
        run.write_metrics({"test_loss": 0.5})
        entries = sorted(os.listdir(run.path))
        with RunDirectory(tmp_path / "run", config) as reader:
            assert reader.metrics == {"test_loss": 0.5}
            with pytest.raises(BlockingIOError):
                reader.write("prompt.png", b"")
        assert sorted(os.listdir(run.path)) == entries
        run.write("prompt.png", b"")
    assert sorted(os.listdir(run.path)) == [
        "config.json", "manifest.json", "metrics.json", "prompt.png",
    ]  # fmt: skip


def test_run_directory_checks_again_what_another_wrote_before_the_lock(tmp_path: Path) -> None:
    late = RunDirectory(tmp_path / "run", {"seed": 1})
    begin(tmp_path / "run", {"seed": 0})
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        late.write_config()
    begin(tmp_path / "run", {"seed": 0})  # the lock is free


def replace(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    begin(path, {})


@pytest.mark.parametrize("vanish", [shutil.rmtree, replace])
def test_run_checkpoint_ends_training_when_the_directory_vanishes(
    training: Training, tmp_path: Path, vanish: Callable[[Path], None]
) -> None:
    path = tmp_path / "run"
    with RunDirectory(path, {}) as run:
        callback = AfterStep(5, lambda: vanish(path))
        with pytest.raises(FileNotFoundError, match=r"must stay in place.* same command begins"):
            training.fit(run.checkpoint(), callbacks=[callback])
    expected = ["config.json"] if vanish is replace else []
    assert [file.name for file in path.glob("*")] == expected


# ------------------------------------------------------------------ files that cannot be written


@pytest.fixture
def _small_files() -> Iterator[None]:
    """The system refuses to write more than 10 kB to a file, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
def test_run_directory_says_what_is_safe_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    model = zoo.mlp((100,), 100)
    figure = Figure()
    figure.subplots().imshow(np.random.default_rng(0).random((100, 100)))
    with RunDirectory(tmp_path, {}) as run:
        for name, write in {
            "prompt.png": lambda: run.write("prompt.png", bytes(30_000)),
            "loss.png": lambda: run.save_plot("loss.png", figure),
            "model.weights.h5": lambda: run.save_model(model),
        }.items():
            text = (
                rf"Could not write .*/{name}: File too large\. There is no checkpoint yet; make "
                "room and run the same command again"
            )
            with pytest.raises(OSError, match=text):
                write()
        checkpoint = run.checkpoints / "step-000000001.npz"
        checkpoint.parent.mkdir()
        checkpoint.touch()
        with pytest.raises(OSError, match=rf"The last good checkpoint is {checkpoint}; make room"):
            run.write("prompt.png", bytes(30_000))
    assert set(os.listdir(tmp_path)) == {"checkpoints", "config.json", "model.json"}


# ------------------------------------------------------------------ checkpoints of a run


def test_run_checkpoint_keeps_history_file_up_to_date(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """Also where a kill came between the checkpoint and the file."""
    with RunDirectory(tmp_path, {}) as run:
        assert training.fit(run.checkpoint(), epochs=2).state.step == 8
    assert json.loads((tmp_path / "config.json").read_text()) == {}
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name, values in whole.history.history.items():
        assert [float(row[name]) for row in rows] == values[:2]

    text = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").unlink()
    with RunDirectory(tmp_path, {}) as run:
        training.fit(run.checkpoint(), epochs=2)
    assert (tmp_path / "history.csv").read_text() == text


def test_run_checkpoint_rejects_one_of_another_configuration(
    training: Training, whole: Outcome, tmp_path: Path
) -> None:
    """Which fits in shape; what it says to do leads on. A longer run has the same checkpoints."""
    for seed in (1, 2):
        config = {"seed": seed, "epochs": 1}
        with RunDirectory(tmp_path / str(seed), config, "epochs") as run:
            training.fit(run.checkpoint(), epochs=1)
    (first,) = (tmp_path / "1" / "checkpoints").iterdir()
    other = tmp_path / "2" / "checkpoints" / "step-000000009.npz"
    shutil.copy(first, other)
    with RunDirectory(tmp_path / "2", {"seed": 2, "epochs": 3}, "epochs") as run:
        text = (
            r"step-000000009\.npz belongs to another training: seed was 1 and is 2\..*move it out"
        )
        with pytest.raises(ValueError, match=text):
            training.fit(run.checkpoint())
        other.unlink()
        training.fit(run.checkpoint()).assert_equal(whole)


def test_run_checkpoint_names_another_run_dir_when_loss_diverges(
    training: Training, tmp_path: Path
) -> None:
    """Since the directory belongs to the learning rate."""
    with RunDirectory(tmp_path, {}) as run:
        text = r"There is no checkpoint yet\. A lower learning rate, with another `--run-dir`, may"
        with pytest.raises(Diverged, match=text):
            training.fit(run.checkpoint(), callbacks=[Poison(2), AfterStep(3, stop)])


def test_step_losses_are_kept_beside_checkpoints_of_one_size(
    training: Training, tmp_path: Path
) -> None:
    """The losses of a resumed training are those of one without interruption."""
    sizes = []
    for steps in (3, 60):
        training.reset()
        batches = Batches((X, Y), BATCH, seed=3, steps_per_epoch=steps)
        with RunDirectory(tmp_path / str(steps), {}) as run:
            checkpoint = run.checkpoint(every=1000)
            losses = StepLosses(run, checkpoint)
            training.trainer.fit(batches, callbacks=[losses], checkpoint=checkpoint, verbose=0)
        assert losses.values.shape == (steps,)
        assert losses.values[-1] == checkpoint.state.history[0]["loss"]
        sizes.append((run.checkpoints / f"step-{steps:09d}.npz").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 50  # digits of numbers


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_step_losses_go_on_without_those_that_the_file_has_lost(
    training: Training, tmp_path: Path, damage: str
) -> None:
    with RunDirectory(tmp_path, {}) as run:
        checkpoint = run.checkpoint()
        losses = StepLosses(run, checkpoint)
        training.fit(checkpoint, epochs=1, callbacks=[losses])
        expected = losses.values
        rows = (tmp_path / "losses.csv").read_text().splitlines()
        assert rows[0] == "step,loss"
        (tmp_path / "losses.csv").write_text("\n".join(rows[:3]) + "\n?")
        if damage == "missing":
            (tmp_path / "losses.csv").unlink()
        training.fit(checkpoint, epochs=2, callbacks=[losses])
    num_checkpoints = 0 if damage == "missing" else 2
    np.testing.assert_array_equal(
        losses.values[:4], [*expected[:num_checkpoints], *[np.nan] * (4 - num_checkpoints)]
    )
    assert np.isfinite(losses.values[4:]).all()
    assert len(losses.values) == 8
