"""Weights divided among two devices: the losses of one device, and files of whole arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from recipes.shakespeare import Config
from zoo.training import sharded_model

is_jax = keras.backend.backend() == "jax"


@pytest.mark.skipif(not is_jax, reason="divided on JAX alone")
def test_divided_weights_give_the_losses_of_one_device() -> None:
    script = Path(__file__).with_name("sharded.py")
    result = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert outcome["devices"] == 2
    np.testing.assert_allclose(outcome["sharded"], outcome["single"], rtol=1e-5)
    # Three steps on two devices, then two on one.
    np.testing.assert_allclose(outcome["resumed"], outcome["single"], rtol=1e-5)
    assert outcome["weights"] < 1e-4
    assert "must be at most 2, the devices" in outcome["error"]
    assert "Received: devices=3" in outcome["error"]
    parts = outcome["parts"]
    assert parts["embedding/embeddings"] == [20, 4]
    assert parts["block1/attention/query/kernel"] == [8, 4]
    assert parts["block1/feed_forward/down/kernel"] == [16, 8]
    assert parts["adamw/block1_feed_forward_up_kernel_velocity"] == [8, 16]
    assert parts["norm/gamma"] == [8]


@pytest.mark.skipif(is_jax, reason="divided on JAX")
def test_other_backends_refuse() -> None:
    text = rf"on JAX alone. Received: the backend {keras.backend.backend()}. Use `KERAS_BACKEND"
    with pytest.raises(ValueError, match=text):
        sharded_model(devices=2)
    with pytest.raises(ValueError, match=text):
        Config(shard_model=True, devices=2).distributed()


@pytest.mark.once
def test_devices_must_divide_heads_and_width() -> None:
    with pytest.raises(
        ValueError, match=r"must divide .* Received: devices=3, num_heads=4, hidden"
    ):
        Config(shard_model=True, devices=3)
    Config(shard_model=True, devices=4)
