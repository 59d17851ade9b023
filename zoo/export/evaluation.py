"""Evaluation of trained models on real data: inputs for a file, and the metrics of its outputs.

    classifiers           test images              loss and accuracy
    gpt                   windows of the test text loss in nats a token, bits a character
    rnn_language_model    the test text            loss, perplexity
    transformer           test verses              loss in nats a token
    unet, text_to_image   noisy test images        squared error of the prediction

The metrics are those of the card, on the same examples, where the card has them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from pydantic import JsonValue
from scipy.special import log_softmax

from zoo import datasets, tasks
from zoo.datasets import parallel_text, shakespeare
from zoo.datasets.parallel_text import LengthBuckets
from zoo.datasets.token_windows import TokenWindows, encode_to_disk, split_documents
from zoo.diffusion.losses import held_out_examples, pixels
from zoo.diffusion.prompts import ClassPrompts, prompts_by_class
from zoo.evaluation import classification
from zoo.evaluation.language_model import bits_per_character, loss_and_perplexity
from zoo.files.saved import SavedModel
from zoo.files.weights import PART, WeightsFolder
from zoo.generation import decoding
from zoo.tasks import ImageClassifier, ImageSampler, NextWord, TextCompletion, Translator

Arrays = list[np.ndarray]
Metrics = dict[str, float]

_BATCH_SIZE = 100
_SAMPLE = 17  # examples whose outputs are compared
_SAMPLE_LENGTH = 40  # tokens of these, where an example is a long text
_TEXT_DATA = {"shakespeare": "shakespeare", "next_word": "shakespeare", "translate": "eng-spa"}


@dataclass(frozen=True)
class Evaluation:
    """Real inputs of a trained model, and the metrics of its outputs.

    Attributes:
        count: Number of the examples.
        kind: What the examples are, in words.
        batches: Inputs of each batch, in the model's order.
        metrics: Function from the outputs of the batches, in order, to metrics by name.
        sample: A batch of some of the examples.
        card: Metrics of the card on these examples, by name; empty without a card.
    """

    count: int
    kind: str
    batches: Sequence[Arrays]
    metrics: Callable[[Iterable[Arrays]], Metrics]
    sample: Arrays
    card: Mapping[str, float]

    @property
    def examples(self) -> str:
        """Number and kind of the examples."""
        return f"{self.count:,} {self.kind}"


class NoTestDataError(Exception):
    """Test data of a model that are not at hand, or that it cannot read."""


def make_evaluation(saved: SavedModel, whole: bool) -> Evaluation:
    """Prepares the evaluation of a trained model.

    Args:
        saved: Weights folder or finished run.
        whole: Whether the whole test data are used, or the part of it that `PART` fixes.

    Raises:
        NoTestDataError: If the test data are not at hand.
    """
    source = _TestData.of(saved, whole)
    try:
        task = tasks.load(saved.folder)
        for kind, evaluate in _KINDS.items():
            if isinstance(task, kind):
                return Evaluation(*evaluate(task, source), _card_metrics(saved, whole))
    except (ValueError, OSError, ImportError) as error:
        raise NoTestDataError(f"The test data of {source.name} cannot be used: {error}") from error
    raise NoTestDataError(f"No metric is known for {task.model.name}")


@dataclass(frozen=True)
class _TestData:
    """Origin of the test data: name of the data set, settings of the run, and how much of it."""

    name: str
    settings: Mapping[str, Any]
    whole: bool

    @classmethod
    def of(cls, saved: SavedModel, whole: bool) -> "_TestData":
        if isinstance(saved, WeightsFolder):
            in_order = "--split first_90" in saved.card.training.command
            split = {"split": "first_90" if in_order else "works"}
            return cls(saved.card.data.name, split, whole)
        settings = saved.read("config.json", dict[str, JsonValue])
        name = settings.get("dataset", _TEXT_DATA.get(str(settings.get("recipe")), ""))
        return cls(str(name), settings, whole)

    def count(self, kind: str) -> int | None:
        """Number of examples of a kind; None for all."""
        return None if self.whole else PART[kind]

    def images(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images, (N, size, size, C) uint8, and their labels."""
        folder = self.settings.get("data_dir")
        if self.name != "mnist" and folder is None and not Path(self.name).exists():
            raise NoTestDataError(f"The test images of {self.name} are not at hand")
        data = datasets.load(
            self.name,
            size,
            train_examples=1,
            test_examples=self.count("images"),
            data_dir=folder,
            allow_fewer=True,
        )
        return data.x_test, data.y_test

    def text(self, tokenizer: Any) -> np.ndarray:
        """Token ids of the test text, (N,)."""
        self._check("shakespeare")
        if self.settings.get("split", "works") == "works":  # the other works take seconds
            ids = encode_to_disk(shakespeare.split("test"), tokenizer)
        else:
            ids = shakespeare.encode_split(tokenizer, scheme="first_90")["test"]
        return np.asarray(ids[: self.count("tokens")])

    def pairs(self) -> list[parallel_text.Pair]:
        """Test verses."""
        self._check("eng-spa")
        pairs, count = parallel_text.split("test"), self.count("pairs")
        if count is None:
            return pairs
        return [pairs[int(index)] for index in np.linspace(0, len(pairs) - 1, count)]

    def _check(self, name: str) -> None:
        if self.name != name:
            raise NoTestDataError(f"The test data of {self.name or 'the run'} are not at hand")


def _card_metrics(saved: SavedModel, whole: bool) -> Mapping[str, float]:
    """Metrics of a card, which are the same on all backends up to rounding."""
    if not isinstance(saved, WeightsFolder) or not saved.card.metrics:
        return {}
    metrics = next(iter(saved.card.metrics.values()))
    return metrics.whole if whole else metrics.part


