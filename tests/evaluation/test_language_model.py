"""Tests of the losses of language models, over whole documents and over windows."""

from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from zoo import Trainer, gpt, rnn_language_model
from zoo.datasets.token_windows import TokenWindows
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import language_model
from zoo.evaluation.language_model import DocumentLoss, DocumentScorer
from zoo.training import Batches, CrossEntropy

DOCUMENTS = [
    [0, *np.random.default_rng(i).integers(1, 12, size)] for i, size in enumerate((40, 7, 23))
]
IDS = np.concatenate(DOCUMENTS).astype(np.uint16)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return rnn_language_model(12, "lstm", embedding_dim=6, units=8, num_layers=2, dropout=0.5)


def log_probabilities(network: keras.Model, ids: list[int]) -> np.ndarray:
    """Log-probabilities (T, V) after each token, from the whole sequence at once."""
    (logits,) = network.predict_on_batch(np.array([ids], np.int32))
    return log_softmax(logits.astype(np.float64), axis=-1)


def document_loss(network: keras.Model) -> float:
    """The mean loss over whole documents, without a carried state."""
    likelihoods = [
        log_probabilities(network, ids)[np.arange(len(ids) - 1), ids[1:]] for ids in DOCUMENTS
    ]
    return -float(np.concatenate(likelihoods).mean())


@pytest.mark.parametrize(("chunk", "batch_size"), [(5, 2), (64, 8)])
def test_document_scorer_carries_the_state_through_each_document(
    network: keras.Model, chunk: int, batch_size: int
) -> None:
    loss = DocumentScorer(network, chunk, batch_size).evaluate(IDS)
    assert loss == pytest.approx(document_loss(network), rel=1e-5)  # measured: 1e-7


def test_document_scorer_rejects_documents_of_one_token(network: keras.Model) -> None:
    with pytest.raises(ValueError, match="must hold a document of two tokens or more"):
        DocumentScorer(network).evaluate(np.array([0, 0]))


def test_document_loss_is_in_the_logs_of_each_epoch_and_of_its_weights() -> None:
    """Callbacks after it, such as `EarlyStopping`, and the History read `val_loss`."""
    network = rnn_language_model(12, "gru", embedding_dim=4, units=4, dropout=0.5)
    expected = []

    class Expected(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert {"loss", "val_loss", "val_perplexity"} == set(logs)
            expected.append(document_loss(self.model.network))

    trainer = Trainer(network)
    trainer.compile(keras.optimizers.SGD(1.0), CrossEntropy())
    stopping = keras.callbacks.EarlyStopping("val_loss", min_delta=100.0, patience=1)
    history = trainer.fit(
        Batches(TokenWindows(IDS, 8), batch_size=8, seed=0),
        epochs=5,
        callbacks=[DocumentLoss(network, IDS), stopping, Expected()],
        verbose=0,
    ).history
    assert len(history["val_loss"]) == 2  # stopped early
    assert history["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert history["val_perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert expected[0] != expected[1]


def test_trainer_evaluate_gives_the_mean_loss_of_windows() -> None:
    """A last batch that is smaller counts by its windows."""
    network = gpt(12, max_length=8, num_layers=1, num_heads=1, hidden_dim=8)
    ids = IDS.astype(np.int32)
    windows = [ids[start : start + 8] for start in range(0, len(ids), 7)]
    windows = [window for window in windows if len(window) == 8]
    likelihoods = [log_probabilities(network, w.tolist())[np.arange(7), w[1:]] for w in windows]
    trainer = Trainer(network)
    trainer.compile(loss=CrossEntropy())
    assert len(windows) % 4
    loss = trainer.evaluate(Batches(TokenWindows(ids, 7), batch_size=4), verbose=0)
    assert loss == pytest.approx(-np.mean(likelihoods), rel=1e-5)


@pytest.mark.once
def test_bits_per_character_of_characters() -> None:
    tokenizer = Tokenizer.characters(["to be"])
    ids = tokenizer.encode("to be to be")
    assert language_model.bits_per_character(np.log(2), ids, tokenizer) == pytest.approx(1)
