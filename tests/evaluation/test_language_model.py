import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from zoo import gpt, rnn_language_model
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import language_model, plots

WORKS = [[0, *np.random.default_rng(i).integers(1, 12, size)] for i, size in enumerate((40, 7, 23))]
IDS = np.concatenate(WORKS).astype(np.uint16)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return rnn_language_model(12, "lstm", embedding_dim=6, units=8, num_layers=2, dropout=0.5)


def log_probabilities(model: keras.Model, ids: list[int]) -> np.ndarray:
    """After each token, from the sequence as a whole: (T, V)."""
    logits = model(np.array([ids], np.int32), training=False)
    return log_softmax(keras.ops.convert_to_numpy(logits)[0].astype(np.float64), axis=-1)


@pytest.mark.parametrize(("chunk", "batch_size"), [(5, 2), (64, 8)])
def test_the_state_is_carried_through_each_work(
    model: keras.Model, chunk: int, batch_size: int
) -> None:
    likelihoods = [
        log_probabilities(model, work)[np.arange(len(work) - 1), work[1:]] for work in WORKS
    ]
    expected = -np.concatenate(likelihoods).mean()
    found = language_model.document_loss(model, chunk, batch_size)(IDS)
    assert found == pytest.approx(expected, rel=1e-5)  # measured: 1e-7


def test_the_loss_on_pieces_of_a_text() -> None:
    model = gpt(12, max_length=8, num_layers=1, num_heads=1, hidden_dim=8)
    ids = np.concatenate(WORKS * 2)[:100]
    pieces = [ids[start : start + 8] for start in range(0, 96, 7)]
    pieces = [piece for piece in pieces if len(piece) == 8]
    likelihoods = [log_probabilities(model, p.tolist())[np.arange(7), p[1:]] for p in pieces]
    found = language_model.window_loss(model, 7, batch_size=4)(ids)
    assert found == pytest.approx(-np.mean(likelihoods), rel=1e-5)


def test_bits_of_characters() -> None:
    vocabulary = Tokenizer.characters(["to be"])
    ids = vocabulary.encode("to be to be")
    assert language_model.bits_per_character(np.log(2), ids, vocabulary) == pytest.approx(1)


def test_a_loss_of_nothing(model: keras.Model) -> None:
    with pytest.raises(ValueError, match="must hold a work of two tokens or more"):
        language_model.document_loss(model)(np.array([0, 0]))


def test_the_plot_has_a_line_for_each() -> None:
    history = [{"epoch": i, "loss": 5.0 - i, "validation_loss": 5.1 - i} for i in (1, 2)]
    figure = plots.plot_perplexity(history, {"unigram": 6.4, "bigram": 4.8})
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "training (dropout)", "validation", "unigram, validation", "bigram, validation",
    ]  # fmt: skip
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.exp([4.1, 3.1]))
