"""Folders in Hugging Face's format. tests/oracles compares the models with Hugging Face's own."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tokenizers
from keras import ops
from safetensors.numpy import load_file, save_file

from zoo import gpt, mlp
from zoo.generation.sampling import generate
from zoo.interop import huggingface
from zoo.models.gpt import CONFIGURATIONS

SIZES = {"vocabulary_size": 40, "num_layers": 2, "hidden_dim": 16}
IDS = np.array([[3, 1, 4, 1, 5, 9]], np.int32)
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"num_heads": 2},
    "llama": CONFIGURATIONS["llama"],
    "qwen2": {
        **CONFIGURATIONS["llama"], "attention_bias": "qkv", "head_dim": 6,
        "rotary_scaling": {"type": "linear", "factor": 2.0},
    },
}  # fmt: skip

Settings = dict[str, Any]
State = dict[str, np.ndarray]


def small_model(kind: str, **options: Any) -> keras.Model:
    return gpt(**{**KINDS[kind], **SIZES, "seed": 1, **options})


@pytest.fixture(scope="module")
def saved_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        huggingface.save(small_model(kind), root / kind)
    return root


@pytest.fixture
def copy_of(saved_folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(saved_folders / kind, tmp_path / kind))

    return copy


@pytest.fixture
def folder(copy_of: Callable[[str], Path]) -> Path:
    return copy_of("gpt2")


@pytest.fixture
def llama(copy_of: Callable[[str], Path]) -> Path:
    return copy_of("llama")


def edit_config(folder: Path, name: str = "config.json", **settings: Any) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **settings}))


def edit_weights(folder: Path, edit: Callable[[State], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    state = edit(state) or state
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, folder / "model.safetensors")


def assert_equal_weights(model: keras.Model, other: keras.Model) -> None:
    assert [v.path for v in model.weights] == [v.path for v in other.weights]
    for a, b in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)


def block_config(model: keras.Model) -> dict[str, Any]:
    return model.get_layer("block2").get_config()


@pytest.mark.parametrize("kind", KINDS)
def test_load_restores_saved_model(kind: str, tmp_path: Path) -> None:
    model = small_model(kind, tie_embeddings=kind == "llama")
    huggingface.save(model, tmp_path)
    loaded = huggingface.load(tmp_path)
    assert_equal_weights(loaded, model)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded(IDS)), ops.convert_to_numpy(model(IDS))
    )


# ------------------------------------------------------------------ settings


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "scaling", "base"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"type": "linear", "factor": 2}, 10000),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 3.5}},
            {"type": "linear", "factor": 3.5}, 10000,
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {
                "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_length": 32,
            },
            5e5,
        ),
        (
            {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": None}},
            {
                "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_length": 64,
            },
            10000,
        ),
        (
            {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            None, 500,
        ),
        ({"rope_scaling": {}}, None, 10000),
    ],
)  # fmt: skip
def test_load_honours_rotary_settings(
    llama: Path, settings: Settings, scaling: Settings | None, base: float
) -> None:
    edit_config(llama, **settings)
    config = block_config(huggingface.load(llama))
    assert (config["rotary_scaling"], config["rotary_base"]) == (scaling, base)


@pytest.mark.once
def test_load_honours_aliases_and_defaults(folder: Path, llama: Path, saved_folders: Path) -> None:
    """A missing key has Hugging Face's default; an unknown key that is null sets nothing."""
    config = json.loads((folder / "config.json").read_text())
    aliases = {
        "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }  # fmt: skip
    config = {aliases.get(name, name): value for name, value in config.items()}
    for name in ("n_inner", "activation_function", "layer_norm_epsilon", "tie_word_embeddings"):
        del config[name]
    changes = {
        "activation_function": "gelu_pytorch_tanh", "logits_soft_cap": None, "n_ctx": 5,
        # as of distilgpt2 and other files of old versions
        "_num_labels": 1, "output_past": True, "predict_special_tokens": True, "xla_device": None,
        "n_special": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    loaded, original = huggingface.load(folder), huggingface.load(saved_folders / "gpt2")
    assert_equal_weights(loaded, original)
    assert block_config(loaded) == block_config(original)

    edit_config(
        llama, hidden_act="swish", head_dim=None, attention_dropout=0.1, transformers_version="4.0",
        eos_token_id=[2, 3], unknown=None, rope_scaling=None,
    )  # fmt: skip
    loaded, original = huggingface.load(llama), huggingface.load(saved_folders / "llama")
    assert_equal_weights(loaded, original)
    assert block_config(loaded) == block_config(original)


@pytest.mark.once
def test_load_honours_biases(llama: Path, saved_folders: Path) -> None:
    """Biases that are not stored are zero, as in Hugging Face's model."""
    edit_config(llama, attention_bias=True, mlp_bias=True)
    assert_equal_weights(huggingface.load(llama), huggingface.load(saved_folders / "llama"))
    edit_config(llama, attention_bias=False, mlp_bias=False)
    biases: State = {}
    for part, width in (("q", 16), ("k", 8), ("v", 8), ("o", 16)):
        for i in range(2):
            biases[f"model.layers.{i}.self_attn.{part}_proj.bias"] = np.full(width, i + 0.5, "f4")
    edit_weights(llama, lambda state: state | biases)
    with pytest.raises(ValueError, match=r"layers.0.self_attn.k_proj.bias is unknown"):
        huggingface.load(llama)
    edit_config(llama, attention_bias=True)
    model = huggingface.load(llama)
    bias = model.get_layer("block2").attention.output_projection.bias
    np.testing.assert_array_equal(ops.convert_to_numpy(bias), np.full(16, 1.5))
    assert not model.get_layer("block2").feed_forward.down.use_bias
    edit_weights(llama, lambda state: {k: v for k, v in state.items() if "o_proj.bias" not in k})
    assert block_config(huggingface.load(llama))["attention_bias"] == "qkv"
    edit_weights(
        llama, lambda state: state | {"model.layers.0.mlp.down_proj.bias": np.ones(16, np.float32)}
    )
    edit_config(llama, mlp_bias=True)
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate_proj.bias is missing"):
        huggingface.load(llama)


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"model_type": "bert"},
            "`model_type` must be one of gpt2, llama, qwen2. Received: 'bert'",
        ),
        ({"model_type": None}, "`model_type` must be one of gpt2, llama, qwen2. Received: None"),
        ({"activation_function": "silu"}, "`activation_function` must be 'gelu_new'.*: 'silu'"),
        ({"scale_attn_weights": False}, "`scale_attn_weights` must be True. Received: False"),
        ({"add_cross_attention": True}, "`add_cross_attention` must be False. Received: .*=True"),
        ({"logits_soft_cap": 30.0}, "`logits_soft_cap` must not be given.*Received: 30.0"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` must not .*'bits': 4"),
        ({"line\nbreak": 1}, r"`line\\nbreak` must not be given.*Received: 1"),
        ({"auto_map": {"AutoModel": "a.B"}}, "`auto_map` must not be given.*Received: .*a.B"),
        ({"n_layer": 10**7}, "`n_layer` must be less than or equal to 1000. Received: 10000000"),
        ({"n_layer": 0}, "`n_layer` must be greater than or equal to 1. Received: 0"),
        ({"n_layer": True}, "`n_layer` must be a valid integer. Received: True"),
        ({"n_embd": "16"}, "`n_embd` must be a valid integer. Received: '16'"),
        ({"n_embd": 15}, "`n_embd` must be divisible by `n_head`. Received: n_embd=15, n_head=2"),
        ({"vocab_size": 10**12}, "`vocab_size` must be less than.*Received: 1000000000000"),
        ({"n_positions": 10**9}, "`n_positions` must be less than.*Received: 1000000000"),
        (
            {"hidden_size": 16},
            "`hidden_size` must not be given beside its other name. Received: 16",
        ),
        ({"layer_norm_epsilon": 0}, "`layer_norm_epsilon` must be greater than 0. Received: 0"),
        ({"tie_word_embeddings": None}, "`tie_word_embeddings` must be a valid boolean.*: None"),
        ({"n_positions": 5}, r"wpe.weight has shape \(64, 16\) instead of \(5, 16\). Use the conf"),
        ({"n_layer": 3}, "transformer.h.2.ln_1.weight is missing;.* and 7 more"),
        ({"n_layer": 1}, "transformer.h.1.attn.c_attn.bias is unknown"),
    ],
)
def test_load_rejects_unsupported_or_mismatched_gpt2(
    folder: Path, settings: Settings, text: str
) -> None:
    edit_config(folder, **settings)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=text) as caught:
        huggingface.load(folder)
    assert time.perf_counter() - start < 5
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "config.json: `rope_scaling.rope_type` must be 'default', 'linear' or 'llama3'. "
            "Received: 'yarn'",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "Received: 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "Received: 'longrope'"),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling: `factor` must be given with the rope",
        ),
        (
            {"rope_scaling": {"factor": 2.0}},
            "`factor` must not be given with the rope_type default",
        ),
        ({"rope_scaling": {**LLAMA3, "type": "linear"}}, "`rope_type` must equal its older name"),
        ({"rope_scaling": {**LLAMA3, "slope": 2}}, "rope_scaling: `slope` must not be given"),
        (
            {"rope_scaling": {**LLAMA3, "factor": 0.5}},
            "`rope_scaling.factor` must be .* 1. Rec.*0.5",
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "must be below `high_freq_factor`"),
        ({"rope_scaling": {"type": "linear", "factor": 1e999}}, "must be valid JSON"),
        ({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3}, "not be given beside its newer name"),
        ({"rope_scaling": [2.0]}, "`rope_scaling` must be .*Received: .*2.0"),
        ({"rope_theta": 0.0}, "`rope_theta` must be greater than 0. Received: 0.0"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` must be 1.0. Received: .*=0.5"),
        ({"hidden_act": "gelu"}, "`hidden_act` must be 'silu' or 'swish'. Received: 'gelu'"),
        ({"num_key_value_heads": 3}, "divisible by `num_key_value_heads`. Received: .*heads=3"),
        ({"head_dim": 7}, "`head_dim` must be even. Received: head_dim=7"),
        (
            {"head_dim": None, "num_attention_heads": 6},
            "must be divisible by `num_attention_heads`",
        ),
        ({"head_dim": 6}, r"q_proj.weight has shape \(16, 16\) instead of \(24, 16\)"),
        ({"model_type": "qwen2", "attention_bias": False}, "`attention_bias` must not be given"),
    ],
)
def test_load_rejects_unsupported_llama(llama: Path, settings: Settings, text: str) -> None:
    edit_config(llama, **settings)
    with pytest.raises(ValueError, match=text):
        huggingface.load(llama)


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"use_sliding_window": True}, "`use_sliding_window` must be False. Received: .*=True"),
        (
            {"layer_types": ["sliding_attention"]},
            "`layer_types` must be 'full_attention'.*'sliding_",
        ),
    ],
)
def test_load_rejects_sliding_windows(
    copy_of: Callable[[str], Path], settings: Settings, text: str
) -> None:
    folder = copy_of("qwen2")
    unused = {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1}
    edit_config(folder, **unused, layer_types=["full_attention"] * 2)
    huggingface.load(folder)
    edit_config(folder, **settings)
    with pytest.raises(ValueError, match=text):
        huggingface.load(folder)


