"""Tensors of GPT-2, Llama and Qwen2 in Hugging Face's files.

The weights differ from those of `zoo.gpt` in two ways:

- A dense kernel is (inputs, outputs) in the zoo and in Hugging Face's GPT-2, but (outputs, inputs)
  in Hugging Face's Llama and Qwen2, and in every output layer.
- Hugging Face's GPT-2 concatenates the kernels of query, key and value.

Names, shapes and dtypes of all tensors are checked before a tensor is read.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors
from pydantic import Field

from zoo.interop.huggingface_schema import Settings, read_json, validate

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OUTPUT = "lm_head.weight"

_DTYPES = ("F16", "BF16", "F32", "F64")
# Causal masks and frequencies, which older versions saved.
_CONSTANTS = re.compile(r"(h\.\d+\.attn\.(masked_)?bias|(.*\.)?rotary_emb\.inv_freq)")
_REMEDY = "Copy the whole folder again"


@dataclass(frozen=True)
class Tensor:
    """A tensor of Hugging Face and the zoo's variables that are concatenated in the tensor.

    Attributes:
        name: Name of the tensor in a model with an output layer.
        variables: Shapes of the variables, by path.
        transposed: Whether the tensor is the transpose of the concatenated variables.
    """

    name: str
    variables: Mapping[str, tuple[int, ...]]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        (*rows, _), *_ = self.variables.values()
        shape = (*rows, sum(shape[-1] for shape in self.variables.values()))
        return shape[::-1] if self.transposed else shape

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Converts the values of the variables to the tensor."""
        array = np.concatenate(arrays, axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array)

    def split(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Converts the tensor to the values of the variables, by path."""
        array = array.T if self.transposed else array
        ends = np.cumsum([shape[-1] for shape in self.variables.values()])[:-1]
        parts = np.split(array, ends, axis=-1)
        return {path: np.ascontiguousarray(part) for path, part in zip(self.variables, parts)}


def prefix_of(model_type: str) -> str:
    """Prefix of all tensors but the output layer's, which a model without that layer lacks."""
    return "transformer." if model_type == "gpt2" else "model."


def tensors(model_type: str, arguments: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors of a model.

    Args:
        model_type: "gpt2", "llama" or "qwen2".
        arguments: Arguments of `zoo.gpt`, as `ModelSettings.arguments` returns them.
    """
    gpt2 = model_type == "gpt2"
    prefix = prefix_of(model_type)
    d, inner = arguments["hidden_dim"], arguments["intermediate_dim"]
    head_dim = arguments.get("head_dim") or d // arguments["num_heads"]
    q_width = arguments["num_heads"] * head_dim
    kv_width = arguments.get("num_kv_heads", arguments["num_heads"]) * head_dim
    bias = arguments.get("use_bias", True)
    attention_bias = arguments.get("attention_bias", bias)

    def dense(name: str, inputs: int, units: Mapping[str, int], bias: bool) -> Iterator[Tensor]:
        kernels = {f"{layer}/kernel": (inputs, size) for layer, size in units.items()}
        yield Tensor(f"{prefix}{name}.weight", kernels, transposed=not gpt2)
        if bias:
            biases = {f"{layer}/bias": (size,) for layer, size in units.items()}
            yield Tensor(f"{prefix}{name}.bias", biases)

    def norm(name: str, layer: str) -> Iterator[Tensor]:
        yield Tensor(f"{prefix}{name}.weight", {f"{layer}/{'gamma' if gpt2 else 'scale'}": (d,)})
        if gpt2:
            yield Tensor(f"{prefix}{name}.bias", {f"{layer}/beta": (d,)})

    table = {"embedding/embeddings": (arguments["vocabulary_size"], d)}
    yield Tensor(f"{prefix}{'wte' if gpt2 else 'embed_tokens'}.weight", table)
    if gpt2:
        yield Tensor(f"{prefix}wpe.weight", {"positions/table": (arguments["max_length"], d)})
    for number in range(arguments["num_layers"]):
        block = f"block{number + 1}"
        widths = {"query": q_width, "key": kv_width, "value": kv_width}
        projections = {f"{block}/attention/{part}": width for part, width in widths.items()}
        output, feed_forward = {f"{block}/attention/output": d}, f"{block}/feed_forward"
        down = {f"{feed_forward}/down": d}
        if gpt2:
            yield from norm(f"h.{number}.ln_1", f"{block}/attention_norm")
            yield from dense(f"h.{number}.attn.c_attn", d, projections, bias)
            yield from dense(f"h.{number}.attn.c_proj", q_width, output, bias)
            yield from norm(f"h.{number}.ln_2", f"{block}/feed_forward_norm")
            yield from dense(f"h.{number}.mlp.c_fc", d, {f"{feed_forward}/up": inner}, bias)
            yield from dense(f"h.{number}.mlp.c_proj", inner, down, bias)
            continue
        name = f"layers.{number}"
        yield from norm(f"{name}.input_layernorm", f"{block}/attention_norm")
        for letter, (path, width) in zip("qkv", projections.items()):
            layer = f"{name}.self_attn.{letter}_proj"
            yield from dense(layer, d, {path: width}, bool(attention_bias))
        output_bias = bool(attention_bias) and attention_bias != "qkv"
        yield from dense(f"{name}.self_attn.o_proj", q_width, output, output_bias)
        yield from norm(f"{name}.post_attention_layernorm", f"{block}/feed_forward_norm")
        for part in ("gate", "up"):
            yield from dense(f"{name}.mlp.{part}_proj", d, {f"{feed_forward}/{part}": inner}, bias)
        yield from dense(f"{name}.mlp.down_proj", inner, down, bias)
    yield from norm("ln_f" if gpt2 else "norm", "norm")
    if not arguments["tie_embeddings"]:
        kernel = {"output/kernel": (d, arguments["vocabulary_size"])}
        yield Tensor(OUTPUT, kernel, transposed=True)


# ------------------------------------------------------------------ files


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not read yet.

    Attributes:
        path: Path of the file.
        name: Name of the tensor in the file.
        dtype: Dtype in the notation of safetensors, such as "BF16".
        shape: Shape of the tensor.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Reads the tensor as float32, or as float64 if it is stored so.

        Raises:
            ValueError: If an element is NaN or infinite. The text names the tensor.
        """
        with _open(self.path) as file:
            array = file.get_tensor(self.name)
        array = array if self.dtype == "F64" else array.astype(np.float32)
        if not np.isfinite(array).all():
            index = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            raise ValueError(
                f"{self.path}: `{self.name}` must be finite. Received: {array[index]} at {index}. "
                "The weights are damaged, or their training diverged; use an earlier copy"
            )
        return np.asarray(array)


class _Index(Settings):
    """Index of weights that are divided into several files."""

    no_effect: ClassVar[Set[str]] = {"metadata"}
    weight_map: dict[str, str] = Field(min_length=1)


def stored_tensors(folder: Path, model_type: str) -> dict[str, StoredTensor]:
    """Lists the tensors of a folder by the names that a model with an output layer has.

    Args:
        folder: Folder with a `model.safetensors`, or with an index and several files.
        model_type: "gpt2", "llama" or "qwen2".

    Raises:
        ValueError: If there are no weights in safetensors files, or a file is damaged or missing.
    """
    prefix = prefix_of(model_type)
    result: dict[str, StoredTensor] = {}
    for path, expected_names in _files(folder).items():
        with _open(path) as file:
            names = set(file.keys())
            if expected_names is not None and names != expected_names:
                raise ValueError(
                    f"{path} must hold the tensors that {INDEX} lists for it. Received: "
                    f"{_some(names ^ expected_names)} in one of the two only. {_REMEDY}"
                )
            for name in sorted(names):
                view = file.get_slice(name)
                base_name = name.removeprefix(prefix)
                full_name = name if name == OUTPUT else f"{prefix}{base_name}"
                if _CONSTANTS.fullmatch(base_name):
                    continue
                if full_name in result:
                    raise ValueError(
                        f"{path}: `{name}` must be stored once. Received: also "
                        f"{result[full_name].name} in {result[full_name].path.name}. {_REMEDY}"
                    )
                shape = tuple(view.get_shape())
                result[full_name] = StoredTensor(path, name, view.get_dtype(), shape)
    return result


def check_tensors(
    stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raises ValueError unless stored tensors have the expected names and shapes and are floats.

    Args:
        stored: Stored tensors by name.
        expected: Expected shapes by name.
        folder: Folder of the tensors, for the error message.
    """
    mismatches = [f"{name} is missing" for name in expected if name not in stored]
    for name, tensor in stored.items():
        if name not in expected:
            mismatches.append(f"{name} is unknown")
        elif tensor.shape != expected[name]:
            mismatches.append(f"{name} has shape {tensor.shape} instead of {expected[name]}")
        elif tensor.dtype not in _DTYPES:
            mismatches.append(f"{name} is of type {tensor.dtype} instead of {', '.join(_DTYPES)}")
    if not mismatches:
        return
    remedy = "Use the config.json of these weights, and weights that are not quantized"
    if mismatches == [f"{OUTPUT} is missing"]:
        remedy = (
            "The folder holds a base model without the output layer that computes logits; save the "
            "model of AutoModelForCausalLM instead"
        )
    raise ValueError(f"{folder} does not fit its config.json: {_some(mismatches)}. {remedy}")


def _some(items: Any) -> str:
    """Lists the first items of many, in one line."""
    items = sorted(items) if isinstance(items, set) else items
    more = f" and {len(items) - 5:,} more" if len(items) > 5 else ""
    return "; ".join(repr(item)[1:-1][:200] for item in items[:5]) + more


def _files(folder: Path) -> Mapping[Path, set[str] | None]:
    """Files of the weights, and the names of their tensors where an index lists them."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if (folder / INDEX).is_file():
        path = folder / INDEX
        index = validate(read_json(path, _REMEDY), _Index, path, _REMEDY)
        names: dict[Path, set[str]] = {}
        for tensor, file in index.weight_map.items():
            if not re.fullmatch(r"[\w.-]+\.safetensors", file) or not (folder / file).is_file():
                raise ValueError(
                    f"{path}: `weight_map` must name safetensors files in the folder. "
                    f"Received: {file[:100]!r}. {_REMEDY}"
                )
            names.setdefault(folder / file, set()).add(tensor)
        return names
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    received, remedy = "none of the two", _REMEDY
    if pickles:
        received = f"{_some(pickles)}, which the zoo does not read, since pickles can run code"
        code = (
            "import glob, torch, safetensors.torch; safetensors.torch.save_file({name: "
            "tensor.contiguous().clone() for path in glob.glob('pytorch_model*.bin') "
            "for name, tensor in torch.load(path, map_location='cpu', weights_only=True).items()}, "
            f"'{WEIGHTS}', metadata={{'format': 'pt'}})"
        )
        remedy = f'In that folder, this command converts them: python -c "{code}"'
    raise ValueError(f"{folder} must hold {WEIGHTS} or {INDEX}. Received: {received}. {remedy}")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} must be an undamaged safetensors file. Received: {error}. {_REMEDY}"
        ) from error
