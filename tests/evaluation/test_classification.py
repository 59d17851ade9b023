"""Tests of classification reports and of plots."""

import io
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from rich.console import Console

from zoo.datasets.images import ImageDataset
from zoo.evaluation import classification, plots
from zoo.training.run_directory import RunDirectory

pytestmark = pytest.mark.once

LOGITS = np.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = np.array([0, 1, 2, 2])


def history(**metrics: list[float]) -> keras.callbacks.History:
    """The History of a training with these metrics, one value an epoch."""
    trained = keras.callbacks.History()
    trained.history = metrics
    trained.epoch = list(range(len(next(iter(metrics.values())))))
    return trained


CURVES = {
    "loss": [0.7, 0.5], "accuracy": [0.7, 0.8], "val_loss": [0.6, 0.4], "val_accuracy": [0.8, 0.9],
}  # fmt: skip


def test_loss_and_accuracy_match_a_computation_by_hand() -> None:
    loss, accuracy = classification.loss_and_accuracy(LOGITS, LABELS)
    chosen = [2.0, 3.0, 0.0, 1.0]
    totals = [np.log(np.exp(row).sum()) for row in LOGITS]
    assert loss == pytest.approx(np.mean(np.subtract(totals, chosen)))
    assert accuracy == 0.75


def test_confusion_has_true_rows_and_every_class() -> None:
    matrix = classification.confusion(LABELS, LOGITS.argmax(-1), num_classes=4)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_report_has_precision_recall_and_f1() -> None:
    text = classification.report(LABELS, LOGITS.argmax(-1))
    row = next(line for line in text.splitlines() if line.strip().startswith("2"))
    assert row.split() == ["2", "1.0000", "0.5000", "0.6667", "2"]


