"""Tasks of the workers: they write the file, and compute what the model answers."""

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import backends
from zoo.backends import backend
from zoo.diffusion.pipeline import DiffusionSpec
from zoo.diffusion.sampler import Sampler
from zoo.export.evaluation import Evaluation
from zoo.export.source import Source
from zoo.files import tensors
from zoo.generation.sampling import generate, prepare_generation

Arrays = list[np.ndarray]
Rows = list[list[int]]


def write(source: Source, format_name: str, path: Path) -> None:
    """Writes the file of a model, on the backend that the format needs."""
    if format_name == "safetensors":
        model, _ = source.load_model()
        dtype: Any = source.dtype
        path.write_bytes(tensors.save_weights(model, dtype, source.metadata))
        return
    module = importlib.import_module(f"zoo.backends.{backends.name}_export")
    getattr(module, f"write_{format_name}")(source.graph(for_file=True), path)


@dataclass(frozen=True)
class Answer:
    """What the model answers on one backend.

    Attributes:
        environment: Versions and device.
        outputs: Outputs of each batch, or the text of the error with which the model refuses it.
        seconds: Seconds of a call of each timed batch.
        metrics: Metrics of the evaluation, by name.
    """

    environment: dict[str, str]
    outputs: list[Arrays | str]
    seconds: list[float]
    metrics: dict[str, float]


def answer(
    source: Source, batches: list[Arrays], timed: list[Arrays], evaluation: Evaluation | None = None
) -> Answer:
    """Computes the model's outputs.

    Args:
        source: The model.
        batches: Inputs of each batch.
        timed: Inputs of the batches whose duration is measured.
        evaluation: Real inputs whose metrics are computed.
    """
    graph = source.graph()
    function = backend.inference_function(graph.model, graph.function)

    def run(batch: Arrays) -> Arrays:
        results = function(*map(ops.convert_to_tensor, batch))
        return [np.array(ops.convert_to_numpy(result)) for result in results]

    outputs: list[Arrays | str] = []
    for batch in batches:
        try:
            outputs.append(run(batch))
        except Exception as error:  # of any kind, by the backend
            outputs.append(f"{type(error).__name__}: {error}")
    environment = {
        "backend_version": backend.version(),
        "keras_version": keras.__version__,
        "device": backend.device(),
    }
    seconds = [_seconds(function, batch) for batch in timed]
    metrics = {} if evaluation is None else evaluation.metrics(map(run, evaluation.batches))
    return Answer(environment, outputs, seconds, metrics)


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
    source: Source, prompts: Rows, sources: Rows | None, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes with a language model.

    Args:
        source: The model.
        prompts: Token ids of the prompts.
        sources: Token ids of the sources of a `transformer`, else None.
        given: Tokens after each prompt, (B, N).

    Returns:
        Greedy tokens after each prompt, (B, N), and the logits of each given token, (B, N, V).
    """
    model, _ = source.load_model()
    _, count = given.shape
    greedy = generate(model, prompts, count, temperature=0.0, sources=sources)
    decoder, arrays, _ = prepare_generation(model, prompts, sources, count)
    logits = [ops.convert_to_numpy(decoder.prefill(arrays[0], count, arrays[1]))]
    for index in range(count - 1):
        logits.append(ops.convert_to_numpy(decoder.decode(given[:, index : index + 1])))
    return np.stack(greedy), np.stack(logits, axis=1)


def images(
    source: Source, spec: DiffusionSpec, prompts: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    """Samples images with a `text_to_image` model, for token ids of prompts."""
    model, _ = source.load_model()
    return Sampler(model, spec.make_diffusion()).sample(len(prompts), prompts, **settings)
