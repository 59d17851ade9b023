"""Conversion of GPT-2, Llama and Qwen2 from and to Hugging Face's `save_pretrained` format.

    model = zoo.interop.huggingface.load("folder")      # config.json, model.safetensors
    zoo.interop.huggingface.save(model, "folder")       # AutoModelForCausalLM loads it

A Llama has RMSNorm, rotary positions, SwiGLU, grouped queries and, by default, no biases. A Qwen2
has biases of the queries, keys and values. A folder loads if each of its settings is one that
`zoo.gpt` computes, so that the logits are Hugging Face's; see
`zoo.interop.huggingface_schema`. Nothing in a folder is run as code.
"""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy
import tokenizers

from zoo.files import documents
from zoo.files.arrays import cast_array
from zoo.generation.decoding import max_length
from zoo.interop.huggingface_config import (
    GPT2_ACTIVATIONS,
    GenerationSettings,
    GPT2Settings,
    LlamaSettings,
    ModelSettings,
    Qwen2Settings,
)
from zoo.interop.huggingface_schema import read_json, validate
from zoo.interop.huggingface_weights import (
    OUTPUT,
    WEIGHTS,
    check_tensors,
    stored_tensors,
    tensors,
)
from zoo.layers.attention import Positions
from zoo.layers.transformer_block import TransformerBlock
from zoo.models.gpt import gpt
from zoo.training.checkpoints import atomic_write
from zoo.validation import AnyPath, DType, validated

_SCHEMAS: dict[str, type[ModelSettings]] = {
    "gpt2": GPT2Settings, "llama": LlamaSettings, "qwen2": Qwen2Settings,
}  # fmt: skip
_MAX_TOKENIZER_BYTES = 2**28
_REMEDY = "`zoo.gpt` computes no other models; remove a key only if the weights do not depend on it"


@validated
def load(folder: AnyPath, dtype: DType | None = None) -> keras.Model:
    """Loads a GPT-2, a Llama or a Qwen2 as a `zoo.gpt`.

    Args:
        folder: Directory with a `config.json` and the weights: a `model.safetensors`, or several
            files with a `model.safetensors.index.json`.
        dtype: Dtype or dtype policy of the model; by default Keras' global policy.

    Returns:
        The model with the weights of the files.

    Raises:
        ValueError: If the folder holds another architecture or a setting that `zoo.gpt` does not
            compute; the text is one line with the file, the key, the rule and the value. Also if a
            tensor is missing, unknown, of another shape, quantized or not finite in the dtype.
        OSError: If a file cannot be read.
    """
    folder = _existing_folder(folder)
    settings = _read_settings(folder)
    model_type, arguments = settings.model_type, settings.arguments()
    stored = stored_tensors(folder, model_type)
    if model_type == "llama":
        arguments |= _stored_biases(stored, arguments)
    table = list(tensors(model_type, arguments))
    expected = {tensor.name: tensor.shape for tensor in table}
    embedding = table[0].name
    if arguments["tie_embeddings"] and OUTPUT in stored:
        if embedding in stored:
            expected[OUTPUT] = expected[embedding]
        else:
            stored[embedding] = stored.pop(OUTPUT)
    check_tensors(stored, expected, folder)
    if arguments["tie_embeddings"] and OUTPUT in stored:
        output = stored[OUTPUT]
        if not np.array_equal(output.read(), stored[embedding].read()):
            raise ValueError(
                f"{output.path}: `{OUTPUT}` must equal {embedding}, since tie_word_embeddings is "
                "true. Received: another array. Set tie_word_embeddings to false in config.json"
            )
    model = gpt(**arguments, dtype=dtype)
    variables = {variable.path: variable for variable in model.trainable_variables}
    for tensor in table:
        source = stored[tensor.name]
        for path, array in tensor.split(source.read()).items():
            try:
                value = cast_array(array, variables[path].dtype)
            except ValueError as error:
                raise ValueError(
                    f"{source.path}: `{source.name}` must fit the model. Received: an array that "
                    f"{error}. A `dtype` of a larger range can hold it"
                ) from error
            variables[path].assign(value)
    return model


