"""What a language model makes of text: its loss on whole works, the next words, a report."""

import heapq
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from rich.console import Console
from scipy.special import log_softmax

from zoo import generation
from zoo.backends import backend
from zoo.ngrams import NGrams
from zoo.runs import Run
from zoo.text import Vocabulary, Windows, check_ids, split_works

Tensor = Any
Ids = tuple[int, ...]
Predict = Callable[[Sequence[Ids]], np.ndarray]

_ROWS = 32  # sequences that the model is asked of at once
_TOP_K = 40  # tokens that a text is drawn from

_WORD = re.compile(r"(?:[^\W_]|')*[^\W_](?:[^\W_]|')*")  # letters and digits, and apostrophes
_WORD_END = re.compile(r"(?:[^\W_]|')*\Z")
_WORD_HEAD = re.compile(r"(?:[^\W_]|')*")


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
    stepper = generation.stepwise(model)

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
            states: Sequence[Any] = generation.initial_states(stepper, len(batch))
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


def next_token(model: keras.Model) -> Predict:
    """Compiles a function from sequences of token ids to log-probabilities of the token after each.

    It keeps the state after each sequence it has read, so that one token more is one step.

    Args:
        model: an `rnn_language_model`.

    Returns:
        A function of N tuples of ids to (N, V) float64. It raises ValueError if one is empty or
        holds an id outside the vocabulary.
    """
    stepper = generation.stepwise(model)

    def step(*arrays: Tensor) -> Any:
        return stepper([ops.convert_to_tensor(array) for array in arrays], training=False)

    forward = backend.forward(stepper, step)
    zeros = generation.initial_states(stepper, _ROWS)
    known: dict[Ids, list[np.ndarray]] = {(): [state[0] for state in zeros]}

    def read(sequences: Sequence[Ids]) -> np.ndarray:
        """One step for sequences whose beginnings are known, in rows that are always as many."""
        last = np.zeros((_ROWS, 1), np.int32)
        states = [state.copy() for state in zeros]
        for row, ids in enumerate(sequences):
            last[row] = ids[-1]
            for state, kept in zip(states, known[ids[:-1]]):
                state[row] = kept
        logits, *after = (
            ops.convert_to_numpy(ops.cast(x, "float32")) for x in forward(last, *states)
        )
        for row, ids in enumerate(sequences):
            known[ids] = [state[row] for state in after]
        return np.asarray(log_softmax(logits[: len(sequences), -1].astype(np.float64), axis=-1))

    def predict(sequences: Sequence[Ids]) -> np.ndarray:
        for ids in sequences:
            if not ids:
                raise ValueError("`ids` must not be empty. Received: (). Give a token at least")
            check_ids(np.array(ids), int(model.output.shape[-1]))
            for length in range(1, len(ids)):
                if ids[:length] not in known:
                    read([ids[:length]])
        return np.concatenate(
            [read(sequences[first : first + _ROWS]) for first in range(0, len(sequences), _ROWS)]
        )

    return predict


def next_words(
    predict: Predict,
    vocabulary: Vocabulary,
    prompt: str,
    count: int = 5,
    tolerance: float = 5e-3,
    most: int = 1000,
) -> list[tuple[str, float]]:
    """The likeliest next words, whatever tokens they are made of.

    A word is letters, digits and apostrophes; it ends where a token begins with something else.
    The prompt's last word is taken to be whole. What stands before the next word (a space, a comma,
    a new line) does not matter: its probability is the sum over all the ways to it.

    The search is best first: the likeliest beginnings of words are taken up, the model is asked for
    the token after each, and each token ends the word or makes a longer beginning. It is over when
    the beginnings left could add no more than `tolerance` to any word, found or not.

    Args:
        predict: from sequences of ids to log-probabilities of the next token, as of `next_token`.
        vocabulary: of the tokens.
        prompt: the text before.
        count: how many words, at least 1.
        tolerance: what a word's probability may lack.
        most: the beginnings taken up at most, or a few more. A model that has not learnt anything
            has no likeliest words to be found.

    Returns:
        (word, probability), the likeliest first.

    Raises:
        ValueError: for an empty prompt, or one that `vocabulary` cannot encode.
    """
    prompt = prompt.rstrip(" ")  # the space belongs to the token of the next word
    start = tuple(vocabulary.encode(prompt, "prompt").tolist())
    tokens = vocabulary.tokens
    ends_word = np.array([not _head(token) for token in tokens])  # (V,)
    first_words = [_read(token)[0] for token in tokens]

    words: dict[str, float] = defaultdict(float)
    left: dict[str, float] = defaultdict(float, {"": 1.0})  # not taken up yet, by the word so far
    rare = np.zeros(len(tokens))  # nor ever, by the token that a word would begin with
    order = itertools.count()
    queue = [(-1.0, next(order), start, "")]
    asked = 0
    while queue and asked < most and _most_to_come(left, rare, first_words) > tolerance:
        taken = [heapq.heappop(queue) for _ in range(min(_ROWS, len(queue)))]
        asked += len(taken)
        answers = np.exp(predict([ids for _, _, ids, _ in taken]))
        for (negative, _, ids, begun), probabilities in zip(taken, answers):
            left[begun] += negative
            probabilities[vocabulary.BEGIN] = 0  # another work: there is no next word
            if ids == start and _head(prompt[-1]):
                probabilities[~ends_word] = 0
                probabilities /= probabilities.sum()
            probabilities *= -negative
            if _WORD.fullmatch(begun):
                words[begun] += float(probabilities[ends_word].sum())
                probabilities[ends_word] = 0
            # Ways that are less likely by far are not followed, but counted as left.
            followed = np.flatnonzero(probabilities > tolerance / 1000)
            others = probabilities.copy()
            others[followed] = 0
            if begun:
                left[begun] += float(others.sum())
            else:
                rare += others
            for token in followed.tolist():
                probability = float(probabilities[token])
                word, ended = _read(begun + tokens[token])
                if ended:
                    words[word] += probability
                    continue
                left[word] += probability
                heapq.heappush(queue, (-probability, next(order), (*ids, token), word))
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))[:count]


