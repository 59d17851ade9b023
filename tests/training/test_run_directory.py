import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from zoo.training.run_directory import RunDirectory, open_run


def test_a_new_run_and_the_same_again(tmp_path: Path) -> None:
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


def test_a_recipe_opens_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the results go, and whether `--quick` chose the rest, does not decide them."""
    run = open_run("mine", Config(run_dir=tmp_path / "run"))
    run.write_config()
    assert json.loads((run.path / "config.json").read_text()) == {"recipe": "mine", "seed": 0}
    open_run("mine", Config(quick=True, run_dir=tmp_path / "run"))
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        open_run("mine", Config(seed=1, run_dir=tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert open_run("mine", Config()).path.parts[0] == "runs"
    assert open_run("mine", Config()).path.name.startswith("mine-")


def test_a_process_killed_while_it_wrote_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / ".config.json.tmp").write_text('{"see')
    RunDirectory(tmp_path, {"seed": 0}).write_config()
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_configuration_that_proves_wrong_leaves_the_directory_free(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", {"seed": -1})
    RunDirectory(tmp_path / "run", {"seed": 1}).write_config()
    with pytest.raises(ValueError, match="seed was 1 and is -1"):
        RunDirectory(tmp_path / "run", {"seed": -1})


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    RunDirectory(tmp_path, {}).write_config()
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"holds a damaged {name}"):
        assert RunDirectory(tmp_path, {}).metrics


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", {"seed": 0, "epochs": 5, "recipe": "mnist"}).write_config()
    text = r"another configuration: epochs was 5 and is 3, seed was 0 and is 1\."
    with pytest.raises(ValueError, match=text):
        RunDirectory(tmp_path / "run", {"seed": 1, "epochs": 3, "recipe": "mnist"})
    assert RunDirectory(tmp_path / "run", {"seed": 0, "epochs": 5, "recipe": "mnist"})


def test_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"must be a directory or a new path.*the file .*file"):
        RunDirectory(tmp_path / "file", {})
    with pytest.raises(OSError, match=r"cannot be created: Not a directory\. Received: .*file/run"):
        RunDirectory(tmp_path / "file" / "run", {})
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"new, empty, or an earlier run's.*holds other files"):
        RunDirectory(tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="must be writable"):
        RunDirectory(tmp_path, {})


def test_a_folder_on_a_read_only_file_system() -> None:
    """Nobody, not even root, writes into /proc."""
    with pytest.raises(OSError, match=r"cannot be created: .*\. Received: /proc/run"):
        RunDirectory(Path("/proc/run"), {})
