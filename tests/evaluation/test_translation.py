"""Loss, baselines and scores of translations."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax

from zoo import transformer
from zoo.datasets.parallel_text import LengthBuckets, Pair
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import translation
from zoo.generation import translate
from zoo.training import losses

SIZES = {"max_length": 48, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "dropout": 0.0}
SOURCES = [np.array([3, 4, 5]), np.array([6, 7])]
TARGETS = [np.array([8, 9]), np.array([9, 3, 4, 5])]
PAIRS = [
    Pair("A 1:1", "the house", "la casa"),
    Pair("A 1:2", "the garden", "el jardín de la casa"),
    Pair("A 1:3", "a house", "una casa"),
    Pair("A 1:4", "a dog", "el perro de la casa"),
]


def made() -> keras.Model:
    return transformer(10, 10, **SIZES)


def losses_by_hand(model: keras.Model, smoothing: float) -> np.ndarray:
    """Of every token of each translation, its end included."""
    found = []
    for source, target in zip(SOURCES, TARGETS):
        read, labels = np.array([[0, *target]]), [*target, 0]
        logs = log_softmax(ops.convert_to_numpy(model([source[None], read]))[0], axis=-1)
        hard = logs[np.arange(len(labels)), labels]
        found.append(-(1 - smoothing) * hard - smoothing * logs.mean(-1))
    return np.concatenate(found)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_counts_tokens_and_ends_and_no_padding(smoothing: float) -> None:
    model = made()
    (batch,) = [LengthBuckets(SOURCES, TARGETS, 64)(np.array([0]))]
    loss, metrics = losses.translation_objective(model, smoothing)(*batch, 0)
    loss, nats = (float(ops.convert_to_numpy(x)) for x in (loss, metrics["nats"]))
    assert loss == pytest.approx(losses_by_hand(model, smoothing).mean(), rel=1e-5)
    assert nats == pytest.approx(losses_by_hand(model, 0.0).mean(), rel=1e-5)


def test_the_mean_loss_of_many_batches() -> None:
    model = made()
    expected = losses_by_hand(model, 0.0).mean()
    for tokens in (16, 512):  # one pair a batch, or all in one
        found = losses.pair_loss(model)(LengthBuckets(SOURCES, TARGETS, tokens))
        assert found == pytest.approx(expected, rel=1e-5)


def test_smoothing_is_keras_own() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4, 7)).astype(np.float32)
    labels = generator.integers(0, 7, 4)
    found = losses.smoothed_cross_entropy(
        ops.convert_to_tensor(labels), ops.convert_to_tensor(logits), 0.1
    )
    theirs = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1, reduction=None
    )
    expected = ops.convert_to_numpy(theirs(np.eye(7)[labels], logits))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"`smoothing` must lie in \[0, 1\)"):
        losses.translation_objective(made(), smoothing)


def test_a_model_of_frequencies() -> None:
    """By hand: of 1, 1, 1, 2 and the end, 0.75 is taken from each count and shared by all three."""
    mean_loss = translation.unigram_loss([np.array([1, 1, 1, 2])], 3)
    expected = -(np.log(0.6) + 2 * np.log(0.2)) / 3
    assert mean_loss([np.array([1, 2])]) == pytest.approx(expected)


def test_baselines() -> None:
    found = translation.baselines(PAIRS, [Pair("B 1:1", "the dog barks", "el perro ladra")])
    assert found["copied_source"] == ["the dog barks"]
    assert found["most_frequent_word"] == ["casa casa casa"]
    (words,) = found["word_by_word"]
    # "the" stands beside "la" and "casa" alike.
    assert words == "la perro barks"


def test_scores_are_perfect_only_for_the_reference() -> None:
    references = ["el perro ladra en la casa", "la casa es blanca y grande"]
    perfect = translation.scores(references, references)
    assert perfect == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    worse = translation.scores(["el gato ladra en la casa", "la casa"], references)
    assert 0 < worse["bleu"] < 100
    assert 0 < worse["chrf"] < 100


def test_translations_come_in_the_texts_order_whatever_the_batch() -> None:
    texts = ["the house", "a dog and a garden and a house", "a"]
    vocabulary = Tokenizer.train([*texts, "casa"], 40)
    model = transformer(len(vocabulary), len(vocabulary), **SIZES, tie_embeddings=False)
    together = translate.translate(model, vocabulary, texts, num_beams=1, batch_size=4)
    for text, translated in zip(texts, together):
        (alone,) = translate.translate(model, vocabulary, [text], num_beams=1, batch_size=2)
        # One that does not end is cut where the longest of its batch may end.
        assert translated.startswith(alone)
