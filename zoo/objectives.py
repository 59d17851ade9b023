"""What a training step lowers: functions of a batch, for `zoo.training.fit`.

Each gives the batch's mean loss and its mean metrics.
"""

from typing import Any

import keras
from keras import ops

from zoo import random
from zoo.augment import ImageTransform
from zoo.backends import Objective, backend


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
