"""GPT-2 and Llama from and to the folders that Hugging Face's `save_pretrained` writes.

    model = zoo.interop.huggingface.load("folder")      # config.json, model.safetensors
    zoo.interop.huggingface.save(model, "folder")       # AutoModelForCausalLM loads it

A Llama is made of the modern block: RMSNorm, rotary positions, SwiGLU, grouped queries, no biases.
What differs in the weights:

- A dense kernel is (inputs, outputs) here and in GPT-2 there, (outputs, inputs) in Llama there.
- GPT-2 there has query, key and value in one kernel, side by side.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from zoo.generation.decoding import max_length
from zoo.layers.attention import Positions
from zoo.layers.transformer_block import TransformerBlock
from zoo.models.gpt import gpt
from zoo.training.checkpoints import atomic_write, find_mismatches

Arrays = dict[str, np.ndarray]

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu"}  # there and here


@dataclass(frozen=True)
class _Tensor:
    """A tensor there and the variables here that it holds side by side."""

    name: str
    variables: tuple[Any, ...]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.to_there([np.empty(v.shape, np.bool_) for v in self.variables]).shape

    def to_there(self, arrays: list[np.ndarray]) -> np.ndarray:
        array = np.concatenate(arrays, axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array)

    def to_here(self, array: np.ndarray) -> list[np.ndarray]:
        array = array.T if self.transposed else array
        widths = np.cumsum([v.shape[-1] for v in self.variables])[:-1]
        return [np.ascontiguousarray(part) for part in np.split(array, widths, axis=-1)]


def load(folder: str | os.PathLike[str], dtype: str | None = None) -> keras.Model:
    """Builds the `gpt` that a folder describes, with its weights.

    Args:
        folder: holds `config.json`, of a GPT-2 or a Llama, and `model.safetensors`.
        dtype: of the model, as for `zoo.gpt`.

    Raises:
        ValueError: if the folder holds another architecture or a setting that `zoo.gpt` has not,
            or if a tensor is missing, unknown or of another shape; the text names each.
        OSError: if there is no such file.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    kind = _kind_of(config)
    model = gpt(
        **(_gpt2_arguments(config) if kind == "gpt2" else _llama_arguments(config)), dtype=dtype
    )
    try:
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`folder` must hold a model.safetensors that is whole. Received: {folder} ({error})"
        ) from error
    # Some files leave out the prefix, some hold the causal mask or the tied output, too.
    prefixes = "transformer.", "model.", "lm_head."
    arrays = {
        name if name.startswith(prefixes) else f"transformer.{name}": _known(array)
        for name, array in arrays.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))
    }
    tensors = list(_tensors(model, kind))
    if _is_tied(model):
        arrays.pop("lm_head.weight", None)
    wrong = find_mismatches(arrays, {tensor.name: tensor.shape for tensor in tensors})
    if wrong:
        raise ValueError(f"`folder` {folder} does not fit its config.json: {'; '.join(wrong)}")
    for tensor in tensors:
        for variable, array in zip(tensor.variables, tensor.to_here(arrays[tensor.name])):
            variable.assign(array)
    return model


def _known(array: np.ndarray) -> np.ndarray:
    """NumPy itself has no bfloat16."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def save(model: keras.Model, folder: str | os.PathLike[str]) -> None:
    """Writes a `gpt` as GPT-2 or, if it is made of the modern block, as Llama; float32.

    Raises:
        ValueError: if it is neither; the text says what both want.
    """
    folder = Path(folder)
    config = _config_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        tensor.name: tensor.to_there(
            [np.asarray(keras.ops.convert_to_numpy(v.value), np.float32) for v in tensor.variables]
        )
        for tensor in _tensors(model, config["model_type"])
    }
    with atomic_write(folder / "model.safetensors") as file:
        file.write(safetensors.numpy.save(state, metadata={"format": "pt"}))
    with atomic_write(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


# ------------------------------------------------------------------ configurations


def _kind_of(config: dict[str, Any]) -> str:
    kind = config.get("model_type")
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            "`folder` must hold a GPT-2 or a Llama: its config.json must have the model_type gpt2 "
            f"or llama. Received: model_type={kind}"
        )
    return str(kind)


def _expect(config: dict[str, Any], **values: Any) -> None:
    """Raises ValueError where a setting is not what the zoo's model does."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"`folder` must hold a model with {name}={value}, the only kind `zoo.gpt` is. "
                f"Received: {name}={config[name]}"
            )


