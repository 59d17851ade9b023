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
from zoo.export.source import Source
from zoo.parity.report import Row
from zoo.parity.workers import Worker, WorkerError, Workers

Rows = list[list[int]]

_PROMPT_LENGTHS = (5, 1, 3)
_SOURCE_LENGTHS = (4, 7, 2)
_NEW_TOKENS = 24
_IMAGES = 3
_SAMPLING_STEPS = 8
_GUIDANCE_SCALE = 3.0
_IMAGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Chain(ABC):
    """Generation by all files of a model.

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
    def expected(self, worker: Worker) -> Any:
        """What a backend's worker generates."""

    @abstractmethod
    def compare(
        self, runtime: str, folder: Path, result: Any, answers: Mapping[str, Any]
    ) -> Iterator[Row]:
        """Compares what the files generated with each backend."""


@dataclass(frozen=True)
class TokenChain(Chain):
    """Greedy tokens of a language model after prompts of unequal lengths.

    Attributes:
        prompts: Token ids of the prompts.
        sources: Token ids of the sources of a `transformer`, else None.
    """

    prompts: Rows
    sources: Rows | None
    reason = (
        "The same greedy tokens. They may differ from where the two largest logits are as near "
        "as the tolerance of the outputs."
    )

    @classmethod
    def of(
        cls,
        source: Source,
        content: Mapping[str, Any],
        vocabulary: int,
        source_vocabulary: int | None,
        seed: int,
    ) -> "TokenChain":
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

    def expected(self, worker: Worker) -> Any:
        return worker(tasks.tokens, self.source, self.prompts, self.sources, self.new_tokens)

    def compare(
        self, runtime: str, folder: Path, result: Any, answers: Mapping[str, Any]
    ) -> Iterator[Row]:
        for name, expected in answers.items():
            fault = first_difference(
                result["tokens"], expected, result["leads"], 2 * self.source.tolerance
            )
            detail = fault or f"{self.new_tokens} tokens after each of {len(expected)} prompts"
            status: Any = "differs" if fault else "agrees"
            yield Row("greedy tokens", (runtime, name), "float32", status, detail=detail)


def first_difference(actual: Rows, expected: Rows, leads: Any, tolerance: float) -> str:
    """The first token that differs though its logit leads by more than a tolerance, in words."""
    for number, (row, wanted, lead) in enumerate(zip(actual, expected, leads, strict=True), 1):
        pairs = zip(row, wanted, strict=True)
        index = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
        if index is not None and lead[index] > tolerance:
            return (
                f"Token {index + 1} after prompt {number} must be {wanted[index]}. Received: "
                f"{row[index]}"
            )
    return ""


def _token_ids(seed: int, name: str, lengths: Sequence[int], longest: int, size: int) -> Rows:
    uniform = random.uniform(random.key(seed, "export", name), (len(lengths), max(lengths)))
    ids = (uniform * size).astype(int).tolist()
    return [row[: min(length, longest)] for row, length in zip(ids, lengths)]


@dataclass(frozen=True)
class ImageChain(Chain):
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

    def expected(self, worker: Worker) -> Any:
        settings = {"seed": self.seed, "steps": self.steps, "guidance_scale": _GUIDANCE_SCALE}
        return worker(tasks.images, self.source, self.spec, self.prompts, settings)

    def compare(
        self, runtime: str, folder: Path, result: Any, answers: Mapping[str, Any]
    ) -> Iterator[Row]:
        images = np.load(folder / "images.npy")
        for name, expected in answers.items():
            distance = proof.relative_distance(images, expected)
            status: Any = "agrees" if distance <= _IMAGE_TOLERANCE else "differs"
            between = runtime, name
            yield Row("images", between, "float32", status, distance, _IMAGE_TOLERANCE)


def prove(
    chain: Chain, runtime: str, directory: Path, folder: Path, workers: Workers, time_limit: float
) -> list[Row]:
    """Generates with the files of a directory and on each backend, and compares the results.

    Args:
        chain: The generation.
        runtime: Name of the library that runs the files.
        directory: Directory of the files, with `generation.json`.
        folder: Empty folder for what the processes exchange.
        workers: Workers of the backends.
        time_limit: Time limit of the process without Keras, in seconds.
    """
    request = {"directory": str(directory), **chain.prepare(folder)}
    try:
        result = proof.run_alone(generation_runtime.__file__, request, folder, time_limit)
    except RuntimeError as error:
        return [Row("generation", (runtime,), "", "differs", detail=str(error))]
    rows, answers = [], {}
    for name in workers.names:
        try:
            answers[name] = chain.expected(workers[name, "float32"])
        except WorkerError as error:
            rows.append(Row("generation", (runtime, name), "float32", "failed", detail=str(error)))
    return [*rows, *chain.compare(runtime, folder, result, answers)]


def write_content(chain: Chain, directory: Path) -> None:
    """Writes `generation.json`."""
    text = json.dumps(dict(chain.content), indent=1) + "\n"
    (directory / "generation.json").write_text(text, "utf-8")
