"""Weights divided among two devices: the losses of one device, and files of whole arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from recipes.shakespeare import Config
from zoo import backends
from zoo.training import sharded_model

NAME = keras.backend.backend()
needs_division = pytest.mark.skipif(NAME == "tensorflow", reason="divided on JAX and PyTorch")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `sharded.py` prints."""
    script = Path(__file__).with_name("sharded.py")
    result = subprocess.run(
        [sys.executable, script, tmp_path_factory.mktemp("sharded")],
        env={**os.environ, "PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@needs_division
def test_divided_weights_give_the_losses_of_one_device(outcome: dict[str, Any]) -> None:
    np.testing.assert_allclose(outcome["sharded"], outcome["single"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(outcome["accumulated"], outcome["single"], rtol=0, atol=1e-5)
    assert outcome["weights"] < 1e-4
    assert outcome["predictions"] < 1e-4
    assert outcome["file"]
    # Three steps on two devices, one more after their checkpoint, then one on one device.
    np.testing.assert_allclose(outcome["continued"], outcome["single"][:4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(outcome["resumed"], outcome["single"], rtol=0, atol=1e-5)


@needs_division
def test_each_device_holds_its_parts_of_weights_and_slots(outcome: dict[str, Any]) -> None:
    parts = outcome["parts"]
    axis = 0 if NAME == "torch" else 1  # of JAX, by heads and units of the feed-forward network
    for path, shape in {
        "embedding/embeddings": [20, 8],
        "block1/attention/query/kernel": [8, 8],
        "adamw/block1_feed_forward_up_kernel_velocity": [8, 32],
    }.items():
        shape[axis] //= 2
        assert parts[path] == shape
    assert parts["norm/gamma"] == [4 if NAME == "torch" else 8]
    assert 0.5 <= outcome["share"] < (0.501 if NAME == "torch" else 0.6)


@needs_division
def test_what_cannot_be_divided_is_refused(outcome: dict[str, Any]) -> None:
    texts = {
        "devices": "must be at most 2, the devices that JAX has .* Received: devices=3",
        "unbuilt": "`network` must have its weights before .* Received: unbuilt, which is not",
        "optimizer": "must have the shapes of the weights .* Received: adafactor/.* of Adafactor",
        "callback": "`callbacks` must not save the weights .* Received: ModelCheckpoint. Use the",
    }
    assert outcome["errors"]
    for name, error in outcome["errors"].items():
        with pytest.raises(ValueError, match=texts[name]):
            raise ValueError(error)


@pytest.mark.skipif(NAME != "tensorflow", reason="divided on JAX and PyTorch")
def test_tensorflow_refuses() -> None:
    text = "on JAX and PyTorch. Received: the backend tensorflow. Use `KERAS_BACKEND=jax`"
    for context in (sharded_model(devices=2), Config(shard_model=True, devices=2).distributed()):
        with pytest.raises(ValueError, match=text):
            context.__enter__()


@pytest.mark.skipif(NAME == "torch", reason="the devices of one process")
def test_several_machines_are_refused_where_one_process_has_the_devices() -> None:
    with pytest.raises(ValueError, match=r"`num_nodes` must be 1 where .* Received: num_nodes=2"):
        sharded_model(devices=2, num_nodes=2, coordinator="a:1").__enter__()


@pytest.mark.once
def test_devices_must_divide_heads_and_width_on_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "name", "jax")
    with pytest.raises(
        ValueError, match=r"must divide .* Received: devices=3, num_heads=4, hidden"
    ):
        Config(shard_model=True, devices=3)
    Config(shard_model=True, devices=4)
    monkeypatch.setattr(backends, "name", "torch")
    Config(shard_model=True, devices=3)
