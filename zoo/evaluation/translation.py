"""Translations evaluated: BLEU and chrF, baselines, and plots of cross-attention."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

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
from zoo.validation import (
    Beams,
    Count,
    TextList,
    TokenSequences,
    Vocabulary,
    check_lengths,
    each,
    instance,
    validated,
)

Pairs = Annotated[Sequence[Pair], each(instance(Pair), 1)]


@validated
def unigram_loss(
    train: TokenSequences, vocabulary_size: Vocabulary
) -> Callable[[Sequence[np.ndarray]], float]:
    """The loss of a model that knows the frequencies of tokens only, in nats a token.

    Args:
        train: Token ids of the training sentences, whose tokens are counted.
        vocabulary_size: Number of tokens in the vocabulary.

    Returns:
        A function of sentences' token ids that gives the mean loss, sentence ends included.
    """

    def with_ends(ids: np.ndarray) -> np.ndarray:
        return np.pad(ids, 1)

    unigrams = NGrams(1, vocabulary_size).fit(map(with_ends, train))

    def mean_loss(targets: Sequence[np.ndarray]) -> float:
        losses = [unigrams.log_probabilities(with_ends(ids)) for ids in targets]
        return -float(np.concatenate(losses).mean())

    return mean_loss


@validated
def scores(hypotheses: TextList, references: TextList) -> dict[str, float]:
    """BLEU and chrF of a corpus, from 0 to 100, by sacreBLEU with its own settings.

    Source: Post, "A Call for Clarity in Reporting BLEU Scores", 2018.
    """
    check_lengths(hypotheses=hypotheses, references=references)
    return {
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references]).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
    }


@validated
def baselines(train: Pairs, test: Pairs) -> dict[str, list[str]]:
    """Translations of the test set without a model, by the name of the method.

    "copied_source" copies the source. "most_frequent_word" repeats the most frequent word of the
    training translations for each word of the source. "word_by_word" replaces each word by the one
    with the largest Dice coefficient: 2 · pairs with both / (pairs with the one + pairs with the
    other).
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
    """For each source word the target word with the largest Dice coefficient."""
    sources: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    both: dict[str, Counter[str]] = {}
    for pair in train:
        target_words = set(pair.target.split())
        targets.update(target_words)
        for word in set(pair.source.split()):
            sources[word] += 1
            both.setdefault(word, Counter()).update(target_words)
    return {
        # Ties go to the last word in the alphabet, so that each run gives the same dictionary.
        word: max(pairs, key=lambda w: (2 * pairs[w] / (sources[word] + targets[w]), w))
        for word, pairs in both.items()
    }


@validated
def write_report(
    run: RunDirectory,
    history: keras.callbacks.History,
    model: keras.Model,
    tokenizer: Tokenizer,
    parts: Mapping[str, Pairs],
    console: Console,
    num_beams: Beams = 4,
    test_pairs: Count | None = None,
) -> dict[str, float]:
    """Translates the test set and compares the scores with baselines; prints and plots them.

    Args:
        run: Run directory, for perplexity.png, attention.png and translations.tsv.
        history: History of the training, with the metrics `nats` and `val_nats`.
        model: Transformer trained on the ids of `tokenizer`.
        tokenizer: Tokenizer of both languages.
        parts: Sentence pairs of "train", "validation" and "test".
        console: Console for the scores and some examples.
        num_beams: Number of beams of the beam search.
        test_pairs: Number of test pairs to translate, evenly from all books. By default all.

    Returns:
        `bleu` and `chrf`, the baselines' as `copied_source_bleu` and so on, `test_pairs`, and
        `unigram_test_loss`, the loss of token frequencies alone, in nats a token.
    """
    ids = {part: [tokenizer.encode(pair.target) for pair in parts[part]] for part in parts}
    unigram = unigram_loss(ids["train"], len(tokenizer))
    validation = {"unigram": unigram(ids["validation"])}
    run.save_plot("perplexity.png", plot_perplexity(history, validation, "nats"))
    count = min(test_pairs or len(parts["test"]), len(parts["test"]))
    test = [parts["test"][index] for index in _spread(len(parts["test"]), count)]
    sources, references = [p.source for p in test], [p.target for p in test]
    hypotheses = translate(model, tokenizer, sources, num_beams, verbose=not console.quiet)
    sentence = min(sources, key=lambda text: abs(len(text) - 60))  # fits a page
    figure = plot_cross_attention(model, tokenizer, sentence)
    run.save_plot("attention.png", figure)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["verse", "source", "target", "model"])
    writer.writerows([*pair, hypothesis] for pair, hypothesis in zip(test, hypotheses))
    run.write("translations.tsv", text.getvalue().encode())
    table = Table("translation", "BLEU", "chrF")
    results: dict[str, float] = {"unigram_test_loss": unigram(ids["test"]), "test_pairs": count}
    for name, translations in {"": hypotheses, **baselines(parts["train"], test)}.items():
        by_metric = scores(translations, references)
        label = name.replace("_", " ") or "the model's"
        table.add_row(label, *(f"{score:.1f}" for score in by_metric.values()))
        results |= {f"{name}_{metric}".strip("_"): score for metric, score in by_metric.items()}
    console.print(_examples(test, hypotheses))
    console.print(table)
    return results


def _spread(length: int, count: int) -> list[int]:
    """`count` indices of a list, evenly from its beginning to its end."""
    return [int(index) for index in np.linspace(0, length - 1, count)]


def _examples(test: Sequence[Pair], hypotheses: Sequence[str], count: int = 6) -> Table:
    """A table of verses from all over the test set, with the model's translations."""
    table = Table("verse", "source", "the model's", "reference", show_lines=True)
    for index in _spread(len(test), min(count, len(test))):
        pair = test[index]
        table.add_row(pair.verse, pair.source, hypotheses[index], pair.target)
    return table


@validated
def plot_cross_attention(model: keras.Model, tokenizer: Tokenizer, source: str) -> Figure:
    """Plots the cross-attention weights of the last block for a greedy translation.

    Args:
        model: Transformer trained on the ids of `tokenizer`.
        tokenizer: Tokenizer of both languages.
        source: Sentence to translate.
    """
    bos = Tokenizer.BOS
    ids = tokenizer.encode(source)
    (translation,) = generate(
        model, [[bos]], 2 * len(ids), temperature=0.0, stop_tokens=[bos], sources=[ids]
    )
    maps: Mapping[str, np.ndarray] = attention_maps(
        model, [ids[None], np.array([[bos, *translation[:-1]]])]
    )
    *_, weights = (array for path, array in maps.items() if path.endswith("cross_attention"))
    tokens = [*tokenizer.tokens[:bos], "end", *tokenizer.tokens[bos + 1 :]]
    return plot_attention(weights[0], [tokens[i] for i in translation], [tokens[i] for i in ids])
