"""Conversion of GPT-2 and Llama models from and to Hugging Face's `save_pretrained` format.

    model = zoo.interop.huggingface.load("folder")      # config.json, model.safetensors
    zoo.interop.huggingface.save(model, "folder")       # AutoModelForCausalLM loads it

A Llama has RMSNorm, rotary positions, SwiGLU, grouped queries and no biases. The weights differ in
two ways:

- A dense kernel is (inputs, outputs) in the zoo and in Hugging Face's GPT-2, but (outputs, inputs)
  in Hugging Face's Llama.
- Hugging Face's GPT-2 concatenates the kernels of query, key and value.
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

# Names of Hugging Face and of the zoo.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of Hugging Face and the zoo's variables that are concatenated in the tensor.

    Attributes:
        name: Name of the tensor.
        variables: Variables of the zoo's model.
        transposed: Whether the tensor is the transpose of the concatenated variables.
    """

    name: str
    variables: tuple[Any, ...]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.to_tensor([np.empty(v.shape, np.bool_) for v in self.variables]).shape

    def to_tensor(self, arrays: list[np.ndarray]) -> np.ndarray:
        array = np.concatenate(arrays, axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array)

    def to_variables(self, array: np.ndarray) -> list[np.ndarray]:
        array = array.T if self.transposed else array
        widths = np.cumsum([v.shape[-1] for v in self.variables])[:-1]
        return [np.ascontiguousarray(part) for part in np.split(array, widths, axis=-1)]


