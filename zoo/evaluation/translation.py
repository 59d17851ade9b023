"""What a transformer makes of sentence pairs: its loss, translations, and how good they are."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import sacrebleu
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from zoo.datasets.parallel_text import Pair
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation.attention_maps import attention_maps, plot_attention
from zoo.evaluation.ngrams import NGrams
from zoo.evaluation.plots import plot_perplexity
from zoo.generation.sampling import generate
from zoo.generation.translate import translate
from zoo.training.run_directory import RunDirectory

Tensor = Any


def unigram_loss(
    train: Sequence[np.ndarray], vocabulary_size: int
) -> Callable[[Sequence[np.ndarray]], float]:
    """The same of a model that knows how frequent tokens are, and nothing else."""

    def with_ends(ids: np.ndarray) -> np.ndarray:
        return np.pad(ids, 1)

    counted = NGrams(1, vocabulary_size).fit(map(with_ends, train))

    def mean_loss(targets: Sequence[np.ndarray]) -> float:
        found = [counted.log_probabilities(with_ends(ids)) for ids in targets]
        return -float(np.concatenate(found).mean())

    return mean_loss


# ------------------------------------------------------------------ how good they are


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of a corpus, from 0 to 100, by sacreBLEU with its own settings.

    Source: Post, "A Call for Clarity in Reporting BLEU Scores", 2018.
    """
    return {
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references]).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
    }


def baselines(train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, list[str]]:
    """Translations by those who know nothing: the source itself, and the most frequent words.

    "most_frequent_word" says the most frequent word of the translations once a word of the source.
    "word_by_word" says for each word of the source the one that goes with it most, as Dice measures
    it: 2 · pairs with both / (pairs with the one + pairs with the other).
    """
    words: Counter[str] = Counter()
    for pair in train:
        words.update(pair.target.split())
    ((most_frequent, _),) = words.most_common(1)
    dictionary = _dictionary(train)
    return {
        "copied_source": [pair.source for pair in test],
        "most_frequent_word": [
            " ".join([most_frequent] * len(pair.source.split())) for pair in test
        ],
        "word_by_word": [
            " ".join(dictionary.get(word, word) for word in pair.source.split()) for pair in test
        ],
    }


def _dictionary(train: Sequence[Pair]) -> dict[str, str]:
    sources: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    both: dict[str, Counter[str]] = {}
    for pair in train:
        theirs = set(pair.target.split())
        targets.update(theirs)
        for word in set(pair.source.split()):
            sources[word] += 1
            both.setdefault(word, Counter()).update(theirs)
    return {
        # Of those that are alike the last in the alphabet, so that it is the same in each run.
        word: max(counted, key=lambda w: (2 * counted[w] / (sources[word] + targets[w]), w))
        for word, counted in both.items()
    }


def write_report(
    run: RunDirectory,
    history: Sequence[Mapping[str, float]],
    model: keras.Model,
    vocabulary: Tokenizer,
    parts: Mapping[str, Sequence[Pair]],
    console: Console,
    num_beams: int = 4,
    test_pairs: int | None = None,
) -> dict[str, float]:
    """Translates the test set and holds it against the baselines; prints, draws, returns scores.

    Args:
        run: where `perplexity.png`, `attention.png` and `translations.tsv` go.
        history: a row an epoch, as a `translation_objective` gives it.
        model: as for `translate`.
        vocabulary: likewise.
        parts: the pairs of "train", "validation" and "test".
        console: where the scores and some examples are printed.
        num_beams: as for `translate`.
        test_pairs: translate only that many, of all books; by default all.

    Returns:
        `bleu` and `chrf`, the baselines' as `copied_source_bleu` and so on, `test_pairs`, and
        `unigram_test_loss`, what frequencies alone come to, in nats a token.
    """
    ids = {part: [vocabulary.encode(pair.target) for pair in parts[part]] for part in parts}
    unigram = unigram_loss(ids["train"], len(vocabulary))
    unsmoothed = [{**row, "loss": row["nats"]} for row in history]
    plot_perplexity(unsmoothed, {"unigram": unigram(ids["validation"])}).savefig(
        run.path / "perplexity.png", dpi=120
    )
    count = min(test_pairs or len(parts["test"]), len(parts["test"]))
    test = [parts["test"][place] for place in _spread(len(parts["test"]), count)]
    sources, references = [p.source for p in test], [p.target for p in test]
    hypotheses = translate(model, vocabulary, sources, num_beams)
    shown = min(sources, key=lambda text: abs(len(text) - 60))  # fits a page
    plot_cross_attention(model, vocabulary, shown).savefig(run.path / "attention.png", dpi=120)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["reference", "source", "target", "model"])
    writer.writerows([*pair, hypothesis] for pair, hypothesis in zip(test, hypotheses))
    run.write("translations.tsv", text.getvalue().encode())
    table = Table("translation", "BLEU", "chrF")
    found: dict[str, float] = {"unigram_test_loss": unigram(ids["test"]), "test_pairs": count}
    for name, translations in {"": hypotheses, **baselines(parts["train"], test)}.items():
        by = scores(translations, references)
        table.add_row(name.replace("_", " ") or "the model's", *(f"{x:.1f}" for x in by.values()))
        found |= {f"{name}_{metric}".strip("_"): score for metric, score in by.items()}
    console.print(_examples(test, hypotheses))
    console.print(table)
    return found


def _spread(length: int, count: int) -> list[int]:
    """So many places of a list, evenly from its beginning to its end."""
    return [int(place) for place in np.linspace(0, length - 1, count)]


def _examples(test: Sequence[Pair], hypotheses: Sequence[str], count: int = 6) -> Table:
    """Some verses from all over the test set with what the model made of them."""
    table = Table("verse", "source", "the model's", "reference", show_lines=True)
    for place in _spread(len(test), min(count, len(test))):
        pair = test[place]
        table.add_row(pair.verse, pair.source, hypotheses[place], pair.target)
    return table


def plot_cross_attention(model: keras.Model, vocabulary: Tokenizer, source: str) -> Figure:
    """Where the last block's heads look in a source while they translate it, token by token."""
    begin = Tokenizer.BOS
    read = vocabulary.encode(source)
    (written,) = generate(
        model, [[begin]], 2 * len(read), temperature=0.0, stop_tokens=[begin], sources=[read]
    )
    maps: Mapping[str, np.ndarray] = attention_maps(
        model, [read[None], np.array([[begin, *written[:-1]]])]
    )
    *_, weights = (found for path, found in maps.items() if path.endswith("cross_attention"))
    tokens = [*vocabulary.tokens[:begin], "end", *vocabulary.tokens[begin + 1 :]]
    return plot_attention(weights[0], [tokens[i] for i in written], [tokens[i] for i in read])
