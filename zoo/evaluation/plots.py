"""Plots of training and evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.special import log_softmax


def plot_curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss and accuracy over the epochs, training and test."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    lines = {"": "training (augmented, dropout)", "test_": "test"}
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for prefix, label in lines.items():
            values = [row[prefix + quantity] for row in history]
            axes.plot(epochs, values, marker="o", label=label)
        axes.set(xlabel="epoch", ylabel=quantity, xticks=epochs)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_losses(
    losses: Sequence[float], last: Mapping[str, float], ylabel: str = "nats a token"
) -> Figure:
    """The loss of every training step and its running mean, and what it came to in validation.

    Args:
        losses: of the steps.
        last: has `validation_loss`.
        ylabel: what they are measured in.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    span = max(len(losses) // 50, 1)
    sums = np.cumsum([0.0, *losses])
    axes.plot(steps, losses, color="C0", alpha=0.25, linewidth=0.7)
    means = (sums[span:] - sums[:-span]) / span
    axes.plot(steps[span - 1 :], means, label=f"training, mean of {span} steps")
    axes.axhline(
        last["validation_loss"], color="C1", linestyle="--", label="validation, at the end"
    )
    axes.set(xlabel="step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_same_run(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Two ways to do the same run: the loss of every step, and how far the two are apart.

    Args:
        losses: of two runs, by their names.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # Blue and orange are told apart by all; the second lies on the first, so it is the thinner.
    styles = ({"color": "#f0a030", "linewidth": 4}, {"color": "#1f4e9c", "linewidth": 1})
    for (label, values), style in zip(losses.items(), styles):
        above.plot(range(1, len(values) + 1), values, label=label, **style)
    above.set(ylabel="loss of the batch")
    above.legend()
    apart = relative_distances(*losses.values())
    steps = np.flatnonzero(apart)  # a logarithm has no place for those that are equal
    below.semilogy(steps + 1, apart[steps], ".", color="#1f4e9c", markersize=3)
    below.set(xlabel="step", ylabel="relative distance,\nwhere there is one")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def relative_distances(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """|a - b| / |a| of each two numbers."""
    a, b = np.asarray(first), np.asarray(second)
    return np.asarray(np.abs(a - b) / np.abs(a))


def plot_confusion(matrix: np.ndarray) -> Figure:
    """The confusion matrix, each row coloured by its fractions; counts where they can be read."""
    classes = len(matrix)
    size = max(5.0, min(14.0, 0.55 * classes))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The square root keeps single mistakes attention_mask beside a diagonal near 1.
    axes.imshow(np.sqrt(fractions), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
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


def plot_mistakes(
    images: np.ndarray, labels: np.ndarray, logits: np.ndarray, count: int = 16
) -> Figure:
    """The images that the model got wrong with the greatest confidence."""
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
        axes.set_title(
            f"{predictions[index]} ({confidence[index]:.0%})\ntrue {labels[index]}", fontsize=8
        )
    if not len(worst):
        figure.suptitle("no mistakes")
    return figure


_FAINTEST = 1e-12  # of the last step's gradient: long lost beside float32's rounding, 6e-8


_CELLS: dict[str, tuple[str, str, dict[str, Any]]] = {  # Okabe and Ito's colours
    "simple_rnn": ("plain RNN", "#D55E00", {"marker": "o"}),
    # A frame, so that a line that lies on it does not hide it.
    "lstm": ("LSTM", "#0072B2", {"marker": "s", "markersize": 11, "fillstyle": "none"}),
    "gru": ("GRU", "#009E73", {"marker": "^"}),
}


def plot_memory(
    lengths: Sequence[int],
    recall: Mapping[str, Sequence[float]],
    chance: float,
    gradients: Mapping[str, Mapping[str, Sequence[float]]],
) -> Figure:
    """What each recurrent cell remembers, and how much gradient reaches each step back.

    Args:
        lengths: of the sequences.
        recall: for each cell, the fraction right at each length.
        chance: the fraction right by guessing.
        gradients: for each cell, "before" and "after" training, a norm for each step of the
            longest sequences; drawn as parts of the norm at the last step.
    """
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
        for time, style in (("before", ":"), ("after", "-")):
            norms = np.asarray(times[time], np.float64)[::-1]
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


def plot_perplexity(
    history: Sequence[Mapping[str, float]], baselines: Mapping[str, float]
) -> Figure:
    """Perplexity over the epochs, training and validation, with the baselines as level lines.

    Args:
        history: a row an epoch, with `loss` and `validation_loss` in nats a token.
        baselines: validation loss by name, likewise.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for name, label in (("loss", "training (dropout)"), ("validation_loss", "validation")):
        axes.plot(epochs, np.exp([row[name] for row in history]), marker="o", label=label)
    for number, (name, loss) in enumerate(baselines.items(), 2):
        axes.axhline(np.exp(loss), color=f"C{number}", linestyle="--", label=f"{name}, validation")
    ticks = [2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)  # ticks outside would widen it
    axes.set(xlabel="epoch", ylabel="perplexity", xticks=epochs)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
