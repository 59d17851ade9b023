"""Sampling functions of the cross-backend check, by the kind of data that a model generates."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.noise_schedule import cosine
from zoo.diffusion.sampler import Sampler
from zoo.generation.beam_search import beam_search
from zoo.generation.decoding import is_encoder_decoder
from zoo.generation.sampling import generate


def tokens(model: keras.Model) -> Mapping[str, Any]:
    """Generates tokens by greedy decoding, sampling and, for encoder-decoders, beam search."""
    prompts: list[list[int]] = [[1, 2, 3], [4, 5, 6, 7, 8]]
    options: dict[str, Any] = {}
    count = 64
    if is_encoder_decoder(model):
        prompts, options = [[1], [1, 4, 6]], {"sources": [[5, 3, 9, 2], [7, 8]]}
    elif any(isinstance(layer, keras.layers.RNN) for layer in model.layers):
        prompts, count = [[1, 2, 3]], 12
    arrays: dict[str, Any] = {
        "greedy tokens": generate(model, prompts, count, temperature=0.0, **options),
        "sampled tokens": generate(model, prompts, count, seed=1, **options),
    }
    if options:
        arrays["beam search tokens"] = beam_search(model, prompts, 12, **options)
    return arrays


def images(model: keras.Model) -> Mapping[str, Any]:
    """Samples images in five steps; a model with prompts also with classifier-free guidance."""
    sampler = Sampler(model, GaussianDiffusion(cosine(20)))
    if "prompt" not in model.input:
        steps = {f"images, eta {eta:g}": eta for eta in (0.0, 1.0)}
        return {name: sampler.sample(2, seed=1, steps=5, eta=eta) for name, eta in steps.items()}
    prompts = np.array([[1, 3, 2, 0], [1, 4, 0, 0]], np.int32)
    options: dict[str, Any] = {"seed": 1, "steps": 5, "prompts": prompts}
    return {
        "images": sampler.sample(2, eta=1.0, guidance_scale=1.0, **options),
        "guided images": sampler.sample(
            2, negative_prompts=prompts[::-1], guidance_scale=3.0, **options
        ),
    }


SAMPLES: dict[str, Callable[[keras.Model], Mapping[str, Any]]] = {
    "tokens": tokens,
    "images": images,
}
