"""Folders in Hugging Face's format. tests/oracles compares the models with Hugging Face's own."""

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


def small_model(model_type: str, **options: Any) -> keras.Model:
    arguments = {"gpt2": {"num_heads": 2}, "llama": CONFIGURATIONS["llama"]}[model_type]
    return gpt(**{**arguments, **SIZES, "seed": 1, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    huggingface.save(small_model("gpt2"), tmp_path)
    return tmp_path


def edit_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_load_restores_saved_model(model_type: str, tied: bool, tmp_path: Path) -> None:
    model = small_model(model_type, tie_embeddings=tied)
    huggingface.save(model, tmp_path)
    loaded = huggingface.load(tmp_path)
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]
    for a, b in zip(loaded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded(IDS)), ops.convert_to_numpy(model(IDS))
    )


def test_load_accepts_names_without_prefix_and_masks(folder: Path) -> None:
    """The files of OpenAI's weights have this form."""
    expected = ops.convert_to_numpy(huggingface.load(folder)(IDS))
    state = {
        name.removeprefix("transformer."): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    state["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)
    state["lm_head.weight"] = state["wte.weight"].copy()
    save_file(state, folder / "model.safetensors")
    np.testing.assert_array_equal(ops.convert_to_numpy(huggingface.load(folder)(IDS)), expected)


def test_load_converts_bfloat16(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    rounded = {name: array.astype("bfloat16") for name, array in state.items()}
    save_file(rounded, folder / "model.safetensors")
    embeddings = huggingface.load(folder).get_layer("embedding").embeddings
    expected = state["transformer.wte.weight"].astype("bfloat16").astype(np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(embeddings), expected)


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
def test_load_rejects_unsupported_or_mismatched_folder(
    folder: Path, settings: dict, text: str
) -> None:
    edit_config(folder, **settings)
    with pytest.raises(ValueError, match=text):
        huggingface.load(folder)


@pytest.mark.parametrize(
    "settings", [{"attention_bias": True}, {"head_dim": 7}, {"rope_scaling": {"rope_type": "yarn"}}]
)
def test_load_rejects_unsupported_llama(settings: dict, tmp_path: Path) -> None:
    huggingface.save(small_model("llama"), tmp_path)
    edit_config(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"all that `zoo\.gpt` supports"):
        huggingface.load(tmp_path)


def test_load_rejects_damaged_or_missing_file(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"an undamaged model.safetensors. Received: "):
        huggingface.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        huggingface.load(folder)


def test_save_rejects_other_architectures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Received: norm=layer_norm, activation=swiglu"):
        huggingface.save(small_model("gpt2", activation="swiglu"), tmp_path / "new")
    with pytest.raises(ValueError, match=r"must be a `zoo.gpt`. Received: mlp"):
        huggingface.save(mlp(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
