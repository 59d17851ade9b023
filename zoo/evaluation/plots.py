"""Plots of training and evaluation."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.special import log_softmax

from zoo.layers.recurrent import Cell
from zoo.validation import (
    Images,
    Labels,
    Logits,
    Numbers,
    Probability,
    Sizes,
    TextList,
    array,
    check_lengths,
    validated,
    whole,
)


def _check_history(history: keras.callbacks.History, metrics: Sequence[str]) -> None:
    names = {name for metric in metrics for name in (metric, f"val_{metric}")}
    known = getattr(history, "history", {})
    if not getattr(history, "epoch", None) or not names <= set(known):
        raise ValueError(
            f"`history` must have {', '.join(metrics)} of a training with validation data. "
            f"Received: a history of {', '.join(known) or 'nothing'}"
        )


@validated
def plot_curves(
    history: keras.callbacks.History,
    metrics: TextList = ("loss", "accuracy"),
    training: str = "training (augmented, dropout)",
    validation: str = "test",
    ylabels: TextList | None = None,
    title: str = "Learning curves",
) -> Figure:
    """Metrics over the epochs, on training and validation data.

    Args:
        history: History of a training with validation data.
        metrics: Names of the metrics, one a panel.
        training: Legend of the training curve.
        validation: Legend of the validation curve.
        ylabels: Labels of the axes, by default the names of the metrics.
        title: Title of the figure.
    """
    _check_history(history, metrics)
    figure = Figure(figsize=(1.9 + 3.6 * len(metrics), 3.6), layout="constrained")
    figure.suptitle(_plain(title), fontsize=11)
    epochs = [epoch + 1 for epoch in history.epoch]
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric, ylabel in zip(panels, metrics, ylabels or metrics):
        for name, label in ((metric, training), (f"val_{metric}", validation)):
            axes.plot(epochs, history.history[name], marker="o", label=label)
        axes.set(ylabel=ylabel)
        _count_along(axes, "epoch", len(epochs))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _count_along(axes: Axes, name: str, count: int) -> None:
    """Labels the x axis with the whole numbers from 1 to `count`."""
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if count == 1:  # the range that Matplotlib chooses has fractions alone
        axes.set_xlim(0.5, 1.5)


@validated
def plot_same_run(losses: Mapping[str, Numbers]) -> Figure:
    """Losses of two implementations of one training, and their relative distance at each step.

    Args:
        losses: Loss at each step, by the name of the implementation.
    """
    if len(losses) != 2:
        raise ValueError(
            f"`losses` must be those of two implementations. Received: {', '.join(losses)}"
        )
    check_lengths(**losses)
    figure = Figure(figsize=(8, 6), layout="constrained")
    figure.suptitle(f"One training, {' and '.join(losses)}", fontsize=11)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # Readers of all kinds tell blue from orange; the second curve lies on the first, so it is thin.
    styles = ({"color": "#f0a030", "linewidth": 4}, {"color": "#1f4e9c", "linewidth": 1})
    for (label, values), style in zip(losses.items(), styles):
        marker = "o" if len(values) == 1 else None  # one value makes no line
        above.plot(range(1, len(values) + 1), values, label=label, marker=marker, **style)
    above.set(ylabel="mean loss of the epoch so far")
    above.legend()
    distances = relative_distances(*losses.values())
    steps = np.flatnonzero(distances)  # equal losses have no place on a logarithmic axis
    size = 3 if len(distances) > 1 else 8
    below.semilogy(steps + 1, distances[steps], ".", color="#1f4e9c", markersize=size)
    below.set(ylabel="relative distance,\nwhere there is one")
    _count_along(below, "step", len(distances))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


@validated
def relative_distances(first: Numbers, second: Numbers) -> np.ndarray:
    """|a - b| / |a| of each pair of numbers."""
    check_lengths(first=first, second=second)
    a, b = np.asarray(first), np.asarray(second)
    return np.asarray(np.abs(a - b) / np.abs(a))


@validated
def plot_confusion(
    matrix: Annotated[np.ndarray, array("iu", "(classes, classes)")],
    class_names: TextList | None = None,
    title: str = "Confusion matrix",
) -> Figure:
    """The confusion matrix, each row coloured by its fractions; counts where they can be read.

    Args:
        matrix: Number of examples of each true class (row) and predicted class (column).
        class_names: Name of each class; by default its number.
        title: Title of the figure.
    """
    classes = len(matrix)
    names = _names(class_names, classes)
    size = max(5.0, min(14.0, 0.55 * classes))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The square root keeps single mistakes visible beside a diagonal near 1.
    axes.imshow(np.sqrt(fractions), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=_plain(title))
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(classes), names)
    if classes <= 20:
        for row, column in np.argwhere(matrix):
            colour = "white" if fractions[row, column] > 0.3 else "black"
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                color=colour,
                size=8,
            )
    else:
        axes.tick_params(labelsize=6)
    return figure


def _names(class_names: Sequence[str] | None, classes: int) -> list[str]:
    """Names of the classes for a plot, at most 20 characters each."""
    if class_names is not None and len(class_names) != classes:
        raise ValueError(
            f"`class_names` must have a name for each of {classes} classes. "
            f"Received: {len(class_names)} names"
        )
    names = class_names or [str(number) for number in range(classes)]
    return [_plain(name if len(name) <= 20 else f"{name[:19]}…") for name in names]


def _plain(text: str) -> str:
    """Text whose dollar signs are not taken for formulas."""
    return text.replace("$", r"\$")


@validated
def plot_mistakes(
    images: Images,
    labels: Labels,
    logits: Logits,
    count: Annotated[int, whole(1, 256)] = 16,
    class_names: TextList | None = None,
) -> Figure:
    """Misclassified images with the greatest confidence.

    Args:
        images: Images, (N, H, W, C) uint8.
        labels: True classes, (N,).
        logits: Logits of the images, (N, classes).
        count: Number of images, at most.
        class_names: Name of each class; by default its number.
    """
    check_lengths(images=images, labels=labels, logits=logits)
    names = _names(class_names, logits.shape[-1])
    predictions = logits.argmax(-1)
    confidence = np.exp(log_softmax(logits, axis=-1).max(-1))
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    columns = 8 if count > 8 else count
    rows = -(-count // columns)
    figure = Figure(figsize=(1.35 * columns, 1.7 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, worst):
        axes.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        predicted, true = names[predictions[index]], names[labels[index]]
        axes.set_title(f"{predicted} ({confidence[index]:.0%})\ntrue {true}", fontsize=8)
    title = "Most confident mistakes: predicted, and true" if len(worst) else "No mistakes"
    figure.suptitle(title, fontsize=11)
    return figure


_FAINTEST = 1e-12  # of the last step's gradient: long lost beside float32's rounding, 6e-8


_CELLS: dict[str, tuple[str, str, dict[str, Any]]] = {  # Okabe and Ito's colours
    "simple_rnn": ("plain RNN", "#D55E00", {"marker": "o"}),
    # A frame, so that a line that lies on it does not hide it.
    "lstm": ("LSTM", "#0072B2", {"marker": "s", "markersize": 11, "fillstyle": "none"}),
    "gru": ("GRU", "#009E73", {"marker": "^"}),
}


@validated
def plot_memory(
    lengths: Sizes,
    recall: Mapping[Cell, Numbers],
    chance: Probability,
    gradients: Mapping[Cell, Mapping[Literal["before", "after"], Numbers]],
) -> Figure:
    """Recall of the first symbol by length, and the gradient that reaches each step.

    Args:
        lengths: Lengths of the sequences.
        recall: Accuracy at each length, by cell.
        chance: Accuracy of a random guess.
        gradients: Gradient norms by cell and time, "before" or "after" training: one for each step
            of the longest sequences. They are drawn relative to the norm at the last step.
    """
    for cell, accuracies in recall.items():
        check_lengths(lengths=lengths, **{cell: accuracies})
    for times in gradients.values():
        if set(times) != {"before", "after"} or not all(map(len, times.values())):
            raise ValueError(
                "`gradients` must have norms before and after the training of each cell. "
                f"Received: {', '.join(times)}"
            )
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for cell, fractions in recall.items():
        name, colour, marker = _CELLS[cell]
        left.plot(lengths, fractions, color=colour, label=name, **marker)
    left.axhline(chance, color="0.4", linestyle="--", label=f"chance, {chance:.1%}")
    left.set_xscale("log", base=2)
    left.set_xticks(lengths, [str(length) for length in lengths])
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.set(xlabel="steps of a sequence", ylabel="first symbol named", ylim=(0, 1.04))
    left.set_title("Recall of the first symbol, after training at each length")
    for cell, times in gradients.items():
        name, colour, _ = _CELLS[cell]
        for time, gradient, style in (
            ("before", times["before"], ":"),
            ("after", times["after"], "-"),
        ):
            norms = np.asarray(gradient, np.float64)[::-1]
            parts = np.divide(norms, norms[0], out=np.zeros_like(norms), where=norms[0] > 0)
            seen = np.where(parts > 0, parts, np.nan)  # less than float32 can hold
            right.plot(seen, color=colour, linestyle=style, label=f"{name}, {time} training")
    right.set_yscale("log")
    right.set_ylim(_FAINTEST, None)
    right.set(xlabel="steps before the last", ylabel="gradient of the loss, last step = 1")
    right.set_title(f"Gradient that reaches each input of {lengths[-1]} steps")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


@validated
def plot_perplexity(
    history: keras.callbacks.History,
    baselines: Mapping[str, float],
    metric: str = "loss",
    title: str = "Perplexity",
) -> Figure:
    """Perplexity over the epochs, on training and validation data, with baselines.

    Args:
        history: History of a training with validation data.
        baselines: Validation loss in nats a token of other models, by name.
        metric: Name of the metric in nats a token.
        title: Title of the figure.
    """
    _check_history(history, [metric])
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [epoch + 1 for epoch in history.epoch]
    for name, label in ((metric, "training (dropout)"), (f"val_{metric}", "validation")):
        axes.plot(epochs, np.exp(history.history[name]), marker="o", label=label)
    for number, (name, loss) in enumerate(baselines.items(), 2):
        axes.axhline(np.exp(loss), color=f"C{number}", linestyle="--", label=f"{name}, validation")
    ticks = [2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)  # ticks outside would widen it
    axes.set(ylabel="perplexity", title=title)
    _count_along(axes, "epoch", len(epochs))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
