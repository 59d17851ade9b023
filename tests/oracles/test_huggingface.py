"""`gpt` against Hugging Face's GPT-2 and Llama: logits, greedy tokens, folders there and back."""

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


def theirs(kind: str, **options: Any) -> Any:
    """A random one, with weights large enough that tokens vary."""
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
    with torch.no_grad():  # biases and scales begin as zeros and ones
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
def test_the_same_logits_and_tokens(kind: str, options: dict, tmp_path: Path) -> None:
    other = theirs(kind, **options)
    other.save_pretrained(tmp_path)
    model = huggingface.load(tmp_path)
    expected = logits(other, IDS)
    np.testing.assert_allclose(ops.convert_to_numpy(model(IDS)), expected, atol=1e-4)
    assert np.abs(expected).max() > 1
    prompts = torch.from_numpy(IDS[:, :8]).long()
    with torch.no_grad():
        # Without a mask it would take token 0 for padding.
        greedy = other.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
            max_new_tokens=64, pad_token_id=0,
        )  # fmt: skip
    found = generate(model, list(IDS[:, :8]), 64, temperature=0.0)
    np.testing.assert_array_equal(found, greedy[:, 8:].numpy())
    assert len({tuple(row[-8:]) for row in found}) > 1


@KINDS
def test_there_and_back(kind: str, options: dict, tmp_path: Path) -> None:
    other = theirs(kind, **options)
    other.save_pretrained(tmp_path / "theirs")
    huggingface.save(huggingface.load(tmp_path / "theirs"), tmp_path / "ours")
    first, second = (load_file(tmp_path / p / "model.safetensors") for p in ("theirs", "ours"))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_array_equal(logits(again, IDS), logits(other, IDS))


@pytest.mark.parametrize("name", ["small", "llama"])
def test_our_own_models_are_theirs(name: str, tmp_path: Path) -> None:
    arguments = {**CONFIGURATIONS[name], "vocabulary_size": 80, "num_layers": 2, "seed": 5}
    model = gpt(**arguments)
    huggingface.save(model, tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in other.parameters()) == model.count_params()
    np.testing.assert_allclose(logits(other, IDS), ops.convert_to_numpy(model(IDS)), atol=1e-5)
