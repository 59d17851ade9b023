"""What a language model makes of text: its loss, a report, what it writes after a prompt."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from rich.console import Console

from zoo import generation, reading
from zoo.backends import backend
from zoo.ngrams import NGrams
from zoo.runs import Run
from zoo.text import Vocabulary, Windows, split_works
from zoo.words import next_token, next_words

Tensor = Any

_TOP_K = 40  # tokens that a text is drawn from


def work_loss(
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
        A function of works' ids, (N,) as of `zoo.text.encode_to_disk`, to the mean over all tokens
        but each work's first. It raises ValueError if there are none.
    """
    stepper = reading.stepwise(model)

    def losses(ids: Tensor, targets: Tensor, *states: Tensor) -> list[Tensor]:
        inputs = [ops.convert_to_tensor(array) for array in (ids, *states)]
        logits, *after = stepper(inputs, training=False)
        logits = ops.cast(logits, "float32")
        return [backend.cross_entropy(ops.convert_to_tensor(targets), logits), *after]

    forward = backend.forward(stepper, losses)

    def mean_loss(ids: np.ndarray) -> float:
        total, count = 0.0, 0
        # Works of like length side by side, so that none waits long for another.
        works = sorted(split_works(ids), key=len, reverse=True)
        for first in range(0, len(works), batch_size):
            batch = works[first : first + batch_size]
            states: Sequence[Any] = reading.initial_states(stepper, len(batch))
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

    forward = backend.forward(model, losses)

    def mean_loss(ids: np.ndarray) -> float:
        pieces = Windows(ids, length)
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
    run: Run,
    history: Sequence[Mapping[str, float]],
    ids: Mapping[str, np.ndarray],
    mean_loss: Callable[[np.ndarray], float],
    vocabulary_size: int,
    console: Console,
) -> dict[str, float]:
    """Holds a model against n-grams on the same tokens; prints the scores, draws and returns them.

    Args:
        run: where the plot goes.
        history: a row an epoch, with `loss` and `validation_loss`, as `zoo.training.fit` makes it.
        ids: of the parts "train", "validation" and "test", as of `zoo.text.encode_to_disk`.
        mean_loss: the model's, as `work_loss` gives it.
        vocabulary_size: how many tokens there are.
        console: where the scores are printed.

    Returns:
        `test_loss` and `test_perplexity`, of a token, and the n-grams' as `bigram_test_loss` and so
        on.
    """
    works = {part: split_works(array) for part, array in ids.items()}
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


class Writer:
    """Writes on from a prompt, or translates it.

    Made before a long training, it refuses at once what it would refuse at the end.

    Args:
        vocabulary: the model's.
        prompt: what stands before, or is to be translated.
        seed: of the text.
        temperature: of the text, as in `zoo.generation.stream`; by default 0.8, and 0 of a
            translation.

    Raises:
        ValueError: for an empty prompt, one that `vocabulary` cannot encode, or `temperature` below
            0.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: str,
        seed: int = 0,
        temperature: float | None = None,
    ):
        if temperature is not None and not temperature >= 0:
            raise ValueError(
                f"`temperature` must be 0 or more. Received: temperature={temperature}"
            )
        self.vocabulary = vocabulary
        self.prompt = prompt.rstrip(" ")
        self.ids = vocabulary.encode(self.prompt, "prompt")
        self.seed = seed
        self.temperature = temperature

    def write(self, model: keras.Model, console: Console, count: int = 300) -> None:
        """Prints the prompt and so many tokens after it, or its translation, as they come."""

        def show(text: str) -> None:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

        options: dict[str, Any] = {"seed": self.seed, "top_k": _TOP_K}
        if reading.reads_sources(model):
            begin = Vocabulary.BEGIN
            prompts: list[Any] = [[begin]]
            options |= {"sources": [self.ids], "stop_tokens": [begin]}
            temperature = 0.0
        else:
            show(self.prompt)
            prompts, temperature = [self.ids], 0.8
        if self.temperature is not None:
            temperature = self.temperature
        written: list[int] = []
        shown = ""
        for (token,) in generation.stream(
            model, prompts, count, temperature=temperature, **options
        ):
            written.append(token)
            text = self.vocabulary.decode(np.array(written))
            if not text.endswith("\ufffd"):  # a character may be several tokens
                show(text[len(shown) :])
                shown = text
        show("\n")


class Answer(Writer):
    """What a recurrent model says after a prompt: the five likeliest words, and then a text."""

    def write(self, model: keras.Model, console: Console, count: int = 120) -> None:
        """Asks an `rnn_language_model`, and prints what it says."""
        words = next_words(next_token(model), self.vocabulary, self.prompt)
        likeliest = ", ".join(f"{word} {probability:.1%}" for word, probability in words)
        console.print(f"After {self.prompt!r}: {likeliest}\n", markup=False, highlight=False)
        super().write(model, console, count)


def bits_per_character(loss: float, ids: np.ndarray, vocabulary: Vocabulary) -> float:
    """From a mean loss in nats a token of a text, (N,) ids."""
    return loss / math.log(2) * len(ids) / len(vocabulary.decode(ids))


def load_run(folder: Path) -> tuple[keras.Model, Vocabulary]:
    """The model and the vocabulary of a finished run of a language model.

    Raises:
        ValueError: if the directory holds no such run; the text names the file that is missing.
    """
    folder = Path(folder)
    for name in ("metrics.json", "model.json", "model.weights.h5", "vocabulary.json"):
        if not (folder / name).exists():
            raise ValueError(
                "`run_dir` must hold a finished run of recipes/shakespeare.py, "
                "recipes/translate.py or recipes/next_word.py. "
                f"Received: {folder}, which has no {name}"
            )
    model = keras.models.model_from_json((folder / "model.json").read_text())
    model.load_weights(folder / "model.weights.h5")
    return model, Vocabulary.load(folder / "vocabulary.json")
