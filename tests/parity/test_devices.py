"""A training that two devices of one backend have begun goes on with one device of another."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.training import distributed
from tests.training.test_distributed import assert_close, command, read
from zoo.training.launcher import launch

pytestmark = pytest.mark.parity


def test_two_devices_of_pytorch_begin_and_one_of_jax_ends(tmp_path: Path) -> None:
    assert launch(command(tmp_path, "interrupted"), devices=2) == 130
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run(command(tmp_path, "resumed"), env=environment, check=True)
    expected = distributed.train(distributed.gpt())
    assert_close(read(tmp_path / "resumed-0.npz"), expected, steps=1)
