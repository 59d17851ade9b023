"""`gpt` against Hugging Face's GPT-2, Llama and Qwen2: logits, greedy tokens, import and export."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from keras import ops
from safetensors.numpy import load_file
from transformers.activations import ACT2FN

from zoo import gpt
from zoo.generation.sampling import generate
from zoo.interop import huggingface
from zoo.interop.huggingface_config import GPT2_ACTIVATIONS
from zoo.layers.feed_forward import ACTIVATIONS
from zoo.models.gpt import CONFIGURATIONS

IDS = np.random.default_rng(0).integers(0, 80, (3, 20)).astype(np.int32)
SIZES = {"vocab_size": 80, "bos_token_id": None, "eos_token_id": None}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip


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
            "initializer_range": 0.15, **SIZES, **options,
        }  # fmt: skip
        if kind == "qwen2":
            model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings))
        else:
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
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
        ("llama", {"rope_parameters": LINEAR, "attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3, "head_dim": 12, "mlp_bias": True}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"rope_parameters": LLAMA3, "head_dim": 12}),
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
    assert type(reloaded) is type(expected_model)
    np.testing.assert_array_equal(logits(reloaded, IDS), logits(expected_model, IDS))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small", {}),
        ("llama", {}),
        ("llama", {"attention_bias": "qkv", "rotary_scaling": {"type": "linear", "factor": 4.0}}),
    ],
)
def test_save_writes_a_huggingface_model(name: str, options: dict, tmp_path: Path) -> None:
    arguments = {**CONFIGURATIONS[name], "vocabulary_size": 80, "num_layers": 2, "seed": 5}
    model = gpt(**{**arguments, **options})
    huggingface.save(model, tmp_path)
    expected_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in expected_model.parameters()) == model.count_params()
    np.testing.assert_allclose(
        logits(expected_model, IDS), ops.convert_to_numpy(model(IDS)), atol=1e-5
    )


# ------------------------------------------------------------------ folders as people have them


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500.0},
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
        {"rope_theta": 500.0, "head_dim": None, "hidden_act": "swish"},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
def test_load_reads_settings_of_older_versions(changes: dict, tmp_path: Path) -> None:
    original = make_huggingface_model("llama")
    original.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    if changes.get("rope_scaling", {}).get("original_max_position_embeddings", 0) is None:
        del changes["rope_scaling"]["original_max_position_embeddings"]
    path.write_text(json.dumps(config | changes))
    edited = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = logits(edited, IDS)
    model = huggingface.load(tmp_path)
    np.testing.assert_allclose(ops.convert_to_numpy(model(IDS)), expected, atol=1e-4)
    assert np.abs(expected - logits(original, IDS)).max() > 0.05 or "rope_scaling" not in changes


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_load_accepts_all_settings_of_a_configuration(kind: str, tmp_path: Path) -> None:
    """`save_pretrained` writes what differs from the defaults; older versions wrote all."""
    expected_model = make_huggingface_model(kind)
    expected_model.save_pretrained(tmp_path)
    config = json.loads(expected_model.config.to_json_string(use_diff=False))
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = huggingface.load(tmp_path)
    expected = logits(expected_model, IDS)
    np.testing.assert_allclose(ops.convert_to_numpy(model(IDS)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_load_reads_base_models_and_divided_weights(kind: str, tmp_path: Path) -> None:
    expected_model = make_huggingface_model(kind, tie_word_embeddings=True)
    expected = logits(expected_model, IDS)
    expected_model.base_model.save_pretrained(tmp_path / "base")
    expected_model.to(torch.bfloat16).save_pretrained(tmp_path / "divided", max_shard_size="20KB")
    assert len(list((tmp_path / "divided").glob("*.safetensors"))) > 2
    model = huggingface.load(tmp_path / "base")
    np.testing.assert_allclose(ops.convert_to_numpy(model(IDS)), expected, atol=1e-4)
    model = huggingface.load(tmp_path / "divided")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "divided", dtype=torch.float32
    )
    expected = logits(reloaded.eval(), IDS)
    np.testing.assert_allclose(ops.convert_to_numpy(model(IDS)), expected, atol=1e-4)


def test_load_rejects_other_heads(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=2, **SIZES)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"score.weight is unknown"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize("name", GPT2_ACTIVATIONS)
def test_activations_equal_those_of_the_same_name(name: str) -> None:
    x = np.linspace(-6, 6, 201, dtype=np.float32)
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    outputs = ACTIVATIONS[GPT2_ACTIVATIONS[name]](ops.convert_to_tensor(x))
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, atol=1e-6)


def test_load_reads_generation_settings(tmp_path: Path) -> None:
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}
    config = transformers.GenerationConfig(do_sample=True, eos_token_id=[1, 2], **settings)
    config.save_pretrained(tmp_path)
    options = huggingface.load_generation_options(tmp_path)
    assert options == {"stop_tokens": [1, 2], **settings}


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_gives_the_same_tokens(penalty: float, tmp_path: Path) -> None:
    expected_model = make_huggingface_model("llama")
    expected_model.save_pretrained(tmp_path)
    prompts = torch.from_numpy(IDS[:, :8]).long()
    options = {"do_sample": False, "max_new_tokens": 64, "pad_token_id": 0}
    mask = torch.ones_like(prompts)
    with torch.no_grad():
        plain, expected = (
            expected_model.generate(prompts, attention_mask=mask, **options, **penalties)
            for penalties in ({}, {"repetition_penalty": penalty})
        )
    assert not torch.equal(plain, expected)
    model = huggingface.load(tmp_path)
    tokens = generate(model, list(IDS[:, :8]), 64, temperature=0.0, repetition_penalty=penalty)
    np.testing.assert_array_equal(tokens, expected[:, 8:].numpy())


def test_readme_code_completes_a_text_as_huggingface_does(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["to be or not to be"], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    model = make_huggingface_model("llama", vocab_size=len(fast))
    for saved in (fast, model):
        saved.save_pretrained(tmp_path)
    encoded = fast("be or not", return_tensors="pt", return_token_type_ids=False)
    greedy = model.generate(**encoded, do_sample=False, max_new_tokens=50, pad_token_id=0)
    expected = greedy[0, encoded.input_ids.shape[1] :].tolist()
    assert len(set(expected)) > 5

    guide = Path(__file__).parents[2] / "docs" / "guides" / "weights-from-elsewhere.md"
    (code,) = re.findall(
        r"```python\n([^`]*?def complete.*?)```", guide.read_text("utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {"huggingface": huggingface}  # of the block before
    exec(compile(code, guide.name, "exec"), names)
    assert names["complete"](tmp_path, "be or not") == tokenizer.decode(expected)
