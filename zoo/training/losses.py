"""What a training step lowers: functions of a batch, for `zoo.training.trainer.fit`.

Each gives the batch's mean loss and its mean metrics.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import Objective, backend
from zoo.datasets.augmentation import ImageTransform
from zoo.datasets.parallel_text import LengthBuckets

Tensor = Any


def classification_objective(model: keras.Model, transform: ImageTransform, seed: int) -> Objective:
    """Cross-entropy on logits of augmented images, for `fit` over `InMemory` images and labels.

    Returns:
        A function of (images, labels, indices, step): all images (N, H, W, C) uint8 and labels (N,)
        on the device, the batch's indices (B,) and the step's number.
    """
    augmentation = random.key(seed, "augmentation")

    def objective(images: Any, labels: Any, indices: Any, step: Any) -> Any:
        images = ops.take(images, indices, axis=0)
        labels = ops.take(labels, indices, axis=0)
        inputs = transform.training(images, random.fold_in(augmentation, step))
        return _classified(labels, model(inputs, training=True))

    return objective


def label_objective(model: keras.Model) -> Objective:
    """Cross-entropy on logits, for `fit` over inputs as they are and their labels.

    Returns:
        A function of (inputs, labels, step): inputs (B, ...) and labels (B,) int32.
    """

    def objective(inputs: Any, labels: Any, step: Any) -> Any:
        labels = ops.convert_to_tensor(labels)
        return _classified(labels, model(ops.convert_to_tensor(inputs), training=True))

    return objective


def _classified(labels: Any, logits: Any) -> tuple[Any, dict[str, Any]]:
    correct = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    loss = _cross_entropy(labels, logits)
    return loss, {"accuracy": ops.mean(ops.cast(correct, "float32"))}


def language_objective(model: keras.Model) -> Objective:
    """Cross-entropy of each token given those before it, in nats a token, for `fit`.

    Returns:
        A function of (ids, step): ids (B, T + 1) int32, of which all but the last are read and all
        but the first predicted.
    """

    def objective(ids: Any, step: Any) -> Any:
        ids = ops.convert_to_tensor(ids)
        return _cross_entropy(ids[:, 1:], model(ids[:, :-1], training=True)), {}

    return objective


def _cross_entropy(labels: Any, logits: Any) -> Any:
    return ops.mean(backend.cross_entropy(labels, at_least_float32(logits)))


def at_least_float32(logits: Any) -> Any:
    """Widens 16 bits, which are too few for a loss."""
    if keras.backend.standardize_dtype(logits.dtype) in ("float16", "bfloat16"):
        return ops.cast(logits, "float32")
    return logits


def smoothed_cross_entropy(labels: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Against 1 - smoothing for the label and the rest for all alike: (...) and (..., V) to (...).

    Source: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7.
    """
    hard = backend.cross_entropy(labels, logits)
    even = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
    return (1 - smoothing) * hard + smoothing * even


def _losses(model: keras.Model, smoothing: float, training: bool) -> Callable[..., Any]:
    """Of (source, target), as of `LengthBuckets`, the sums of losses and the tokens predicted."""

    def losses(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        source, target = ops.convert_to_tensor(source), ops.convert_to_tensor(target)
        read, labels = target[:, :-1], target[:, 1:]
        logits = at_least_float32(model([source, read], training=training))
        counts = ops.cast(ops.logical_or(read != 0, labels != 0), "float32")
        hard = backend.cross_entropy(labels, logits)
        smoothed = smoothed_cross_entropy(labels, logits, smoothing) if smoothing else hard
        return ops.sum(smoothed * counts), ops.sum(hard * counts), ops.sum(counts)

    return losses


def translation_objective(model: keras.Model, smoothing: float = 0.1) -> Objective:
    """Cross-entropy of each token of a translation, in nats a token, for `fit`.

    Args:
        model: from [source, target] to logits, such as a `transformer`.
        smoothing: share of the labels that is spread over the vocabulary, in [0, 1); the metric
            `nats` is without.

    Returns:
        A function of (source, target, step), as of `zoo.datasets.parallel_text.LengthBuckets`.

    Raises:
        ValueError: for `smoothing` outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must lie in [0, 1). Received: smoothing={smoothing}")
    losses = _losses(model, smoothing, training=True)

    def objective(source: Any, target: Any, step: Any) -> Any:
        smoothed, hard, count = losses(source, target)
        return smoothed / count, {"nats": hard / count}

    return objective


def pair_loss(model: keras.Model) -> Callable[[LengthBuckets], float]:
    """Compiles the mean loss, in nats a token of the translations, their ends included."""
    forward = backend.inference_function(model, _losses(model, 0.0, training=False))

    def mean_loss(batches: LengthBuckets) -> float:
        total, count = 0.0, 0.0
        for number in range(len(batches)):
            _, found, tokens = forward(*batches(np.array([number])))
            total += float(found)
            count += float(tokens)
        return total / count

    return mean_loss