def _head(token: str) -> str:
    found = _WORD_HEAD.match(token)
    return found.group() if found else ""


def _read(text: str) -> tuple[str, bool]:
    """The first word, and whether it has ended; else the beginning of one, which may be empty."""
    found = _WORD.search(text)
    if found:
        return found.group(), found.end() < len(text)
    end = _WORD_END.search(text)
    return end.group() if end else "", False


def _most_to_come(left: Mapping[str, float], rare: np.ndarray, first_words: Sequence[str]) -> float:
    """What a single word could still gain: the sum over its beginnings, at its most."""
    gains: dict[str, float] = defaultdict(float)
    for word, probability in itertools.chain(left.items(), zip(first_words, rare.tolist())):
        # An apostrophe alone may yet be a quotation mark, and any word come after it.
        gains[word if word.strip("'") else ""] += probability
    most = 0.0
    beginnings: list[tuple[str, float]] = []  # of the word, each with the sum so far
    for word in sorted(gains):
        while beginnings and not word.startswith(beginnings[-1][0]):
            beginnings.pop()
        total = gains[word] + (beginnings[-1][1] if beginnings else 0.0)
        beginnings.append((word, total))
        most = max(most, total)
    return most


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
    ticks = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)  # ticks outside would widen it
    axes.set(xlabel="epoch", ylabel="perplexity", xticks=epochs)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_losses(losses: Sequence[float], last: Mapping[str, float]) -> Figure:
    """The loss of every training step and its running mean, and what it came to in validation.

    Args:
        losses: in nats a token.
        last: has `validation_loss`, likewise.
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
    axes.set(xlabel="step", ylabel="nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


class Writer:
    """Writes on from a prompt.

    Made before a long training, it refuses at once what it would refuse at the end.

    Args:
        vocabulary: the model's.
        prompt: what stands before.
        seed: of the text.
        temperature: of the text, as in `zoo.generation.stream`.

    Raises:
        ValueError: for an empty prompt, one that `vocabulary` cannot encode, or `temperature` below
            0.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: str, seed: int = 0, temperature: float = 1.0
    ):
        if not temperature >= 0:
            raise ValueError(
                f"`temperature` must be 0 or more. Received: temperature={temperature}"
            )
        self.vocabulary = vocabulary
        self.prompt = prompt.rstrip(" ")
        self.ids = vocabulary.encode(self.prompt, "prompt")
        self.seed = seed
        self.temperature = temperature

    def write(self, model: keras.Model, console: Console, count: int = 300) -> None:
        """Prints the prompt and so many tokens after it, as they come."""

        def show(text: str) -> None:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

        show(self.prompt)
        drawn = generation.stream(
            model, [self.ids], count, self.seed, self.temperature, top_k=_TOP_K
        )
        for (token,) in drawn:
            show(self.vocabulary.tokens[token])
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
                "`run_dir` must hold a finished run of recipes/shakespeare.py or "
                f"recipes/next_word.py. Received: {folder}, which has no {name}"
            )
    model = keras.models.model_from_json((folder / "model.json").read_text())
    model.load_weights(folder / "model.weights.h5")
    return model, Vocabulary.load(folder / "vocabulary.json")
