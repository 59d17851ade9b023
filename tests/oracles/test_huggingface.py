"""`gpt` against Hugging Face's GPT-2 and Llama: logits, greedy tokens, import and export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from keras import ops
from safetensors.numpy import load_file

from zoo import gpt
from zoo.generation.sampling import generate
from zoo.interop import huggingface
from zoo.models.gpt import CONFIGURATIONS

IDS = np.random.default_rng(0).integers(0, 80, (3, 20)).astype(np.int32)
SIZES = {"vocab_size": 80, "bos_token_id": None, "eos_token_id": None}


def make_huggingface_model(kind: str, **options: Any) -> Any:
    """Creates a model with random weights that are large enough for varied tokens."""
    torch.manual_seed(0)
    if kind == "gpt2":
        settings = {"n_positions": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, **SIZES, **options}
        config = transformers.GPT2Config(initializer_range=0.15, **settings)
        model = transformers.GPT2LMHeadModel(config)
    else:
        settings = {
            "max_position_embeddings": 96, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            **SIZES, **options,
        }  # fmt: skip
        config = transformers.LlamaConfig(initializer_range=0.15, **settings)
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # biases and scales are initially zeros and ones
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.numpy()


KINDS = pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("gpt2", {"n_inner": 40, "activation_function": "relu"}),
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ],
)


@KINDS
def test_load_gives_the_same_logits_and_tokens(kind: str, options: dict, tmp_path: Path) -> None:
    expected_model = make_huggingface_model(kind, **options)
    expected_model.save_pretrained(tmp_path)
    model = huggingface.load(tmp_path)
    expected = logits(expected_model, IDS)
    np.testing.assert_allclose(ops.convert_to_numpy(model(IDS)), expected, atol=1e-4)
    assert np.abs(expected).max() > 1
    prompts = torch.from_numpy(IDS[:, :8]).long()
    with torch.no_grad():
        # Without a mask, `generate` would treat token 0 as padding.
        greedy = expected_model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
            max_new_tokens=64, pad_token_id=0,
        )  # fmt: skip
    tokens = generate(model, list(IDS[:, :8]), 64, temperature=0.0)
    np.testing.assert_array_equal(tokens, greedy[:, 8:].numpy())
    assert len({tuple(row[-8:]) for row in tokens}) > 1


@KINDS
def test_save_restores_the_loaded_weights(kind: str, options: dict, tmp_path: Path) -> None:
    expected_model = make_huggingface_model(kind, **options)
    expected_model.save_pretrained(tmp_path / "original")
    huggingface.save(huggingface.load(tmp_path / "original"), tmp_path / "saved")
    first, second = (load_file(tmp_path / p / "model.safetensors") for p in ("original", "saved"))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    np.testing.assert_array_equal(logits(reloaded, IDS), logits(expected_model, IDS))


@pytest.mark.parametrize("name", ["small", "llama"])
def test_save_writes_a_huggingface_model(name: str, tmp_path: Path) -> None:
    arguments = {**CONFIGURATIONS[name], "vocabulary_size": 80, "num_layers": 2, "seed": 5}
    model = gpt(**arguments)
    huggingface.save(model, tmp_path)
    expected_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in expected_model.parameters()) == model.count_params()
    np.testing.assert_allclose(
        logits(expected_model, IDS), ops.convert_to_numpy(model(IDS)), atol=1e-5
    )
