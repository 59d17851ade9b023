"""Proof of files together: what they generate, without Keras, is what the package generates."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo import random
from zoo.backends import generation_runtime
from zoo.diffusion.pipeline import DiffusionSpec
from zoo.diffusion.prompts import BOS, empty_prompts
from zoo.diffusion.sampler import noise
from zoo.export import proof, tasks
from zoo.export.evaluation import Evaluation, Metrics
from zoo.export.source import Source
from zoo.export.tasks import Rows
from zoo.parity.report import Row, Status
from zoo.parity.workers import Worker, WorkerError, Workers

_PROMPT_LENGTHS = (5, 1, 3)
_SOURCE_LENGTHS = (4, 7, 2)
_NEW_TOKENS = 24
_IMAGES = 3
_SAMPLING_STEPS = 8
_GUIDANCE_SCALE = 3.0
_IMAGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GenerationProof(ABC):
    """Generation by all files of a model, and by the model on each backend.

    Attributes:
        source: The model.
        content: What `generation.json` says of the files and of the generation.
        reason: What is compared, and with which tolerance.
    """

    source: Source
    content: Mapping[str, Any]
    reason: ClassVar[str]

    @abstractmethod
    def prepare(self, folder: Path) -> dict[str, Any]:
        """Writes inputs to a folder; returns the request for `generation_runtime`."""

    @abstractmethod
    def expected(self, worker: Worker, folder: Path) -> Any:
        """What a backend's worker generates; the folder has what the files generated."""

    @abstractmethod
    def compare(self, between: tuple[str, str], folder: Path, expected: Any) -> Iterator[Row]:
        """Compares what the files generated with what a backend did."""


@dataclass(frozen=True)
class TokenProof(GenerationProof):
    """Greedy tokens of a language model after prompts of unequal lengths.

    Attributes:
        prompts: Token ids of the prompts.
        sources: Token ids of the sources of a `transformer`, else None.
    """

    prompts: Rows
    sources: Rows | None
    reason = (
        "The same greedy tokens, unless two logits are as near as the tolerance, and the same "
        "logits of each token that the files generate."
    )

    @classmethod
    def of(
        cls,
        source: Source,
        content: Mapping[str, Any],
        vocabulary: int,
        source_vocabulary: int | None,
        seed: int,
    ) -> "TokenProof":
        """Draws prompts and, for a model with a vocabulary of sources, sources."""
        context = content["context"]
        prompts = _token_ids(seed, "prompts", _PROMPT_LENGTHS, context, vocabulary)
        sources = None
        if source_vocabulary is not None:
            sources = _token_ids(seed, "sources", _SOURCE_LENGTHS, context, source_vocabulary)
        return cls(source, content, prompts, sources)

    @property
    def new_tokens(self) -> int:
        """Number of tokens; of an encoder-decoder, at most those that fit its context."""
        if self.sources is None:
            return _NEW_TOKENS
        context: int = self.content["context"]
        return min(_NEW_TOKENS, context + 1 - max(map(len, self.prompts)))

    def prepare(self, folder: Path) -> dict[str, Any]:
        return {"prompts": self.prompts, "sources": self.sources, "new_tokens": self.new_tokens}

    def expected(self, worker: Worker, folder: Path) -> Any:
        tokens = np.load(folder / "tokens.npy")
        return worker(tasks.tokens, self.source, self.prompts, self.sources, tokens)

    def compare(self, between: tuple[str, str], folder: Path, expected: Any) -> Iterator[Row]:
        tokens, logits = (np.load(folder / f"{name}.npy") for name in ("tokens", "logits"))
        expected_tokens, expected_logits = expected
        tolerance = self.source.tolerance
        distance = proof.relative_distance(logits, expected_logits)
        status: Status = "agrees" if distance <= tolerance else "differs"
        yield Row("logits", between, "float32", status, distance, tolerance)
        fault = first_difference(tokens, expected_tokens, expected_logits, tolerance)
        detail = fault or f"{tokens.shape[1]} tokens after each of {len(tokens)} prompts"
        status = "differs" if fault else "agrees"
        yield Row("greedy tokens", between, "float32", status, detail=detail)


def first_difference(
    actual: np.ndarray, expected: np.ndarray, logits: np.ndarray, tolerance: float
) -> str:
    """The first token that differs without a tie, in words; empty if there is none.

    Args:
        actual: Tokens after each prompt, (B, N).
        expected: Expected tokens, (B, N).
        logits: Logits of each actual token, (B, N, V).
        tolerance: Difference of two logits that is a tie, relative to the scale.
    """
    for row in range(len(actual)):
        for index in np.flatnonzero(actual[row] != expected[row])[:1]:  # what follows may differ
            received, wanted = actual[row, index], expected[row, index]
            difference = abs(logits[row, index, wanted] - logits[row, index, received])
            if difference > tolerance * np.abs(logits[row, index]).max():
                return (
                    f"Token {index + 1} after prompt {row + 1} must be {wanted}. Received: "
                    f"{received}"
                )
    return ""


