"""Parts of a model that generates, each the source of one file.

    gpt, transformer    prefill     prompts to the logits of the next token, and caches
                        step        one token and the caches to logits, and longer caches
    text_to_image       text_encoder, unet

What `prefill` returns besides the logits, `step` takes with the prefix "past_"; so it does what it
returns itself. The layers are those of the model: `zoo.generation` decodes with the same function.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from keras import ops

from zoo.backends.exporting import Axes, Graph
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.export.formats import Format
from zoo.export.source import Source, describe
from zoo.export.storage import WeightDType
from zoo.generation.decoding import KVCacheDecoder, max_length
from zoo.layers.core import Embedding
from zoo.parity.inputs import InputSpec

Tensor = Any

_MAX_PADDING = 3  # of random inputs, which `padding` must be below


@dataclasses.dataclass(frozen=True)
class DecodingSource(Source):
    """Part of a language model: one call of its decoder, with caches that grow."""

    def graph(self, for_file: bool = False) -> Graph:
        model, _ = self.load_model(for_file)
        decoder = KVCacheDecoder(model)

        def function(*tensors: Tensor) -> list[Tensor]:
            outputs = _decode(decoder, dict(zip(self.specs, tensors, strict=True)))
            return [outputs[name] for name in self.outputs]

        return self.as_graph(model, function)


def _decode(decoder: KVCacheDecoder, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name of the prefill or, if there are caches among the inputs, of a step."""
    names = [(f"keys_{i}", f"values_{i}") for i, _ in enumerate(decoder.blocks, 1)]
    outputs: dict[str, Tensor] = {}
    encoded_sources: Any = ()
    if "source" in inputs:
        mask, contexts = encoded_sources = decoder.encode(inputs["source"])
        outputs["source_mask"] = mask[:, 0, 0]
        for pair, context in zip(names, contexts):
            outputs |= {f"source_{name}": tensor for name, tensor in zip(pair, context)}
    elif "past_source_mask" in inputs:
        contexts = [tuple(inputs[f"past_source_{name}"] for name in pair) for pair in names]
        encoded_sources = ops.expand_dims(inputs["past_source_mask"], (1, 2)), contexts
    caches = [tuple(inputs.get(f"past_{name}") for name in pair) for pair in names]
    past = caches[0][0]
    start = 0 if past is None else ops.shape(past)[2]
    ids = inputs["ids"]

    def update_cache(cache: Tensor | None, new: Tensor) -> Tensor:
        return new if cache is None else ops.concatenate([cache, new], axis=2)

    tokens = ids, start, inputs["padding"], encoded_sources
    capacity = start + ops.shape(ids)[1]
    outputs["logits"], caches = decoder.apply(tokens, caches, capacity, update_cache)
    for pair, cache in zip(names, caches):
        outputs |= dict(zip(pair, cache))
    return outputs


def decoding_parts(source: Source) -> dict[str, Source]:
    """The prefill and the step of a language model.

    Args:
        source: A `gpt` or a `transformer`.

    Raises:
        ValueError: If the model does not compute in float32, or its context is a single token.
    """
    model, _ = source.load_model()
    blocks = KVCacheDecoder(model).blocks
    (_, heads, _, width), dtype = blocks[0].cache_spec(1, 1)
    if dtype != "float32":
        raise ValueError(f"`model` must compute in float32. Received: {model.name} with {dtype}")
    context = max_length(model)
    if context < 2:  # a step follows at least one token
        raise ValueError(f"`model` must have a context of at least 2 tokens. Received: {context}")
    vocabulary = int(model.output.shape[-1])
    caches = [f"{kind}_{i}" for i in range(1, len(blocks) + 1) for kind in ("keys", "values")]

    def cache(length: str) -> Axes:
        return Axes("float32", ("batch", heads, length, width))

    first = {"ids": Axes("int32", ("batch", "length")), "padding": Axes("int32", ("batch",))}
    later = first | {"ids": Axes("int32", ("batch", 1))}
    later |= {f"past_{name}": cache("past_length") for name in caches}
    outputs = ["logits", *caches]
    encoded: dict[str, Axes] = {}
    if len(source.specs) == 2:
        first["source"] = Axes("int32", ("batch", "source_length"))
        encoded = {"source_mask": Axes("bool", ("batch", "source_length"))}
        encoded |= {f"source_{name}": cache("source_length") for name in caches}
        later |= {f"past_{name}": axes for name, axes in encoded.items()}
    ranges = {"ids": vocabulary, "padding": _MAX_PADDING, "source": source_vocabulary(model)}
    # The last token that fits is at the last position.
    limits = {"length": context, "past_length": context - 1, "source_length": context}

    def part(inputs: dict[str, Axes], names: list[str]) -> DecodingSource:
        common = {field.name: getattr(source, field.name) for field in dataclasses.fields(Source)}
        specs = {name: _spec(axes, ranges.get(name)) for name, axes in inputs.items()}
        return DecodingSource(
            **{**common, "specs": specs, "axes": inputs, "outputs": tuple(names), "limits": limits}
        )

    return {"prefill": part(first, [*outputs, *encoded]), "step": part(later, outputs)}


def _spec(axes: Axes, size: int | None) -> InputSpec:
    """Random inputs of these axes, integers below `size`."""
    shape = tuple(n if isinstance(n, int) else None for n in axes.shape[1:])
    return InputSpec(shape, axes.dtype) if size is None else InputSpec(shape, axes.dtype, 0, size)


def source_vocabulary(model: keras.Model) -> int:
    """Number of tokens of a source, or of a prompt of a `gpt`."""
    (embedding, *_) = (layer for layer in model.layers if isinstance(layer, Embedding))
    return int(embedding.input_dim)


def diffusion_parts(
    pipeline: DiffusionPipeline,
    tolerance: float | None,
    folder: Path,
    entry: Format,
    dtype: WeightDType,
) -> dict[str, Source]:
    """The text encoder and the U-Net of a `text_to_image` model.

    Args:
        pipeline: The trained model.
        tolerance: As for `describe`.
        folder: Folder for the weights.
        entry: Format of the files.
        dtype: Type in which the files store the weights.
    """
    inputs = {"time": InputSpec((), "int32", 0, pipeline.spec.num_steps)}
    outputs = {"text_encoder": ("context", "context_mask"), "unet": ("predicted",)}
    parts = {}
    for name, names in outputs.items():
        (folder / name).mkdir()
        part = pipeline.model.get_layer(name)
        specs = inputs if name == "unet" else None
        source = describe(part, None, specs, tolerance, folder / name, entry, dtype)
        parts[name] = dataclasses.replace(source, outputs=names)
    return parts
