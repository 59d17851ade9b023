import numpy as np
import pytest
from keras import ops

import zoo
from zoo.datasets.augmentation import ImageTransform
from zoo.evaluation import classification, plots

LOGITS = np.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = np.array([0, 1, 2, 2])


def test_loss_and_accuracy_by_hand() -> None:
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


def test_the_predictor_takes_any_number_of_images() -> None:
    model, transform = zoo.cnn_48x48(10), ImageTransform((0.1307,), (0.3081,))
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 1)).astype(np.uint8)
    logits = classification.image_predictor(model, transform, batch_size=2)(images)
    expected = ops.convert_to_numpy(ops.stop_gradient(model(transform.test(images))))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_mistakes_are_shown_with_the_most_confident_first() -> None:
    images = np.zeros((4, 48, 48, 1), np.uint8)
    figure = plots.plot_mistakes(images, LABELS, LOGITS, count=4)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["0 (99%)\ntrue 2", "", "", ""]
    none = plots.plot_mistakes(images, LOGITS.argmax(-1), LOGITS, count=4)
    assert none.get_suptitle() == "no mistakes"


def test_curves_show_both_sets() -> None:
    row = {"loss": 0.5, "accuracy": 0.8, "test_loss": 0.4, "test_accuracy": 0.9}
    figure = plots.plot_curves([{"epoch": 1, **row}, {"epoch": 2, **row}])
    for axes in figure.axes:
        assert len(axes.lines) == 2
        assert list(axes.get_xticks()) == [1, 2]


def test_two_ways_to_do_the_same_run() -> None:
    """Steps that are equal have no place on a logarithmic axis."""
    first, second = [2.0, 1.0, 0.5], [2.0, 1.1, 0.5005]
    np.testing.assert_allclose(plots.relative_distances(first, second), [0, 0.1, 1e-3])
    above, below = plots.plot_same_run({"by hand": first, "fit": second}).axes
    assert [line.get_label() for line in above.lines] == ["by hand", "fit"]
    assert below.get_yscale() == "log"
    assert below.lines[0].get_xdata().tolist() == [2, 3]


@pytest.mark.parametrize("classes", [10, 43])
def test_a_confusion_matrix_of_any_size_is_drawn(classes: int) -> None:
    figure = plots.plot_confusion(np.diag(np.arange(classes)))
    assert len(figure.axes[0].texts) == (classes - 1 if classes <= 20 else 0)