def load(folder: str | os.PathLike[str], dtype: str | None = None) -> keras.Model:
    """Loads a GPT-2 or a Llama as a `zoo.gpt`.

    Args:
        folder: Directory with the `config.json` and the `model.safetensors` of the model.
        dtype: Dtype or dtype policy of the model; by default Keras' global policy.

    Returns:
        The model with the weights of the file.

    Raises:
        ValueError: If the folder holds another architecture or a setting that `zoo.gpt` does not
            support, or if a tensor is missing, unknown or of another shape; the text names each.
        OSError: If a file cannot be read.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    model_type = _model_type(config)
    arguments = _gpt2_arguments(config) if model_type == "gpt2" else _llama_arguments(config)
    model = gpt(**arguments, dtype=dtype)
    try:
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`folder` must hold an undamaged model.safetensors. Received: {folder} ({error})"
        ) from error
    # Some files lack the prefix; some also hold the causal mask or the tied output.
    prefixes = "transformer.", "model.", "lm_head."
    arrays = {
        name if name.startswith(prefixes) else f"transformer.{name}": _as_numpy_dtype(array)
        for name, array in arrays.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))
    }
    tensors = list(_tensors(model, model_type))
    if _is_tied(model):
        arrays.pop("lm_head.weight", None)
    mismatches = find_mismatches(arrays, {tensor.name: tensor.shape for tensor in tensors})
    if mismatches:
        raise ValueError(f"`folder` {folder} does not fit its config.json: {'; '.join(mismatches)}")
    for tensor in tensors:
        for variable, array in zip(tensor.variables, tensor.to_variables(arrays[tensor.name])):
            variable.assign(array)
    return model


def _as_numpy_dtype(array: np.ndarray) -> np.ndarray:
    """Converts bfloat16, which NumPy itself lacks, to float32."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def save(model: keras.Model, folder: str | os.PathLike[str]) -> None:
    """Saves a `zoo.gpt` as a GPT-2 or a Llama, depending on its blocks, in float32.

    Args:
        model: Model of GPT-2's or Llama's architecture.
        folder: Directory to write to; created if missing.

    Raises:
        ValueError: If the model has neither architecture; the text lists the requirements of both.
    """
    folder = Path(folder)
    config = _config_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        tensor.name: tensor.to_tensor(
            [np.asarray(keras.ops.convert_to_numpy(v.value), np.float32) for v in tensor.variables]
        )
        for tensor in _tensors(model, config["model_type"])
    }
    with atomic_write(folder / "model.safetensors") as file:
        file.write(safetensors.numpy.save(state, metadata={"format": "pt"}))
    with atomic_write(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


# ------------------------------------------------------------------ configurations


def _model_type(config: dict[str, Any]) -> str:
    model_type = config.get("model_type")
    if model_type not in ("gpt2", "llama"):
        raise ValueError(
            "`folder` must hold a GPT-2 or a Llama: its config.json must have the model_type gpt2 "
            f"or llama. Received: model_type={model_type}"
        )
    return str(model_type)


def _expect(config: dict[str, Any], **values: Any) -> None:
    """Raises ValueError if a setting differs from the only value that `zoo.gpt` supports."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"`folder` must hold a model with {name}={value}, all that `zoo.gpt` supports. "
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
        raise ValueError(f"`model` must be a `zoo.gpt`. Received: {model.name} without blocks")
    block = blocks[0].get_config()
    layer_types = {type(layer) for layer in model.layers}
    vocabulary_size, width = (int(size) for size in model.get_layer("embedding").embeddings.shape)
    learned = any(isinstance(x, Positions) and x.kind == "learned" for x in model.layers)
    activations = {zoo_name: name for name, zoo_name in _ACTIVATIONS.items()}
    common = {
        "vocab_size": vocabulary_size, "tie_word_embeddings": _is_tied(model),
        "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if (
        block["norm"] == "layer_norm"
        and learned
        and block["use_bias"]
        and block["activation"] in activations
        and block["num_kv_heads"] in (None, block["num_heads"])
    ):
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_positions": max_length(model), "n_embd": width, "n_layer": len(blocks),
            "n_head": block["num_heads"], "n_inner": block["intermediate_dim"],
            "activation_function": activations[block["activation"]],
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
        "`model` must have GPT-2's blocks (layer_norm, learned positions, biases, no grouped "
        "queries) or Llama's (rms_norm, rotary positions, swiglu, no biases). Received: "
        f"norm={block['norm']}, activation={block['activation']}, use_bias={block['use_bias']}, "
        f"learned positions={learned}, layers={sorted(t.__name__ for t in layer_types)}"
    )


# ------------------------------------------------------------------ weights


def _tensors(model: keras.Model, model_type: str) -> Iterator[_Tensor]:
    variables = {variable.path: variable for variable in model.trainable_variables}
    gpt2 = model_type == "gpt2"

    def tensor(name: str, *paths: str, transposed: bool = False) -> _Tensor:
        return _Tensor(name, tuple(variables[path] for path in paths), transposed)

    def dense(name: str, *layers: str) -> Iterator[_Tensor]:
        kernels = [f"{layer}/kernel" for layer in layers]
        yield tensor(f"{name}.weight", *kernels, transposed=not gpt2)
        if f"{layers[0]}/bias" in variables:
            yield tensor(f"{name}.bias", *(f"{layer}/bias" for layer in layers))

    def norm(name: str, layer: str) -> Iterator[_Tensor]:
        scale = "gamma" if f"{layer}/gamma" in variables else "scale"
        yield tensor(f"{name}.weight", f"{layer}/{scale}")
        if f"{layer}/beta" in variables:
            yield tensor(f"{name}.bias", f"{layer}/beta")

    prefix = "transformer" if gpt2 else "model"
    yield tensor(f"{prefix}.{'wte' if gpt2 else 'embed_tokens'}.weight", "embedding/embeddings")
    if gpt2:
        yield tensor("transformer.wpe.weight", "positions/table")
    for number, block in enumerate(_blocks(model)):
        path = block.name
        projections = [f"{path}/attention/{part}" for part in ("query", "key", "value")]
        if gpt2:
            name = f"transformer.h.{number}"
            yield from norm(f"{name}.ln_1", f"{path}/attention_norm")
            yield from dense(f"{name}.attn.c_attn", *projections)
            yield from dense(f"{name}.attn.c_proj", f"{path}/attention/output")
            yield from norm(f"{name}.ln_2", f"{path}/feed_forward_norm")
            yield from dense(f"{name}.mlp.c_fc", f"{path}/feed_forward/up")
            yield from dense(f"{name}.mlp.c_proj", f"{path}/feed_forward/down")
            continue
        name = f"model.layers.{number}"
        yield from norm(f"{name}.input_layernorm", f"{path}/attention_norm")
        for letter, layer_path in zip("qkv", projections):
            yield from dense(f"{name}.self_attn.{letter}_proj", layer_path)
        yield from dense(f"{name}.self_attn.o_proj", f"{path}/attention/output")
        yield from norm(f"{name}.post_attention_layernorm", f"{path}/feed_forward_norm")
        for part in ("gate", "up", "down"):
            yield from dense(f"{name}.mlp.{part}_proj", f"{path}/feed_forward/{part}")
    yield from norm(f"{prefix}.{'ln_f' if gpt2 else 'norm'}", "norm")
    if not _is_tied(model):
        # The output is a transposed linear layer in Hugging Face's GPT-2, too.
        yield tensor("lm_head.weight", "output/kernel", transposed=True)
