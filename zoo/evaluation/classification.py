"""How good a classifier is: predictions, reports, plots."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from rich.console import Console
from scipy.special import log_softmax
from sklearn.metrics import classification_report, confusion_matrix

from zoo.backends import backend
from zoo.datasets.augmentation import ImageTransform
from zoo.datasets.images import ImageDataset
from zoo.evaluation.plots import plot_confusion, plot_curves, plot_mistakes
from zoo.training.run_directory import RunDirectory
from zoo.training.trainer import Evaluate


def image_predictor(
    model: keras.Model, transform: ImageTransform, batch_size: int = 256
) -> Callable[[np.ndarray], np.ndarray]:
    """Compiles a function from images, (N, H, W, C) uint8, to logits, (N, classes) float64."""
    forward = backend.inference_function(
        model, lambda images: model(transform.test(images), training=False)
    )

    def predict(images: np.ndarray) -> np.ndarray:
        parts = [
            keras.ops.convert_to_numpy(
                keras.ops.cast(forward(images[start : start + batch_size]), "float32")
            )
            for start in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts).astype(np.float64)

    return predict


def image_evaluator(
    predict: Callable[[np.ndarray], np.ndarray], data: ImageDataset
) -> Callable[[], dict[str, float]]:
    """For `zoo.training.trainer.fit`: a function that gives `test_loss` and `test_accuracy`."""

    def evaluate() -> dict[str, float]:
        loss, accuracy = loss_and_accuracy(predict(data.x_test), data.y_test)
        return {"test_loss": loss, "test_accuracy": accuracy}

    return evaluate


def label_scores(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Evaluate:
    """Compiles what measures `test_loss` and `test_accuracy` on inputs (N, ...) in one batch."""
    forward = backend.inference_function(model, lambda x: model(x, training=False))

    def evaluate() -> dict[str, float]:
        logits = keras.ops.convert_to_numpy(keras.ops.cast(forward(x), "float32"))
        loss, accuracy = loss_and_accuracy(logits.astype(np.float64), y)
        return {"test_loss": loss, "test_accuracy": accuracy}

    return evaluate


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the fraction of labels that have the largest logit."""
    likelihood = log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return float(-likelihood.mean()), float((logits.argmax(-1) == labels).mean())


def report(labels: np.ndarray, predictions: np.ndarray) -> str:
    """Precision, recall and F1 of each class."""
    return str(classification_report(labels, predictions, digits=4, zero_division=0))


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes): rows are true classes, columns predicted ones."""
    return np.asarray(confusion_matrix(labels, predictions, labels=range(num_classes)))


def write_report(
    run: RunDirectory,
    history: Sequence[dict[str, float]],
    data: ImageDataset,
    logits: np.ndarray,
    console: Console,
) -> dict[str, float]:
    """Prints the scores on the test images, draws the three plots, and returns the scores.

    Args:
        run: where the plots go.
        history: a row an epoch, as `zoo.training.trainer.fit` makes it.
        data: of which the test images are used.
        logits: of the test images, (N, num_classes).
        console: where the report is printed.

    Returns:
        `test_loss` and `test_accuracy`.
    """
    predictions = logits.argmax(-1)
    loss, accuracy = loss_and_accuracy(logits, data.y_test)
    matrix = confusion(data.y_test, predictions, data.num_classes)
    console.print(f"Test loss {loss:.4f}, test accuracy {accuracy:.2%}\n")
    console.print(report(data.y_test, predictions))
    console.print(f"Confusion matrix (rows true, columns predicted):\n{matrix}")
    plots = {
        "curves.png": plot_curves(history),
        "confusion.png": plot_confusion(matrix),
        "mistakes.png": plot_mistakes(data.x_test, data.y_test, logits),
    }
    for name, figure in plots.items():
        figure.savefig(run.path / name, dpi=120)
    return {"test_loss": loss, "test_accuracy": accuracy}
