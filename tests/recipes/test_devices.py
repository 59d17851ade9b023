"""Tests of recipes on several devices, by the commands of the guide to several devices."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes import mnist
from tests import recipe
from zoo.training import cluster
from zoo.training.cluster import Cluster
from zoo.training.config import TrainingConfig
from zoo.training.rendezvous import free_port

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "several-devices.md"
COMMANDS = re.findall(r"^zoo (train .*--node-rank.*)$", GUIDE.read_text("utf-8"), re.M)
SMALL = {"model": "mlp", "train_examples": 70, "test_examples": 20, "epochs": 1}


@pytest.mark.once
@pytest.mark.slow
def test_two_machines_train_as_one_device_by_the_commands_of_the_guide(tmp_path: Path) -> None:
    """The machines are two addresses of this computer, in folders of their own."""
    port = free_port("127.0.0.2")
    flags = [word for k, v in SMALL.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    changes = {"gpu1:29500": f"127.0.0.2:{port}", "--devices 4": "--devices 1", "runs/mnist": "run"}
    processes = []
    for folder, command in zip((tmp_path, tmp_path / "second"), COMMANDS, strict=True):
        folder.mkdir(exist_ok=True)
        for before, after in changes.items():
            assert before in command
            command = command.replace(before, after)
        line = [sys.executable, "-m", "zoo", *command.split(), *flags]
        processes.append(subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "Results are in run" in outputs[0]
    assert outputs[1] == ""
    assert not list((tmp_path / "second").iterdir())

    expected, _ = recipe.run(mnist, SMALL, tmp_path / "one")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test_loss"] == pytest.approx(expected["test_loss"], abs=1e-5)
    assert metrics["test_accuracy"] == pytest.approx(expected["test_accuracy"])
    # The number of devices is no part of the run.
    longer, output = recipe.run(mnist, {**SMALL, "epochs": 2}, tmp_path / "run")
    assert "Going on after step 2" in output
    assert longer["epochs"] == 2


@pytest.mark.once
def test_recipes_of_workers_besides_the_first_neither_print_nor_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Cluster(num_workers=2, rank=1, local_rank=1, coordinator="a:1")
    monkeypatch.setattr(cluster, "_joined", place)
    config: Any = TrainingConfig(tensorboard=tmp_path / "events")
    assert config.verbose == 0
    assert config.callbacks() == []