def test_write_report_prints_scores_and_saves_plots(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    data = ImageDataset(
        name="mine", num_classes=3, mean=(0.5,), std=(0.5,),
        x_train=images, y_train=LABELS, x_test=images, y_test=LABELS,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=100)
    run = RunDirectory(tmp_path / "run", {})
    classification.write_report(run, history(**CURVES), data, LOGITS, console)
    text = console.file.getvalue()
    assert "test accuracy 75.00%" in text
    assert classification.report(LABELS, LOGITS.argmax(-1)) in text
    assert "[[1 0 0]\n [0 1 0]\n [1 0 1]]" in text
    names = {path.name for path in run.path.iterdir()}
    assert {name for name in names if not name.startswith(".lock")} == {
        "config.json", "curves.png", "confusion.png", "mistakes.png",
    }  # fmt: skip


def test_plot_mistakes_shows_the_most_confident_first() -> None:
    images = np.zeros((4, 48, 48, 1), np.uint8)
    figure = plots.plot_mistakes(images, LABELS, LOGITS, count=4)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["0 (99%)\ntrue 2", "", "", ""]
    none = plots.plot_mistakes(images, LOGITS.argmax(-1), LOGITS, count=4)
    assert none.get_suptitle() == "No mistakes"


def test_plot_curves_shows_training_and_validation() -> None:
    figure = plots.plot_curves(history(**CURVES))
    for axes, metric in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert [list(line.get_ydata()) for line in axes.lines] == [
            CURVES[metric], CURVES[f"val_{metric}"],
        ]  # fmt: skip
        assert whole_ticks(axes) == [1, 2]
        assert axes.get_ylabel() == metric


def whole_ticks(axes: Axes) -> list[float]:
    """The ticks that are seen, which are whole numbers."""
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert all(tick == round(tick) for tick in ticks)
    return ticks


def test_plots_show_one_value_as_a_point() -> None:
    one = history(**{name: values[:1] for name, values in CURVES.items()})
    figures = [
        plots.plot_curves(one),
        plots.plot_perplexity(one, {}),
        plots.plot_same_run({"by hand": [2.0], "fit": [2.5]}),
    ]
    for axes in (axes for figure in figures for axes in figure.axes):
        assert whole_ticks(axes) == [1]
        assert axes.lines
        assert all(line.get_marker() not in ("None", None, "") for line in axes.lines)


def test_plots_have_titles_and_names_of_classes() -> None:
    names = ("cat", "dog", "a name that is much too long")
    shown = ["cat", "dog", "a name that is much…"]
    (axes,) = plots.plot_confusion(np.eye(3, dtype=int), names, "4 images of pets").axes
    assert axes.get_title() == "4 images of pets"
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == shown
    images = np.zeros((4, 8, 8, 1), np.uint8)
    mistakes = plots.plot_mistakes(images, LABELS, LOGITS, 4, names)
    assert mistakes.axes[0].get_title() == f"cat (99%)\ntrue {shown[2]}"
    assert mistakes.get_suptitle() == "Most confident mistakes: predicted, and true"
    assert plots.plot_curves(history(**CURVES), title="on pets").get_suptitle() == "on pets"
    text = classification.report(LABELS, LOGITS.argmax(-1), names)
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["cat", "dog"]
    assert "accuracy" in text


def test_plot_same_run_shows_losses_and_their_distance() -> None:
    """Steps with equal losses have no place on a logarithmic axis."""
    first, second = [2.0, 1.0, 0.5], [2.0, 1.1, 0.5005]
    np.testing.assert_allclose(plots.relative_distances(first, second), [0, 0.1, 1e-3])
    above, below = plots.plot_same_run({"by hand": first, "fit": second}).axes
    assert [line.get_label() for line in above.lines] == ["by hand", "fit"]
    assert below.get_yscale() == "log"
    assert below.lines[0].get_xdata().tolist() == [2, 3]


@pytest.mark.parametrize("classes", [10, 43])
def test_plot_confusion_takes_any_number_of_classes(classes: int) -> None:
    figure = plots.plot_confusion(np.diag(np.arange(classes)))
    assert len(figure.axes[0].texts) == (classes - 1 if classes <= 20 else 0)


def test_plot_perplexity_has_a_line_for_each_model() -> None:
    trained = history(loss=[4.0, 3.0], val_loss=[4.1, 3.1])
    figure = plots.plot_perplexity(trained, {"unigram": 6.4, "bigram": 4.8})
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "training (dropout)", "validation", "unigram, validation", "bigram, validation",
    ]  # fmt: skip
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.exp([4.1, 3.1]))


def test_plot_perplexity_of_another_metric() -> None:
    trained = history(nats=[2.0], val_nats=[2.5], loss=[3.0])
    (axes,) = plots.plot_perplexity(trained, {}, "nats").axes
    np.testing.assert_allclose([line.get_ydata()[0] for line in axes.lines], np.exp([2.0, 2.5]))


def test_plots_show_dollar_signs_as_they_are() -> None:
    """Between two of them, Matplotlib sees a formula, which may not be one."""
    names = ["$\\frac$", "$x_1$"]
    confusion = plots.plot_confusion(np.eye(2, dtype=int), names, r"data of $\frac$")
    images = np.zeros((2, 8, 8, 1), np.uint8)
    mistakes = plots.plot_mistakes(images, np.array([0, 1]), -np.eye(2), 2, names)
    curves = plots.plot_curves(history(**CURVES), title=r"$\frac$")
    for figure in (confusion, mistakes, curves):
        texts = "".join(text.get_text() for text in figure.findobj(Text))
        assert r"\$\frac\$" in texts
        figure.savefig(io.BytesIO(), format="png")  # raises for an invalid formula


def test_plot_confusion_rejects_names_of_other_classes() -> None:
    text = "`class_names` must have a name for each of 2 classes. Received: 3 names"
    with pytest.raises(ValueError, match=text):
        plots.plot_confusion(np.eye(2, dtype=int), ["a", "b", "c"])
