"""Language models evaluated: loss over whole documents, perplexity, and n-grams to compare with."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import keras
import numpy as np
from rich.console import Console

from zoo.datasets.token_windows import split_documents
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation.ngrams import NGrams
from zoo.evaluation.plots import plot_perplexity
from zoo.generation import recurrent_decoding
from zoo.training.losses import cross_entropy
from zoo.training.run_directory import RunDirectory
from zoo.validation import Number, Size, TokenArray, Vocabulary, number, validated

Tensor = Any


class DocumentLoss(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds `val_loss` and `val_perplexity` over whole documents to the logs of each epoch.

    Give it to `fit` before the callbacks that read `val_loss`.

    Args:
        network: An `rnn_language_model`.
        ids: Token ids of the validation documents, (N,), as `encode_to_disk` gives them.
    """

    @validated
    def __init__(self, network: keras.Model, ids: TokenArray):
        super().__init__()
        self._scorer = DocumentScorer(network)
        self._ids = ids

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs |= loss_and_perplexity("val", self._scorer.evaluate(self._ids))


class DocumentScorer:
    """Mean loss of a recurrent language model over whole documents, in nats a token.

    The state is carried through each document, so that every token but the first is predicted from
    all tokens before it.

    Args:
        network: An `rnn_language_model`.
        chunk: Number of tokens read at once; it changes the memory, not the loss.
        batch_size: Number of documents read side by side; it changes the memory, not the loss.
    """

    @validated
    def __init__(self, network: keras.Model, chunk: Size = 128, batch_size: Size = 8):
        recurrent_decoding.check_recurrent(network, "network")
        self._stateful = recurrent_decoding.with_explicit_states(network)
        targets = keras.Input((None,), dtype="int32", name="targets")
        logits, *states = self._stateful.outputs
        losses = _TokenLosses(dtype="float32", name="losses")(targets, logits)
        self._model = keras.Model([*self._stateful.inputs, targets], [losses, *states])
        self._chunk = chunk
        self._batch_size = batch_size

    @validated
    def evaluate(self, ids: TokenArray) -> float:
        """The mean loss over all tokens but each document's first.

        Args:
            ids: Token ids of the documents, (N,), as `encode_to_disk` gives them.

        Raises:
            ValueError: If no document has two tokens.
        """
        total, count = 0.0, 0
        # Documents of similar length side by side, so that little is padding.
        documents = sorted(split_documents(ids), key=len, reverse=True)
        for first in range(0, len(documents), self._batch_size):
            batch = documents[first : first + self._batch_size]
            states: list[Any] = recurrent_decoding.initial_states(self._stateful, len(batch))
            for start in range(0, len(batch[0]) - 1, self._chunk):
                windows = np.zeros((len(batch), self._chunk + 1), np.int32)
                predicted = np.zeros((len(batch), self._chunk), bool)
                for row, document in enumerate(batch):
                    window = document[start : start + self._chunk + 1]
                    windows[row, : len(window)] = window
                    predicted[row, : max(len(window) - 1, 0)] = True
                losses, *states = self._model.predict_on_batch(
                    [windows[:, :-1], *states, windows[:, 1:]]
                )
                total += float(losses[predicted].sum(dtype=np.float64))
                count += int(predicted.sum())
        if not count:
            raise ValueError("`ids` must hold a document of two tokens or more. Received: none")
        return total / count


class _TokenLosses(keras.layers.Layer):  # type: ignore[misc]
    """Cross-entropy of each token: labels (B, T) and logits (B, T, V) to (B, T)."""

    def call(self, labels: Tensor, logits: Tensor) -> Tensor:
        return cross_entropy(labels, logits)


@validated
def loss_and_perplexity(
    part: str, loss: Annotated[float, number("[-700, 700]")]
) -> dict[str, float]:
    """A loss in nats a token and its perplexity, by names such as `test_loss`."""
    return {f"{part}_loss": loss, f"{part}_perplexity": math.exp(loss)}


@validated
def bits_per_character(loss: Number, ids: TokenArray, tokenizer: Tokenizer) -> float:
    """Converts a mean loss in nats a token over a text, (N,) ids, to bits a character."""
    text = tokenizer.decode(ids)
    if not text:
        raise ValueError(f"`ids` must be those of a text. Received: {len(ids)} ids of no character")
    return loss / math.log(2) * len(ids) / len(text)


@validated
def write_report(
    run: RunDirectory,
    history: keras.callbacks.History,
    ids: Mapping[str, np.ndarray],
    test_loss: Number,
    vocabulary_size: Vocabulary,
    console: Console,
) -> dict[str, float]:
    """Compares a model with n-grams on the same tokens; prints the losses and plots perplexity.

    Args:
        run: Run directory, for perplexity.png.
        history: History of the training, with `loss` and `val_loss` in nats a token.
        ids: Token ids of "train", "validation" and "test", as `encode_to_disk` gives them.
        test_loss: Loss of the model on the test documents, in nats a token.
        vocabulary_size: Number of tokens in the vocabulary.
        console: Console for the losses.

    Returns:
        `test_loss` and `test_perplexity`, and those of the n-grams as `bigram_test_loss` and so on.
    """
    documents = {part: split_documents(array) for part, array in ids.items()}
    test, validation = {"": test_loss}, {}
    for order, name in enumerate(("unigram", "bigram", "trigram"), 1):
        ngrams = NGrams(order, vocabulary_size).fit(documents["train"])
        test[f"{name}_"], validation[name] = (
            -float(np.concatenate([ngrams.log_probabilities(d) for d in documents[part]]).mean())
            for part in ("test", "validation")
        )
    scores: dict[str, float] = {}
    for name, loss in test.items():
        scores |= loss_and_perplexity(f"{name}test", loss)
        model = name.strip("_") or "the model"
        console.print(f"Test loss {loss:.4f}, test perplexity {math.exp(loss):6.1f}: {model}")
    run.save_plot("perplexity.png", plot_perplexity(history, validation))
    return scores
