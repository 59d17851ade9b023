import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import zoo

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": zoo.backends.name}
    return subprocess.run(
        [sys.executable, "-m", "zoo", *arguments], env=environment, capture_output=True, text=True
    )


def test_list_names_every_model() -> None:
    result = run("list")
    assert result.returncode == 0
    for name, entry in zoo.registry.models.items():
        line = next(line for line in result.stdout.splitlines() if name in line)
        assert f"{entry.build().count_params():,}" in line
        assert entry.section in line
        assert entry.recipe in line


def test_show_works_the_counts_out(in_process: Run) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "alexnet"], "must be one of autoencoder, cnn_48x48, gpt, mlp, "),
        (["show", "cnn_48x48", "--num-classes", "0"], "num_classes=0"),
        (["show", "cnn_48x48", "--no-such-flag"], "--no-such-flag"),
        (["sow"], "sow"),
    ],
)
def test_wrong_arguments(in_process: Run, arguments: list[str], text: str) -> None:
    result = in_process("zoo", *arguments)
    assert result.returncode == 2
    assert text in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_wrong_arguments_end_a_process_in_words() -> None:
    result = run("show", "alexnet")
    assert result.returncode == 2
    assert "\nerror: `model` must be one of autoencoder, cnn_48x48, " in f"\n{result.stderr}"
    assert not result.stdout