def _token_ids(seed: int, name: str, lengths: Sequence[int], longest: int, size: int) -> Rows:
    uniform = random.uniform(random.key(seed, "export", name), (len(lengths), max(lengths)))
    ids = (uniform * size).astype(int).tolist()
    return [row[: min(length, longest)] for row, length in zip(ids, lengths)]


@dataclass(frozen=True)
class ImageProof(GenerationProof):
    """Images of a `text_to_image` model, by DDIM with guidance.

    Attributes:
        spec: Forward process and prediction that the model was trained with.
        vocabulary: Number of tokens of the prompts.
        seed: Seed of prompts and noise.
    """

    spec: DiffusionSpec
    vocabulary: int
    seed: int
    reason = f"Images by DDIM with guidance; rounding is amplified by {_SAMPLING_STEPS} steps."

    @property
    def prompts(self) -> np.ndarray:
        """Random prompts, of which the last is short."""
        rows = empty_prompts(_IMAGES, self.content["prompt_length"])
        uniform = random.uniform(random.key(self.seed, "export", "prompts"), rows[:, 1:].shape)
        rows[:, 1:] = BOS + 1 + uniform * (self.vocabulary - BOS - 1)
        rows[-1, 2:] = 0
        return rows

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return min(_SAMPLING_STEPS, self.spec.num_steps)

    def prepare(self, folder: Path) -> dict[str, Any]:
        shape = self.content["image_shape"]
        np.save(folder / "noise.npy", noise(self.seed, "first", shape, range(_IMAGES)))
        prompts = self.prompts.tolist()
        return {"prompts": prompts, "steps": self.steps, "guidance_scale": _GUIDANCE_SCALE}

    def expected(self, worker: Worker, folder: Path) -> Any:
        settings = {"seed": self.seed, "steps": self.steps, "guidance_scale": _GUIDANCE_SCALE}
        return worker(tasks.images, self.source, self.spec, self.prompts, settings)

    def compare(self, between: tuple[str, str], folder: Path, expected: Any) -> Iterator[Row]:
        distance = proof.relative_distance(np.load(folder / "images.npy"), expected)
        status: Status = "agrees" if distance <= _IMAGE_TOLERANCE else "differs"
        yield Row("images", between, "float32", status, distance, _IMAGE_TOLERANCE)


@dataclass(frozen=True)
class Proven:
    """Comparisons of what files generate together.

    Attributes:
        rows: Tokens or images against those of each backend.
        metrics: Metrics of the parts against those of the whole model and its card.
        values: Metrics of the parts by name.
    """

    rows: list[Row]
    metrics: list[Row]
    values: Metrics


def prove(
    generation: GenerationProof,
    runtime: str,
    directory: Path,
    folder: Path,
    workers: Workers,
    evaluation: Evaluation | None,
    time_limit: float,
) -> Proven:
    """Generates with the files of a directory and on each backend, and compares the results.

    Args:
        generation: The generation.
        runtime: Name of the library that runs the files.
        directory: Directory of the files, with `generation.json`.
        folder: Empty folder for what the processes exchange.
        workers: Workers of the backends.
        evaluation: Real inputs of the whole model, and their metrics.
        time_limit: Time limit of the process without Keras, in seconds.
    """
    batches = [] if evaluation is None else evaluation.batches
    for number, arrays in enumerate(batches):
        inputs = dict(zip(generation.source.specs, arrays, strict=True))
        np.savez(folder / f"evaluated-{number}.npz", allow_pickle=False, **inputs)
    request = {"directory": str(directory), "evaluated": len(batches), **generation.prepare(folder)}
    try:
        proof.run_alone(generation_runtime.__file__, request, folder, time_limit)
    except RuntimeError as error:
        row = Row("generation", (runtime,), "", "differs", detail=str(error))
        return Proven([row], [], {})
    rows: list[Row] = []
    for name in workers.names:
        between = runtime, name
        try:
            expected = generation.expected(workers[name], folder)
        except WorkerError as error:
            rows.append(Row("generation", between, "float32", "failed", detail=str(error)))
        else:
            rows += generation.compare(between, folder, expected)
    if evaluation is None:
        return Proven(rows, [], {})
    predicted = (np.load(folder / f"predicted-{number}.npy") for number in range(len(batches)))
    values = evaluation.metrics([array] for array in predicted)
    first, before = workers.names[0], generation.source.before_rounding
    try:
        answer = workers[first](tasks.answer, before, [], [], evaluation)
    except WorkerError as error:
        return Proven(rows, [Row("metrics", (first,), "float32", "failed", detail=str(error))], {})
    expected = {first: answer.metrics}
    if evaluation.card:
        expected["card"] = evaluation.card
    compared = proof.compare_metrics(generation.source, runtime, values, expected)
    return Proven(rows, list(compared), values)


def write_content(generation: GenerationProof, directory: Path) -> None:
    """Writes `generation.json`."""
    text = json.dumps(dict(generation.content), indent=1) + "\n"
    (directory / "generation.json").write_text(text, "utf-8")