# ------------------------------------------------------------------ tasks

_Parts = tuple[int, str, list[Arrays], Callable[[Iterable[Arrays]], Metrics], Arrays]


def _classifier(task: ImageClassifier, source: _TestData) -> _Parts:
    images, labels = source.images(task.size)
    inputs = ops.convert_to_numpy(task.preprocessing(images))

    def metrics(outputs: Iterable[Arrays]) -> Metrics:
        logits = np.concatenate([batch[0] for batch in outputs])
        loss, accuracy = classification.loss_and_accuracy(logits, labels)
        return {"test_loss": loss, "test_accuracy": accuracy}

    batches = [[array] for array in _split(inputs)]
    return len(images), f"test images of {source.name}", batches, metrics, [inputs[:_SAMPLE]]


def _completion(task: TextCompletion, source: _TestData) -> _Parts:
    ids = source.text(task.tokenizer)
    windows = TokenWindows(ids, decoding.max_length(task.model))
    numbers = np.arange(len(windows))
    inputs, labels = windows[numbers]

    def metrics(outputs: Iterable[Arrays]) -> Metrics:
        losses = [_losses(array, y) for (array,), y in zip(outputs, _split(labels))]
        loss = float(np.concatenate(losses).mean())
        bits = bits_per_character(loss, ids, task.tokenizer)
        return {"test_loss": loss, "test_bits_per_character": bits}

    batches = [[array] for array in _split(inputs)]
    return labels.size, f"test tokens of {source.name}", batches, metrics, [inputs[:_SAMPLE]]


def _next_word(task: NextWord, source: _TestData) -> _Parts:
    documents = [ids for ids in split_documents(source.text(task.tokenizer)) if len(ids) > 1]
    batches = [[np.asarray(ids[None, :-1], np.int32)] for ids in documents]
    labels = [np.asarray(ids[None, 1:], np.int64) for ids in documents]

    def metrics(outputs: Iterable[Arrays]) -> Metrics:
        losses = [_losses(array, y).ravel() for (array,), y in zip(outputs, labels)]
        return loss_and_perplexity("test", float(np.concatenate(losses).mean(dtype=np.float64)))

    (first,) = batches[0]
    count = sum(y.size for y in labels)
    sample = [first[:, :_SAMPLE_LENGTH]]
    return count, f"test tokens of {source.name}", batches, metrics, sample


def _translation(task: Translator, source: _TestData) -> _Parts:
    pairs = source.pairs()
    encoded = parallel_text.encoded(pairs, task.tokenizer)
    buckets = LengthBuckets(*encoded, 1024, decoding.max_length(task.model))
    examples = [buckets[np.array([number])] for number in range(len(buckets))]

    def metrics(outputs: Iterable[Arrays]) -> Metrics:
        total = count = 0.0
        for (logits,), (_, labels, weights) in zip(outputs, examples):
            # Keras' metric takes the mean over the width of a row, which the recipe's has, too.
            total += float((_losses(logits, labels) * weights).mean(-1).sum())
            count += float(weights.mean(-1).sum())
        return {"test_loss": total / count}

    batches = [[x["source"], x["target"]] for x, _, _ in examples]
    sample = [array[:_SAMPLE] for array in batches[0]]
    return len(pairs), f"test verses of {source.name}", batches, metrics, sample


def _denoising(task: ImageSampler, source: _TestData) -> _Parts:
    pipeline = task.pipeline
    scaler, tokenizer = pipeline.latent_scaler, pipeline.tokenizer
    shape = pipeline.sampler.shape
    images, labels = source.images(shape[0] if scaler is None else scaler.model.input.shape[1])
    prompts = None
    if tokenizer is not None:
        prompts = tokenizer.encode(ClassPrompts(tokenizer, prompts_by_class()).prompts_for(labels))
    diffusion = pipeline.spec.make_diffusion()
    examples = held_out_examples(
        images if scaler is None else scaler.encode(images), len(diffusion.schedule), prompts
    )
    x0, time, noise = (examples[name] for name in ("image", "time", "noise"))
    x0 = pixels(x0)
    noisy = ops.convert_to_numpy(diffusion.q_sample(x0, time, noise))
    targets = ops.convert_to_numpy(diffusion.target(x0, time, noise))
    inputs = {"image": noisy, "time": time, "prompt": prompts}
    arrays = [inputs[tensor.name] for tensor in task.model.inputs]

    def metrics(outputs: Iterable[Arrays]) -> Metrics:
        predicted = np.concatenate([batch[0] for batch in outputs])
        return {"squared_error": float(np.square(predicted - targets, dtype=np.float64).mean())}

    batches = [list(batch) for batch in zip(*map(_split, arrays))]
    sample = [array[:_SAMPLE] for array in arrays]
    return len(images), f"noisy test images of {source.name}", batches, metrics, sample


# The first that a task is an instance of counts.
_KINDS: dict[type[tasks.Task], Callable[[Any, _TestData], _Parts]] = {
    ImageClassifier: _classifier,
    NextWord: _next_word,
    TextCompletion: _completion,
    Translator: _translation,
    ImageSampler: _denoising,
}


def _split(array: np.ndarray) -> list[np.ndarray]:
    return [array[first : first + _BATCH_SIZE] for first in range(0, len(array), _BATCH_SIZE)]


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each label, in nats: logits (..., classes) and labels (...) to (...)."""
    likelihood = np.take_along_axis(log_softmax(logits, -1), labels[..., None].astype(np.int64), -1)
    return -likelihood[..., 0]
