"""Folders as Hugging Face writes them; against its own models see tests/oracles."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

from zoo import gpt, mlp
from zoo.interop import huggingface
from zoo.models.gpt import CONFIGURATIONS

SIZES = {"vocabulary_size": 40, "num_layers": 2, "hidden_dim": 16}
IDS = np.array([[3, 1, 4, 1, 5, 9]], np.int32)


def made(kind: str, **options: Any) -> keras.Model:
    arguments = {"gpt2": {"num_heads": 2}, "llama": CONFIGURATIONS["llama"]}[kind]
    return gpt(**{**arguments, **SIZES, "seed": 1, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    huggingface.save(made("gpt2"), tmp_path)
    return tmp_path


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back(kind: str, tied: bool, tmp_path: Path) -> None:
    model = made(kind, tie_embeddings=tied)
    huggingface.save(model, tmp_path)
    again = huggingface.load(tmp_path)
    assert [v.path for v in again.weights] == [v.path for v in model.weights]
    for a, b in zip(again.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(again(IDS)), ops.convert_to_numpy(model(IDS))
    )


def test_names_without_a_prefix_and_masks_are_taken(folder: Path) -> None:
    """As in the files that OpenAI's weights come in."""
    expected = ops.convert_to_numpy(huggingface.load(folder)(IDS))
    state = {
        name.removeprefix("transformer."): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    state["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)
    state["lm_head.weight"] = state["wte.weight"].copy()
    save_file(state, folder / "model.safetensors")
    np.testing.assert_array_equal(ops.convert_to_numpy(huggingface.load(folder)(IDS)), expected)


def test_bfloat16(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    rounded = {name: array.astype("bfloat16") for name, array in state.items()}
    save_file(rounded, folder / "model.safetensors")
    found = huggingface.load(folder).get_layer("embedding").embeddings
    expected = state["transformer.wte.weight"].astype("bfloat16").astype(np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model_type": "bert"}, "gpt2 or llama. Received: model_type=bert"),
        ({"activation_function": "silu"}, "Received: activation_function=silu"),
        ({"scale_attn_weights": False}, "scale_attn_weights=True.*Received: .*=False"),
        ({"n_positions": 5}, r"wpe.weight has shape \(64, 16\) instead of \(5, 16\)"),
        ({"n_layer": 3}, "transformer.h.2.ln_1.weight is missing"),
        ({"n_layer": 1}, "transformer.h.1.ln_1.weight is unknown"),
    ],
)
def test_folders_that_do_not_fit(folder: Path, settings: dict, text: str) -> None:
    change(folder, **settings)
    with pytest.raises(ValueError, match=text):
        huggingface.load(folder)


@pytest.mark.parametrize(
    "settings", [{"attention_bias": True}, {"head_dim": 7}, {"rope_scaling": {"rope_type": "yarn"}}]
)
def test_a_llama_of_another_kind(settings: dict, tmp_path: Path) -> None:
    huggingface.save(made("llama"), tmp_path)
    change(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"the only kind `zoo\.gpt` is"):
        huggingface.load(tmp_path)


def test_damage(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"a model.safetensors that is whole. Received: "):
        huggingface.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        huggingface.load(folder)


def test_models_that_are_neither(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Received: norm=layer_norm, activation=swiglu"):
        huggingface.save(made("gpt2", activation="swiglu"), tmp_path / "new")
    with pytest.raises(ValueError, match=r"must be a `zoo.gpt`. Received: mlp"):
        huggingface.save(mlp(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