@validated
def load_tokenizer(folder: AnyPath) -> tokenizers.Tokenizer:
    """Loads the tokenizer of a model.

    Args:
        folder: Directory with a `tokenizer.json`.

    Returns:
        A tokenizer of the `tokenizers` library: `encode(text).ids` are the token ids of a text, and
        `decode(ids)` is the text of token ids.

    Raises:
        ValueError: If there is no `tokenizer.json`, or the file is damaged.
        OSError: If the file cannot be read.
    """
    path = _existing_folder(folder) / "tokenizer.json"
    remedy = "AutoTokenizer.from_pretrained and save_pretrained of transformers write the file"
    content = documents.read_bytes(path, remedy, _MAX_TOKENIZER_BYTES)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
        tokenizer.encode("a")  # damage may show at the first text only
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no `Exception`
        raise ValueError(f"{path} must hold a tokenizer. Received: {error}. {remedy}") from error
    return tokenizer


@validated
def load_generation_options(folder: AnyPath) -> dict[str, Any]:
    """Loads how a model is meant to generate text.

    Args:
        folder: Directory with a `generation_config.json`. Without this file only the `eos_token_id`
            of the `config.json` is used.

    Returns:
        Keyword arguments of `zoo.generation.sampling.stream` and `generate`: `stop_tokens`,
        `temperature`, which is 0 unless the settings have `do_sample`, `top_k`, `top_p` and
        `repetition_penalty`.

    Raises:
        ValueError: If a setting is invalid or one that `stream` does not have; the text names it.
        OSError: If a file cannot be read.
    """
    folder = _existing_folder(folder)
    path = folder / "generation_config.json"
    if not path.exists():
        eos_token_id = _read_settings(folder).eos_token_id
        return GenerationSettings(eos_token_id=eos_token_id).options()
    remedy = "Remove the key to generate without it, or give `stream` your own options"
    return validate(read_json(path, remedy), GenerationSettings, path, remedy).options()


