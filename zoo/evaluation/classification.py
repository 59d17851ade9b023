"""Classifiers evaluated: loss and accuracy, reports, confusion matrices, plots."""

import keras
import numpy as np
from rich.console import Console
from scipy.special import log_softmax
from sklearn.metrics import classification_report, confusion_matrix

from zoo.datasets.images import ImageDataset, check_labels
from zoo.evaluation.plots import plot_confusion, plot_curves, plot_mistakes
from zoo.training.run_directory import RunDirectory
from zoo.validation import Labels, Logits, Size, TextList, check_lengths, validated


@validated
def loss_and_accuracy(logits: Logits, labels: Labels) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the fraction of labels with the largest logit."""
    check_lengths(logits=logits, labels=labels)
    likelihood = log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return float(-likelihood.mean()), float((logits.argmax(-1) == labels).mean())


@validated
def report(labels: Labels, predictions: Labels, class_names: TextList | None = None) -> str:
    """Precision, recall and F1 of each class, by its name or else its number."""
    check_lengths(labels=labels, predictions=predictions)
    names = {} if class_names is None else {
        "labels": range(len(class_names)), "target_names": class_names
    }  # fmt: skip
    return str(classification_report(labels, predictions, digits=4, zero_division=0, **names))


@validated
def confusion(labels: Labels, predictions: Labels, num_classes: Size) -> np.ndarray:
    """(num_classes, num_classes): rows are true classes, columns predicted ones."""
    check_lengths(labels=labels, predictions=predictions)
    check_labels(labels, num_classes)
    check_labels(predictions, num_classes, "predictions")
    return np.asarray(confusion_matrix(labels, predictions, labels=range(num_classes)))


@validated
def write_report(
    run: RunDirectory,
    history: keras.callbacks.History,
    data: ImageDataset,
    logits: np.ndarray,
    console: Console,
) -> None:
    """Prints the scores on the test images, and draws learning curves, confusions and mistakes.

    Args:
        run: Run directory, for curves.png, confusion.png and mistakes.png.
        history: History of the training, validated on the test images.
        data: Data set with the test images.
        logits: Logits of the test images, (N, num_classes).
        console: Console for the report.
    """
    predictions = logits.argmax(-1)
    loss, accuracy = loss_and_accuracy(logits, data.y_test)
    matrix = confusion(data.y_test, predictions, data.num_classes)
    console.print(f"Test loss {loss:.4f}, test accuracy {accuracy:.2%}\n")
    console.print(report(data.y_test, predictions, data.class_names))
    console.print(f"Confusion matrix (rows true, columns predicted):\n{matrix}")
    plots = {
        "curves.png": plot_curves(history, title=f"Learning curves on {data.name}"),
        "confusion.png": plot_confusion(
            matrix, data.class_names, f"{len(logits):,} test images of {data.name}"
        ),
        "mistakes.png": plot_mistakes(
            data.x_test, data.y_test, logits, class_names=data.class_names
        ),
    }
    for name, figure in plots.items():
        run.save_plot(name, figure)