def _gpt2_arguments(config: dict[str, Any]) -> dict[str, Any]:
    _expect(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            "`folder` must hold a model with activation_function one of "
            f"{', '.join(_ACTIVATIONS)}. Received: activation_function={activation}"
        )
    return {
        "vocabulary_size": config["vocab_size"],
        "max_length": config["n_positions"],
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "hidden_dim": config["n_embd"],
        "intermediate_dim": config.get("n_inner") or 4 * config["n_embd"],
        "activation": _ACTIVATIONS[activation],
        "epsilon": config.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


def _llama_arguments(config: dict[str, Any]) -> dict[str, Any]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    _expect(
        config, hidden_act="silu", attention_bias=False, mlp_bias=False, head_dim=width // heads
    )
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _expect(rotary, rope_type="default")
    return {
        "vocabulary_size": config["vocab_size"],
        "max_length": config["max_position_embeddings"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "hidden_dim": width,
        "intermediate_dim": config["intermediate_size"],
        "activation": "swiglu",
        "norm": "rms_norm",
        "positions": "rotary",
        "rotary_base": rotary.get("rope_theta") or config.get("rope_theta", 10000.0),
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "use_bias": False,
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }


def _blocks(model: keras.Model) -> list[TransformerBlock]:
    return [layer for layer in model.layers if isinstance(layer, TransformerBlock)]


def _is_tied(model: keras.Model) -> bool:
    return not any(layer.name == "output" for layer in model.layers)


def _config_of(model: keras.Model) -> dict[str, Any]:
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(f"`model` must be a `zoo.gpt`. Received: {model.name} without its blocks")
    block = blocks[0].get_config()
    kinds = {type(layer) for layer in model.layers}
    vocabulary_size, width = (int(size) for size in model.get_layer("embedding").embeddings.shape)
    learned = any(isinstance(x, Positions) and x.kind == "learned" for x in model.layers)
    names = {here: there for there, here in _ACTIVATIONS.items()}
    common = {
        "vocab_size": vocabulary_size, "tie_word_embeddings": _is_tied(model),
        "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if (
        block["norm"] == "layer_norm"
        and learned
        and block["use_bias"]
        and block["activation"] in names
        and block["num_kv_heads"] in (None, block["num_heads"])
    ):
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_positions": max_length(model), "n_embd": width, "n_layer": len(blocks),
            "n_head": block["num_heads"], "n_inner": block["intermediate_dim"],
            "activation_function": names[block["activation"]],
            "layer_norm_epsilon": block["epsilon"], **common,
        }  # fmt: skip
    if (
        block["norm"] == "rms_norm"
        and block["rotary_base"]
        and block["activation"] == "swiglu"
        and not block["use_bias"]
    ):
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": max_length(model), "hidden_size": width,
            "intermediate_size": block["intermediate_dim"], "num_hidden_layers": len(blocks),
            "num_attention_heads": block["num_heads"],
            "num_key_value_heads": block["num_kv_heads"] or block["num_heads"],
            "hidden_act": "silu", "rms_norm_eps": block["epsilon"],
            "rope_theta": block["rotary_base"], **common,
        }  # fmt: skip
    raise ValueError(
        "`model` must be made of GPT-2's block (layer_norm, learned positions, biases, no shared "
        "keys) or of Llama's (rms_norm, rotary positions, swiglu, no biases). Received: "
        f"norm={block['norm']}, activation={block['activation']}, use_bias={block['use_bias']}, "
        f"learned positions={learned}, layers={sorted(kind.__name__ for kind in kinds)}"
    )


# ------------------------------------------------------------------ weights


def _tensors(model: keras.Model, kind: str) -> Iterator[_Tensor]:
    found = {variable.path: variable for variable in model.trainable_variables}

    def tensor(name: str, *paths: str, transposed: bool = False) -> _Tensor:
        return _Tensor(name, tuple(found[path] for path in paths), transposed)

    def dense(name: str, *layers: str) -> Iterator[_Tensor]:
        kernels = [f"{layer}/kernel" for layer in layers]
        yield tensor(f"{name}.weight", *kernels, transposed=kind == "llama")
        if f"{layers[0]}/bias" in found:
            yield tensor(f"{name}.bias", *(f"{layer}/bias" for layer in layers))

    def norm(name: str, layer: str) -> Iterator[_Tensor]:
        scale = "gamma" if f"{layer}/gamma" in found else "scale"
        yield tensor(f"{name}.weight", f"{layer}/{scale}")
        if f"{layer}/beta" in found:
            yield tensor(f"{name}.bias", f"{layer}/beta")

    gpt2 = kind == "gpt2"
    prefix = "transformer" if gpt2 else "model"
    yield tensor(f"{prefix}.{'wte' if gpt2 else 'embed_tokens'}.weight", "embedding/embeddings")
    if gpt2:
        yield tensor("transformer.wpe.weight", "positions/table")
    for number, block in enumerate(_blocks(model)):
        here = block.name
        parts = [f"{here}/attention/{part}" for part in ("query", "key", "value")]
        if gpt2:
            there = f"transformer.h.{number}"
            yield from norm(f"{there}.ln_1", f"{here}/attention_norm")
            yield from dense(f"{there}.attn.c_attn", *parts)
            yield from dense(f"{there}.attn.c_proj", f"{here}/attention/output")
            yield from norm(f"{there}.ln_2", f"{here}/feed_forward_norm")
            yield from dense(f"{there}.mlp.c_fc", f"{here}/feed_forward/up")
            yield from dense(f"{there}.mlp.c_proj", f"{here}/feed_forward/down")
            continue
        there = f"model.layers.{number}"
        yield from norm(f"{there}.input_layernorm", f"{here}/attention_norm")
        for letter, part in zip("qkv", parts):
            yield from dense(f"{there}.self_attn.{letter}_proj", part)
        yield from dense(f"{there}.self_attn.o_proj", f"{here}/attention/output")
        yield from norm(f"{there}.post_attention_layernorm", f"{here}/feed_forward_norm")
        for part in ("gate", "up", "down"):
            yield from dense(f"{there}.mlp.{part}_proj", f"{here}/feed_forward/{part}")
    yield from norm(f"{prefix}.{'ln_f' if gpt2 else 'norm'}", "norm")
    if not _is_tied(model):
        # There a linear layer in both.
        yield tensor("lm_head.weight", "output/kernel", transposed=True)