@validated
def save(model: keras.Model, folder: AnyPath) -> None:
    """Saves a `zoo.gpt` as a GPT-2, a Llama or a Qwen2, depending on its blocks, in float32.

    Args:
        model: Model of GPT-2's, Llama's or Qwen2's architecture.
        folder: Directory to write to; created if missing.

    Raises:
        ValueError: If the model has none of these architectures, or a weight is NaN or infinite.
            Then nothing is written.
    """
    folder = Path(folder)
    config = _config_of(model)
    model_type = config["model_type"]
    settings = validate(config, _SCHEMAS[model_type], folder / "config.json", _REMEDY)
    variables = {variable.path: variable for variable in model.trainable_variables}

    def value_of(path: str) -> np.ndarray:
        array = keras.ops.convert_to_numpy(keras.ops.cast(variables[path].value, "float32"))
        if not np.isfinite(array).all():
            raise ValueError(
                f"`model` must have finite weights. Received: NaN or infinity in {path}. Save a "
                "model from before its training diverged"
            )
        return np.asarray(array)

    state = {
        tensor.name: tensor.join([value_of(path) for path in tensor.variables])
        for tensor in tensors(model_type, settings.arguments())
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as file:
        file.write(safetensors.numpy.save(state, metadata={"format": "pt"}))
    with atomic_write(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


# ------------------------------------------------------------------ configurations


def _existing_folder(folder: AnyPath) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(
            f"`folder` must be a directory. Received: {path}. Models are not downloaded; "
            "`hf download NAME --local-dir DIRECTORY` does that"
        )
    return path


def _read_settings(folder: Path) -> ModelSettings:
    path = folder / "config.json"
    config = read_json(path, _REMEDY)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _SCHEMAS:
        raise ValueError(
            f"{path}: `model_type` must be one of {', '.join(_SCHEMAS)}. "
            f"Received: {model_type!r:.100}. {_REMEDY}"
        )
    return validate(config, _SCHEMAS[model_type], path, _REMEDY)


def _stored_biases(stored: Container[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Reduces the biases that a Llama's settings allow to those that the first layer has.

    Biases that are not stored are zero in Hugging Face's model.
    """
    layer = "model.layers.0"
    attention_bias: Any = False
    if arguments["attention_bias"] and f"{layer}.self_attn.q_proj.bias" in stored:
        attention_bias = f"{layer}.self_attn.o_proj.bias" in stored or "qkv"
    use_bias = arguments["use_bias"] and f"{layer}.mlp.down_proj.bias" in stored
    return {"attention_bias": attention_bias, "use_bias": use_bias}


def _config_of(model: keras.Model) -> dict[str, Any]:
    """Returns the content of a `config.json` that all versions of transformers understand."""
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    layer_names = {layer.name for layer in model.layers}
    if not blocks or "embedding" not in layer_names or len(model.inputs) != 1:
        raise ValueError(f"`model` must be a `zoo.gpt`. Received: {model.name}")
    block = blocks[0].get_config()
    vocabulary_size, width = (int(size) for size in model.get_layer("embedding").embeddings.shape)
    learned = any(isinstance(x, Positions) and x.kind == "learned" for x in model.layers)
    tied = not any(layer.name == "output" for layer in model.layers)
    heads = block["num_heads"]
    kv_heads = block["num_kv_heads"] or heads
    head_dim = block["head_dim"] or width // heads
    bias, attention_bias = block["use_bias"], block["attention_bias"]
    attention_bias = bias if attention_bias is None else attention_bias
    activations = {zoo_name: name for name, zoo_name in reversed(GPT2_ACTIVATIONS.items())}
    common = {
        "vocab_size": vocabulary_size, "tie_word_embeddings": tied, "torch_dtype": "float32",
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if (
        block["norm"] == "layer_norm"
        and learned
        and bias
        and attention_bias is True
        and block["activation"] in activations
        and kv_heads == heads
        and head_dim * heads == width
    ):
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_positions": max_length(model), "n_embd": width, "n_layer": len(blocks),
            "n_head": heads, "n_inner": block["intermediate_dim"],
            "activation_function": activations[block["activation"]],
            "layer_norm_epsilon": block["epsilon"], **common,
        }  # fmt: skip
    qwen2 = attention_bias == "qkv"
    if (
        block["norm"] == "rms_norm"
        and block["rotary_base"]
        and block["activation"] == "swiglu"
        and not (qwen2 and bias)
        and (qwen2 or width % heads == 0)
    ):
        names = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        if not qwen2:
            names = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
            names |= {"attention_bias": attention_bias, "mlp_bias": bias}
        scaling = dict(block["rotary_scaling"] or {})
        if scaling:
            scaling["rope_type"] = scaling.pop("type")
        if "original_max_length" in scaling:
            length = scaling.pop("original_max_length")
            scaling["original_max_position_embeddings"] = length
        return {
            **names, "max_position_embeddings": max_length(model), "hidden_size": width,
            "intermediate_size": block["intermediate_dim"], "num_hidden_layers": len(blocks),
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "hidden_act": "silu", "rms_norm_eps": block["epsilon"],
            "rope_theta": block["rotary_base"], "rope_scaling": scaling or None, **common,
        }  # fmt: skip
    raise ValueError(
        "`model` must have GPT-2's blocks (layer_norm, learned positions, biases, no grouped "
        "queries, no `head_dim` of its own), Llama's (rms_norm, rotary positions, swiglu, "
        "`num_heads` that divides `hidden_dim`) or Qwen2's (as Llama's, with no biases but those "
        f"of queries, keys and values). Received: norm={block['norm']}, "
        f"activation={block['activation']}, use_bias={bias}, attention_bias={attention_bias}, "
        f"num_kv_heads={kv_heads}, head_dim={head_dim}, learned positions={learned}"
    )
