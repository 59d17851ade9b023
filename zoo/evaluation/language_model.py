"""What a language model makes of text: its loss, a report, what it writes after a prompt."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console

from zoo.backends import backend
from zoo.datasets.token_windows import TokenWindows, split_documents
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation.ngrams import NGrams
from zoo.evaluation.plots import plot_perplexity
from zoo.generation import decoding
from zoo.training.run_directory import RunDirectory

Tensor = Any


def document_loss(
    model: keras.Model, chunk: int = 128, batch_size: int = 8
) -> Callable[[np.ndarray], float]:
    """Compiles the mean loss on whole works, in nats a token.

    The state is carried through each work, so that every token but the first is predicted from all
    that stand before it in its work.

    Args:
        model: an `rnn_language_model`.
        chunk: tokens that are read at once; it changes the memory, not the loss.
        batch_size: works that are read side by side, likewise.

    Returns:
        A function of works' ids, (N,) as of `zoo.datasets.token_windows.encode_to_disk`, to the
        mean over all tokens but each work's first. It raises ValueError if there are none.
    """
    stepper = decoding.with_explicit_states(model)

    def losses(ids: Tensor, targets: Tensor, *states: Tensor) -> list[Tensor]:
        inputs = [ops.convert_to_tensor(array) for array in (ids, *states)]
        logits, *after = stepper(inputs, training=False)
        logits = ops.cast(logits, "float32")
        return [backend.cross_entropy(ops.convert_to_tensor(targets), logits), *after]

    forward = backend.inference_function(stepper, losses)

    def mean_loss(ids: np.ndarray) -> float:
        total, count = 0.0, 0
        # Works of like length side by side, so that none waits long for another.
        works = sorted(split_documents(ids), key=len, reverse=True)
        for first in range(0, len(works), batch_size):
            batch = works[first : first + batch_size]
            states: Sequence[Any] = decoding.initial_states(stepper, len(batch))
            for start in range(0, len(batch[0]) - 1, chunk):
                pieces = np.zeros((len(batch), chunk + 1), np.int32)
                predicted = np.zeros((len(batch), chunk), bool)
                for row, work in enumerate(batch):
                    piece = work[start : start + chunk + 1]
                    pieces[row, : len(piece)] = piece
                    predicted[row, : max(len(piece) - 1, 0)] = True
                found, *states = forward(pieces[:, :-1], pieces[:, 1:], *states)
                total += float(ops.convert_to_numpy(found)[predicted].sum(dtype=np.float64))
                count += int(predicted.sum())
        if not count:
            raise ValueError("`ids` must hold a work of two tokens or more. Received: none")
        return total / count

    return mean_loss


def window_loss(
    model: keras.Model, length: int, batch_size: int = 64
) -> Callable[[np.ndarray], float]:
    """Compiles the mean loss on pieces of a text, in nats a token.

    The text is cut into pieces of `length` tokens; each token but the first is predicted from those
    before it in its piece.

    Args:
        model: from ids to logits, such as a `gpt`.
        length: of a piece; the last one is left out if it is shorter.
        batch_size: pieces that are read at once; it changes the memory, not the loss.

    Returns:
        A function of ids, (N,) integers, to the mean over all tokens predicted.
    """

    def losses(ids: Tensor) -> Tensor:
        ids = ops.convert_to_tensor(ids)
        logits = ops.cast(model(ids[:, :-1], training=False), "float32")
        return backend.cross_entropy(ids[:, 1:], logits)

    forward = backend.inference_function(model, losses)

    def mean_loss(ids: np.ndarray) -> float:
        pieces = TokenWindows(ids, length)
        total = 0.0
        for first in range(0, len(pieces), batch_size):
            # The last batch is filled up, so that one shape is compiled.
            numbers = np.arange(first, first + batch_size)
            found = ops.convert_to_numpy(forward(*pieces(np.minimum(numbers, len(pieces) - 1))))
            total += float(found[numbers < len(pieces)].sum(dtype=np.float64))
        return total / (len(pieces) * length)

    return mean_loss


def scores(part: str, loss: float) -> dict[str, float]:
    """A loss in nats a token with its perplexity, named after a part of the works."""
    return {f"{part}_loss": loss, f"{part}_perplexity": math.exp(loss)}


def write_report(
    run: RunDirectory,
    history: Sequence[Mapping[str, float]],
    ids: Mapping[str, np.ndarray],
    mean_loss: Callable[[np.ndarray], float],
    vocabulary_size: int,
    console: Console,
) -> dict[str, float]:
    """Holds a model against n-grams on the same tokens; prints the scores, draws and returns them.

    Args:
        run: where the plot goes.
        history: a row an epoch, with `loss` and `validation_loss`.
        ids: of the parts "train", "validation" and "test".
        mean_loss: the model's, as `work_loss` gives it.
        vocabulary_size: how many tokens there are.
        console: where the scores are printed.

    Returns:
        `test_loss` and `test_perplexity`, of a token, and the n-grams' as `bigram_test_loss` and so
        on.
    """
    works = {part: split_documents(array) for part, array in ids.items()}
    test, validation = {"": mean_loss(ids["test"])}, {}
    for order, name in enumerate(("unigram", "bigram", "trigram"), 1):
        counted = NGrams(order, vocabulary_size).fit(works["train"])
        test[f"{name}_"], validation[name] = (
            -float(np.concatenate([counted.log_probabilities(work) for work in works[part]]).mean())
            for part in ("test", "validation")
        )
    found: dict[str, float] = {}
    for name, loss in test.items():
        found |= scores(f"{name}test", loss)
        who = name.strip("_") or "the model"
        console.print(f"Test loss {loss:.4f}, test perplexity {math.exp(loss):6.1f}: {who}")
    plot_perplexity(history, validation).savefig(run.path / "perplexity.png", dpi=120)
    return found


def bits_per_character(loss: float, ids: np.ndarray, vocabulary: Tokenizer) -> float:
    """From a mean loss in nats a token of a text, (N,) ids."""
    return loss / math.log(2) * len(ids) / len(vocabulary.decode(ids))
