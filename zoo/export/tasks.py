"""Tasks of the workers: they write the file, and compute what the model answers."""

import importlib
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import backends
from zoo.backends import backend
from zoo.diffusion.pipeline import DiffusionSpec
from zoo.diffusion.sampler import Sampler
from zoo.export.source import Source
from zoo.generation.sampling import generate

Arrays = list[np.ndarray]


def write(source: Source, format_name: str, path: Path) -> None:
    """Writes the file of a model, on the backend that the format needs."""
    module = importlib.import_module(f"zoo.backends.{backends.name}_export")
    getattr(module, f"write_{format_name}")(source.graph(for_file=True), path)


def answer(
    source: Source, batches: list[Arrays], timed: list[Arrays]
) -> tuple[dict[str, str], list[Arrays | str], list[float]]:
    """Computes the model's outputs.

    Args:
        source: The model.
        batches: Inputs of each batch.
        timed: Inputs of the batches whose duration is measured.

    Returns:
        Versions and device; the outputs of each batch, or the text of the error with which the
        model refuses it; and the seconds of a call of each timed batch.
    """
    graph = source.graph()
    function = backend.inference_function(graph.model, graph.function)
    outputs: list[Arrays | str] = []
    for batch in batches:
        try:
            tensors = function(*map(ops.convert_to_tensor, batch))
            outputs.append([np.array(ops.convert_to_numpy(tensor)) for tensor in tensors])
        except Exception as error:  # of any kind, by the backend
            outputs.append(f"{type(error).__name__}: {error}")
    environment = {
        "backend_version": backend.version(),
        "keras_version": keras.__version__,
        "device": backend.device(),
    }
    return environment, outputs, [_seconds(function, batch) for batch in timed]


def _seconds(function: Any, batch: Arrays, calls: int = 5) -> float:
    """The shortest of a few calls, after one that compiles."""
    durations = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        for output in function(*map(ops.convert_to_tensor, batch)):
            ops.convert_to_numpy(output)
        durations.append(time.perf_counter() - started)
    return min(durations[1:])


def tokens(
    source: Source, prompts: list[list[int]], sources: list[list[int]] | None, count: int
) -> list[list[int]]:
    """Generates greedy tokens with a language model."""
    model, _ = source.load_model()
    rows = generate(model, prompts, count, temperature=0.0, sources=sources)
    return [row.tolist() for row in rows]


def images(
    source: Source, spec: DiffusionSpec, prompts: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    """Samples images with a `text_to_image` model, for token ids of prompts."""
    model, _ = source.load_model()
    return Sampler(model, spec.make_diffusion()).sample(len(prompts), prompts, **settings)