@pytest.mark.once
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "must be valid JSON. Received: an empty file"),
        (b'{"model_type": "gpt2"', "must be valid JSON. Received: Expecting"),
        (b'{"model_type": NaN}', "must be valid JSON. Received: NaN, which is no number"),
        (b"\xff\xfe", "must be UTF-8. Received: the byte 0xff at offset 0"),
        (b'{"a": ' * 10**5, "must not be nested so deeply"),
        (b"[1]", ": `content` must be an object"),
        (b" " * (2**24 + 1), "must have at most 16,777,216 bytes. Received: 16,777,217"),
    ],
)
def test_load_rejects_malformed_json(folder: Path, content: bytes, text: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json ?{text}"):
        huggingface.load(folder)


@pytest.mark.once
def test_load_rejects_missing_or_special_files(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`folder` must be a directory. Received: .*hf download"):
        huggingface.load(folder / "gpt2")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json must be a file. Received: nothing"):
        huggingface.load(folder)
    if hasattr(os, "mkfifo"):  # reading it would wait for ever
        os.mkfifo(folder / "config.json")
        with pytest.raises(ValueError, match=r"config.json must be a file"):
            huggingface.load(folder)


# ------------------------------------------------------------------ weights


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_load_accepts_base_models(
    kind: str, copy_of: Callable[[str], Path], saved_folders: Path, tmp_path: Path
) -> None:
    """OpenAI's files, and those of GPT2Model and LlamaModel, have no prefix and no output layer."""
    huggingface.save(small_model(kind, tie_embeddings=True), tmp_path / "tied")
    original = huggingface.load(tmp_path / "tied")

    def to_base_model(state: State) -> State:
        state = {re.sub(r"^(transformer|model)\.", "", k): v for k, v in state.items()}
        if kind == "gpt2":
            return state | {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32)}
        return state | {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}

    edit_weights(tmp_path / "tied", to_base_model)
    assert_equal_weights(huggingface.load(tmp_path / "tied"), original)


@pytest.mark.once
def test_load_ties_the_output_layer(folder: Path, saved_folders: Path) -> None:
    """A tied file may hold the embedding under its own name, under the output's, or under both."""
    embedding = "transformer.wte.weight"
    original = huggingface.load(saved_folders / "gpt2")
    edit_weights(folder, lambda state: state | {"lm_head.weight": state[embedding].copy()})
    assert_equal_weights(huggingface.load(folder), original)
    edit_weights(folder, lambda state: {k: v for k, v in state.items() if k != embedding})
    assert_equal_weights(huggingface.load(folder), original)
    edit_weights(folder, lambda state: state | {embedding: state["lm_head.weight"] + 1})
    with pytest.raises(
        ValueError, match=r"`lm_head.weight` must equal .*Set tie_word_embeddings to"
    ):
        huggingface.load(folder)
    edit_config(folder, tie_word_embeddings=False)
    output = huggingface.load(folder).get_layer("output").kernel
    expected = original.get_layer("embedding").get_weights()[0].T
    np.testing.assert_array_equal(ops.convert_to_numpy(output), expected)


@pytest.mark.once
def test_load_rejects_an_untied_model_without_output_layer(llama: Path) -> None:
    edit_weights(llama, lambda state: {k: v for k, v in state.items() if k != "lm_head.weight"})
    with pytest.raises(
        ValueError, match=r"lm_head.weight is missing. The folder holds a base model"
    ):
        huggingface.load(llama)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_load_converts_other_floats(folder: Path, dtype: str) -> None:
    name = "transformer.wte.weight"
    exact = load_file(folder / "model.safetensors")[name]
    import ml_dtypes  # Keras' own requirement; registers bfloat16

    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    edit_weights(folder, lambda state: {k: v.astype(target) for k, v in state.items()})
    embeddings = huggingface.load(folder).get_layer("embedding").embeddings
    expected = exact.astype(target).astype(np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(embeddings), expected)


@pytest.mark.once
@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (
            lambda a: a.astype(np.int8),
            "h.1.mlp.c_fc.weight is of type I8 instead of F16, BF16, F32",
        ),
        (
            lambda a: np.where(a == a[3, 2], np.nan, a),
            r"c_fc.weight` must be finite.* nan at \(3, 2\)",
        ),
        (
            lambda a: a * np.float32(np.inf),
            r"c_fc.weight` must be finite.*inf at \(0, 0\). The weigh",
        ),
        (lambda a: a.T, r"h.1.mlp.c_fc.weight has shape \(64, 16\) instead of \(16, 64\)"),
    ],
)
def test_load_rejects_unusable_tensors(
    folder: Path, edit: Callable[[np.ndarray], np.ndarray], text: str
) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    edit_weights(folder, lambda state: state | {name: edit(state[name])})
    with pytest.raises(ValueError, match=text):
        huggingface.load(folder)


