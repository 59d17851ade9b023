"""Tests of the loss, the baselines and the scores of translations."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from zoo import Trainer, transformer
from zoo.datasets.parallel_text import LengthBuckets, Pair
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import translation
from zoo.generation import translate
from zoo.training import Batches, CrossEntropy
from zoo.training.losses import cross_entropy

SIZES = {"max_length": 48, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "dropout": 0.0}
SOURCES = [np.array([3, 4, 5]), np.array([6, 7]), np.array([5, 8, 3])]
TARGETS = [np.array([8, 9]), np.array([9, 3, 4, 5]), np.array([4, 6])]
PAIRS = [
    Pair("A 1:1", "the house", "la casa"),
    Pair("A 1:2", "the garden", "el jardín de la casa"),
    Pair("A 1:3", "a house", "una casa"),
    Pair("A 1:4", "a dog", "el perro de la casa"),
]


def token_losses(network: keras.Model, pairs: int, label_smoothing: float) -> np.ndarray:
    """Losses of all tokens of the first translations, their ends included, pair by pair."""
    losses = []
    for source, target in zip(SOURCES[:pairs], TARGETS):
        decoder_input, labels = np.array([[0, *target]]), [*target, 0]
        (logits,) = network.predict_on_batch([source[None], decoder_input])
        logs = log_softmax(logits, axis=-1)
        hard = logs[np.arange(len(labels)), labels]
        losses.append(-(1 - label_smoothing) * hard - label_smoothing * logs.mean(-1))
    return np.concatenate(losses)


def test_evaluate_counts_tokens_and_ends_and_no_padding() -> None:
    """Of one batch of two pairs, and of two batches: one pair and a row of padding more.

    The metric "nats" weighs each batch by its tokens, and takes no label smoothing.
    """
    network = transformer(10, 10, **SIZES)
    trainer = Trainer(network)
    trainer.compile(
        loss=CrossEntropy(0.1),
        weighted_metrics=[keras.metrics.MeanMetricWrapper(cross_entropy, name="nats")],
    )
    for pairs, batches in ((2, 1), (3, 2)):
        buckets = LengthBuckets(SOURCES[:pairs], TARGETS[:pairs], tokens=32)
        assert len(buckets) == batches
        losses = trainer.evaluate(Batches(buckets, batch_size=1), verbose=0, return_dict=True)
        expected = token_losses(network, pairs, 0.0).mean()
        assert losses["nats"] == pytest.approx(expected, rel=1e-5)
        if batches == 1:
            expected = token_losses(network, pairs, 0.1).mean()
            assert losses["loss"] == pytest.approx(expected, rel=1e-5)


def test_trainer_takes_batches_of_several_widths() -> None:
    """On TensorFlow Keras reads the first two batches alone and takes their widths for fixed."""
    source, target = (keras.Input((None,), dtype="int32", name=n) for n in ("source", "target"))
    logits = keras.layers.Dense(6)(keras.layers.Embedding(6, 2)(target))
    network = keras.Model({"source": source, "target": target}, logits)
    trainer = Trainer(network)
    trainer.compile("sgd", CrossEntropy())
    lengths = (3, 4, 5, 20, 30)
    sentences = [np.full(length, 1 + length % 5) for length in lengths]
    buckets = LengthBuckets(sentences, sentences, tokens=16)
    assert [buckets[np.array([i])][1].shape[1] for i in range(5)] == [16, 16, 16, 24, 32]
    held_out = Batches(buckets, batch_size=1)
    trainer.fit(
        Batches(buckets, batch_size=1, seed=0), epochs=2, validation_data=held_out, verbose=0
    )
    losses = []
    for index in range(5):
        inputs, labels, weights = held_out[index]
        log_likelihoods = log_softmax(network.predict_on_batch(inputs), axis=-1)
        chosen = np.take_along_axis(log_likelihoods, labels[..., None], axis=-1)[..., 0]
        losses.append(-(chosen * weights).sum() / weights.sum())
    assert trainer.evaluate(held_out, verbose=0) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.once
def test_unigram_loss_matches_a_computation_by_hand() -> None:
    """Counts of 1, 1, 1, 2 and the end: 0.75 is taken from each and shared by all three."""
    mean_loss = translation.unigram_loss([np.array([1, 1, 1, 2])], 3)
    expected = -(np.log(0.6) + 2 * np.log(0.2)) / 3
    assert mean_loss([np.array([1, 2])]) == pytest.approx(expected)


@pytest.mark.once
def test_baselines_translate_without_a_model() -> None:
    test = [Pair("B 1:1", "the dog barks", "el perro ladra")]
    translations = translation.baselines(PAIRS, test)
    assert translations["copied_source"] == ["the dog barks"]
    assert translations["most_frequent_word"] == ["casa casa casa"]
    (words,) = translations["word_by_word"]
    # "the" stands beside "la" and "casa" alike.
    assert words == "la perro barks"


@pytest.mark.once
def test_scores_are_perfect_only_for_the_reference() -> None:
    references = ["el perro ladra en la casa", "la casa es blanca y grande"]
    perfect = translation.scores(references, references)
    assert perfect == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    worse = translation.scores(["el gato ladra en la casa", "la casa"], references)
    assert 0 < worse["bleu"] < 100
    assert 0 < worse["chrf"] < 100


def test_translate_keeps_the_order_of_texts_in_any_batch() -> None:
    """Batches of two: the two short texts, and then the long one with a copy of itself."""
    texts = ["the house", "a dog and a garden and a house", "a"]
    tokenizer = Tokenizer.train([*texts, "casa"], 40)
    network = transformer(len(tokenizer), len(tokenizer), **SIZES, tie_embeddings=False, seed=2)
    together = translate.translate(network, tokenizer, texts, num_beams=1)
    in_twos = translate.translate(network, tokenizer, texts, num_beams=1, batch_size=2)
    assert together[1] == in_twos[1]
    assert translate.translate(network, tokenizer, []) == []
    assert all(in_twos)
    assert len(set(together)) == 3
    for translated, shorter in zip(together, in_twos, strict=True):
        # A translation that does not end is truncated by the longest sentence of its batch.
        assert translated.startswith(shorter)
