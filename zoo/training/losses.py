"""Losses that are fast on every backend."""

from typing import Any, Literal

import keras
from keras import ops

from zoo.backends import backend
from zoo.validation import DType, Rate, validated

Tensor = Any


@keras.saving.register_keras_serializable("zoo")
class CrossEntropy(keras.losses.Loss):  # type: ignore[misc]
    """Cross-entropy of integer labels given logits, in nats.

    `keras.losses.SparseCategoricalCrossentropy(from_logits=True)` with label smoothing, which
    weighs each label by `sample_weight` and divides by the sum of the weights. No one-hot labels
    are made, which saves time where there are many classes.

    Args:
        label_smoothing: Share of each label that is spread evenly over the classes, in [0, 1).
        reduction: Reduction over the batch, as for other losses of Keras.
        name: Name of the loss.
        dtype: Dtype of the computations; by default Keras' `floatx`.

    Raises:
        ValueError: If `label_smoothing` is outside [0, 1). When called with a label outside the
            classes; compiled code raises the backend's own error with the same text.

    Source: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7.
    """

    @validated
    def __init__(
        self,
        label_smoothing: Rate = 0.0,
        reduction: Literal["sum", "sum_over_batch_size", "mean", "mean_with_sample_weight"]
        | None = "mean_with_sample_weight",
        name: str = "cross_entropy",
        dtype: DType | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Losses (...) of labels (...) and logits (..., classes)."""
        return cross_entropy(y_true, y_pred, self.label_smoothing)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("zoo")
class ReconstructionError(keras.losses.Loss):  # type: ignore[misc]
    """Mean squared error of reconstructed images in [-1, 1], given the images as grey levels."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Errors (B, H, W) of grey levels and reconstructions (B, H, W, C)."""
        return ops.mean(ops.square(y_pred - (y_true / 127.5 - 1.0)), axis=-1)


class OutputLoss(keras.losses.Loss):  # type: ignore[misc]
    """Mean of the outputs of a model that computes the loss of each example itself."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The outputs, (B,); the targets are not used."""
        return y_pred


def cross_entropy(labels: Tensor, logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each label, in nats: labels (...) and logits (..., classes) to (...)."""
    logits = at_least_float32(logits)
    labels = ops.cast(_check_labels(labels, logits.shape[-1]), "int32")
    losses = backend.cross_entropy(labels, logits)
    if not label_smoothing:
        return losses
    even = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
    return (1 - label_smoothing) * losses + label_smoothing * even


def at_least_float32(x: Tensor) -> Tensor:
    """The numbers in float32 where they have 16 bits, which are too few for a loss."""
    if keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16"):
        return ops.cast(x, "float32")
    return x


def _check_labels(labels: Tensor, classes: int) -> Tensor:
    """Returns the labels, or raises an error if one is not in [0, classes).

    They are checked before they are cast to int32, which would turn NaN or a large number into
    another label.
    """
    labels = ops.convert_to_tensor(labels)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if "float" not in dtype and "int64" not in dtype:
        labels = ops.cast(labels, "int32")
    rule = f"Labels must lie in [0, {classes}), the classes of the logits. Received: label"
    return backend.check_range(labels, classes, rule)