@pytest.mark.once
@pytest.mark.parametrize(
    ("array_dtype", "value", "dtype", "text"),
    [
        (
            "float64",
            1e300,
            None,
            r"holds numbers from 1e\+300 to 1e\+300, outside the range of float32",
        ),
        (
            "float32",
            -1e5,
            "float16",
            r"from -100000.0 to -100000.0, outside the range of float16. A `dtype`",
        ),
    ],
)
def test_load_rejects_numbers_outside_the_range_of_the_model(
    folder: Path, array_dtype: str, value: float, dtype: str | None, text: str
) -> None:
    name = "transformer.wpe.weight"
    edit_weights(
        folder, lambda state: state | {name: np.full(state[name].shape, value, array_dtype)}
    )
    with pytest.raises(ValueError, match=f"`{name}` must fit the model. Received: .*{text}"):
        huggingface.load(folder, dtype)


@pytest.mark.once
def test_load_rejects_damaged_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged in (content[:1000], b"", b"\xff" * 100, content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"an undamaged safetensors file. Received: .*Copy the"
        ):
            huggingface.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"must hold model.safetensors or .*Received: none of the"):
        huggingface.load(folder)


def divide(folder: Path) -> tuple[Path, Path]:
    """Divides the weights of a folder into two files with an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    paths = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    weight_map = {}
    for path, part in zip(paths, (names[:7], names[7:])):
        save_file({name: state[name] for name in part}, path)
        weight_map |= dict.fromkeys(part, path.name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return paths


@pytest.mark.once
def test_load_reads_divided_weights(llama: Path, saved_folders: Path) -> None:
    divide(llama)
    assert_equal_weights(huggingface.load(llama), huggingface.load(saved_folders / "llama"))


@pytest.mark.once
def test_load_rejects_faulty_index(llama: Path) -> None:
    _, second = divide(llama)
    index = llama / "model.safetensors.index.json"
    for file in ("../model.safetensors", "missing.safetensors", "config.json", "/etc/passwd"):
        content = json.loads(index.read_text())
        content["weight_map"]["lm_head.weight"] = file
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"index.json: `weight_map` must name .*: '{file}'"):
            huggingface.load(llama)
    content["weight_map"]["lm_head.weight"] = second.name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lists for it. Received: lm_head.weight in one"):
        huggingface.load(llama)
    second.unlink()
    with pytest.raises(
        ValueError, match=r"must name safetensors files in the folder. Received: 'mo"
    ):
        huggingface.load(llama)
    index.write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match=r"`weight_map` must have at least 1 item"):
        huggingface.load(llama)


@pytest.mark.once
@pytest.mark.skipif(keras.config.backend() != "torch", reason="the files are PyTorch's")
def test_load_rejects_pickles_with_a_command_that_converts_them(
    folder: Path, saved_folders: Path
) -> None:
    import torch

    state = {k: torch.tensor(v) for k, v in load_file(folder / "model.safetensors").items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]  # one storage
    names = sorted(state)
    for number, part in enumerate((names[:9], names[9:]), 1):
        torch.save({k: state[k] for k in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"pytorch_model-00001-of-00002.bin; .* can run code"
    ) as caught:
        huggingface.load(folder)
    _, command = str(caught.value).split("this command converts them: ")
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, cwd=folder, check=True, env={**os.environ, "PATH": paths})
    assert_equal_weights(huggingface.load(folder), huggingface.load(saved_folders / "gpt2"))


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_load_reports_damaged_bytes_in_one_line(
    kind: str, name: str, copy_of: Callable[[str], Path]
) -> None:
    """A folder with damaged settings or a damaged header either loads or is an error in words."""
    folder = copy_of(kind)
    content = (folder / name).read_bytes()
    end = len(content) if name == "config.json" else 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(50):
        damaged = bytearray(content)
        for position in generator.integers(0, end, 2).tolist():
            damaged[position : position + int(generator.integers(0, 3))] = generator.bytes(1)
        (folder / name).write_bytes(damaged)
        try:
            huggingface.load(folder)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 25
    for text in errors:
        assert text.startswith(str(folder))
        assert len(text.splitlines()) == 1


# ------------------------------------------------------------------ tokenizer and generation


@pytest.mark.once
def test_load_tokenizer(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.json must be a file.*save_pretrained"):
        huggingface.load_tokenizer(folder)
    vocabulary = {"<s>": 0, "to": 1, "be": 2, "or": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded = huggingface.load_tokenizer(folder)
    assert loaded.encode("to be or to").ids == [0, 1, 2, 3, 1]
    assert loaded.decode([2, 3]) == "be or"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"] = {}  # the library panics at the first text
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"must hold a tokenizer. Received: no entry found"):
        huggingface.load_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(
        ValueError, match=r"tokenizer.json must hold a tokenizer. Received: .*Model missing"
    ):
        huggingface.load_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer.json must hold a tokenizer. Received: .*EOF"):
        huggingface.load_tokenizer(folder)


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"stop_tokens": [], "temperature": 0.0}),
        ({"temperature": 0.6, "top_p": 0.9}, {"stop_tokens": [], "temperature": 0.0}),
        (  # settings of sampling, which is not used
            {"do_sample": False, "temperature": 0.0, "top_p": 0.0, "top_k": -1, "min_p": 0.1},
            {"stop_tokens": [], "temperature": 0.0},
        ),
        (  # as of Qwen2.5-Instruct
            {
                "bos_token_id": 1, "pad_token_id": 1, "do_sample": True, "eos_token_id": [2, 1],
                "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
                "transformers_version": "4.37.0",
            },
            {
                "stop_tokens": [2, 1], "temperature": 0.7, "top_k": 20, "top_p": 0.8,
                "repetition_penalty": 1.1,
            },
        ),
        (
            {"do_sample": True, "eos_token_id": 7, "max_length": 20, "repetition_penalty": 1.0},
            {"stop_tokens": [7], "temperature": 1.0, "top_k": 50},
        ),
        (
            {
                "do_sample": True,
                "eos_token_id": [7, 9],
                "temperature": 0.6,
                "top_k": 0,
                "top_p": 0.9,
            },
            {"stop_tokens": [7, 9], "temperature": 0.6, "top_p": 0.9},
        ),
    ],
)  # fmt: skip
def test_load_generation_options(folder: Path, settings: Settings, options: Settings) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert huggingface.load_generation_options(folder) == options


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"repetition_penalty": 0.0},
            "`repetition_penalty` must be .* 0.01. Received: 0.0. Remove",
        ),
        ({"do_sample": True, "min_p": 0.1}, "`min_p` must be 0.0. Received: min_p=0.1"),
        ({"do_sample": True, "temperature": 0.0}, "`temperature` must be greater than 0.*: 0.0"),
        ({"num_beams": 4}, "`num_beams` must be 1. Received: num_beams=4"),
        ({"stop_strings": ["a"]}, "`stop_strings` must not be given"),
        (
            {"do_sample": True, "top_p": 1.5},
            "`top_p` must be less than or equal to 1. Received: 1.5",
        ),
        ({"eos_token_id": "a"}, "`eos_token_id` must be a valid integer. Received: 'a'"),
    ],
)
def test_load_generation_options_rejects_unsupported_settings(
    folder: Path, settings: Settings, text: str
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"generation_config.json: {text}"):
        huggingface.load_generation_options(folder)


def test_loaded_model_generates_with_its_options(folder: Path) -> None:
    model = huggingface.load(folder)
    edit_config(folder, eos_token_id=None)
    greedy = huggingface.load_generation_options(folder)
    (tokens,) = generate(model, [[3, 1, 4]], 5, **greedy)
    assert len(tokens) == 5
    end = int(tokens[2])
    edit_config(folder, eos_token_id=end)
    (stopped,) = generate(model, [[3, 1, 4]], 5, **huggingface.load_generation_options(folder))
    assert stopped.tolist() == tokens[: tokens.tolist().index(end) + 1].tolist()


# ------------------------------------------------------------------ saving


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("gpt2", {"activation": "swiglu"}, "Received: norm=layer_norm, activation=swiglu"),
        ("gpt2", {"head_dim": 6}, "no `head_dim` of its own.*head_dim=6"),
        ("gpt2", {"attention_bias": False}, "attention_bias=False"),
        ("llama", {"num_heads": 6, "num_kv_heads": 2, "head_dim": 4}, "divides `hidden_dim`"),
        ("qwen2", {"use_bias": True}, "use_bias=True, attention_bias=qkv"),
    ],
)
def test_save_rejects_other_architectures(
    kind: str, options: Settings, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        huggingface.save(small_model(kind, **options), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.once
def test_save_rejects_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = small_model("gpt2")
    model.get_layer("block1").feed_forward.up.bias.assign(np.full(64, np.nan))
    with pytest.raises(ValueError, match=r"infinity in block1/feed_forward/up/bias"):
        huggingface.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.once
def test_save_rejects_models_without_blocks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a `zoo.gpt`. Received: mlp"):
        huggingface.save(mlp(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
