"""The command line `zoo`: commands, help texts and error messages."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
import zoo_command
from zoo.__main__ import catalogue, main, recipes

pytestmark = pytest.mark.once

Run = Callable[..., subprocess.CompletedProcess[str]]

RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("[a-z]*.py"))


def test_catalogue_is_that_of_the_code() -> None:
    assert json.loads(zoo_command.CATALOGUE.read_text("utf-8")) == json.loads(
        json.dumps(catalogue())
    )


def test_list_prints_every_model(in_process: Run) -> None:
    result = in_process("zoo", "list")
    assert result.returncode == 0
    for name, entry in zoo.registry.models.items():
        line = next(line for line in result.stdout.splitlines() if name in line)
        assert f"{entry.build().count_params():,}" in line
        assert entry.section in line
        assert entry.recipe in line


def test_show_prints_the_arithmetic_of_parameter_counts(in_process: Run) -> None:
    output = in_process("zoo", "show", "cnn_48x48", "--num-classes", "43").stdout
    for name, shape, arithmetic, count in (
        ("conv1", "(B, 48, 48, 32)", "(3·3·3 + 1)·32", "896"),
        ("conv2", "(B, 48, 48, 64)", "(3·3·32 + 1)·64", "18,496"),
        ("conv3", "(B, 24, 24, 128)", "(3·3·64 + 1)·128", "73,856"),
        ("fc1", "(B, 512)", "(18432 + 1)·512", "9,437,696"),
        ("fc2", "(B, 43)", "(512 + 1)·43", "22,059"),
        ("total", "", "", "9,553,003"),
    ):
        line = next(line for line in output.splitlines() if f" {name} " in line)
        assert shape in line
        assert arithmetic in line
        assert f" {count} " in line


def test_train_help_lists_every_recipe_with_a_line(in_process: Run) -> None:
    result = in_process("zoo", "train", "--help")
    assert result.returncode == 0
    assert sorted(recipes()) == RECIPES
    lines = result.stdout.splitlines()
    for name, description in recipes().items():
        (line,) = (line for line in lines if line.startswith(f"│ {name} "))
        assert description in line
        assert len(description) > 20


def test_train_help_of_a_recipe_lists_flags_with_defaults(in_process: Run) -> None:
    result = in_process("zoo", "train", "mnist", "--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    assert "usage: zoo train mnist" in text
    for flag, default in (
        ("--model", "cnn_48x48"),
        ("--batch-size", "64"),
        ("--learning-rate", "0.001"),
        ("--checkpoint-steps", "200"),
        ("--patience", "None"),
        ("--tensorboard", "None"),
        ("--quick", "False"),
    ):
        description = text.partition(f" {flag}, ")[2] or text.partition(f" {flag} ")[2]
        assert description.partition("(default: ")[2].startswith(f"{default})"), flag


def test_train_rejects_an_unknown_recipe(in_process: Run) -> None:
    result = in_process("zoo", "train", "no_such_recipe")
    assert result.returncode == 2
    names = ", ".join(RECIPES)
    message = f"error: `recipe` must be one of {names}. Received: recipe=no_such_recipe\n"
    assert result.stderr == message
    assert not result.stdout


def test_train_runs_a_recipe_with_its_flags(tmp_path: Path) -> None:
    flags = ["--quick", "--train-examples", "64", "--test-examples", "16", "--model", "mlp"]
    assert main(["train", "mnist", *flags, "--run-dir", str(tmp_path)]) is None
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "alexnet"], "must be one of autoencoder, cnn_48x48, gpt, mlp, "),
        (["show", "cnn_48x48", "--num-classes", "0"], "num_classes=0"),
        (["show", "cnn_48x48", "--no-such-flag"], "--no-such-flag"),
        (["train", "mnist", "--no-such-flag"], "--no-such-flag"),
        (["train", "mnist", "--epochs", "0"], "epochs=0"),
        (["sow"], "sow"),
    ],
)
def test_main_rejects_invalid_arguments(
    in_process: Run, arguments: list[str], message: str
) -> None:
    result = in_process("zoo", *arguments)
    assert result.returncode == 2
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "flag", "value", "message"),
    [
        ("generate", "tokens", "0", "must be a whole number of at least 1. Received: tokens=0"),
        ("generate", "tokens", "99999999", "must be a whole number of at most 1048576"),
        ("generate", "temperature", "-1", "must be a finite number of at least 0. Received: temp"),
        ("generate", "seed", "-1", "must be a whole number of at least 0. Received: seed=-1"),
        ("draw", "count", "0", "must be a whole number of at least 1. Received: count=0"),
        ("draw", "steps", "0", "must be a whole number of at least 1. Received: steps=0"),
        ("draw", "guidance-scale", "nan", "must be a finite number of at least 0. Received: gui"),
        ("draw", "eta", "2", "must be a number in [0, 1]. Received: eta=2"),
        ("draw", "seed", "4294967296", "must be a whole number of at most 4294967295"),
    ],
)
def test_commands_name_the_flag_before_they_read_the_run(
    in_process: Run, command: str, flag: str, value: str, message: str
) -> None:
    arguments = ["a", "--run-dir", "none", f"--{flag}", value]
    result = in_process("zoo", command, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: `{flag.replace('-', '_')}` {message}")


@pytest.mark.slow
def test_process_ends_with_a_message_on_invalid_arguments() -> None:
    environment = {**os.environ, "KERAS_BACKEND": zoo.backends.name}
    command = [sys.executable, "-m", "zoo", "show", "alexnet"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "\nerror: `model` must be one of autoencoder, cnn_48x48, " in f"\n{result.stderr}"
    assert not result.stdout
