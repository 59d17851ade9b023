"""Tasks: what `zoo.load` returns for weights of the package and for finished runs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from tests.files.conftest import finished_runs as finished_runs
from zoo import datasets
from zoo.tasks import ImageClassifier, ImageSampler, NextWord, Task, TextCompletion
from zoo.training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def digits() -> datasets.ImageDataset:
    return datasets.load("mnist", train_examples=1, test_examples=20)


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    task = zoo.load("mlp-mnist")
    assert isinstance(task, ImageClassifier)
    return task


def test_classify_returns_labels_with_probabilities(
    classifier: ImageClassifier, digits: datasets.ImageDataset, tmp_path: Path
) -> None:
    image = digits.x_test[0]  # a seven
    ranking = classifier.classify(image, top=10)
    assert ranking[0][0] == "7"
    assert ranking[0][1] > 0.99
    assert sum(probability for _, probability in ranking) == pytest.approx(1)
    assert sorted(ranking, key=lambda pair: -pair[1]) == ranking
    assert len(classifier.classify(image)) == 5
    path = tmp_path / "seven.png"
    large = Image.fromarray(image[..., 0]).resize((280, 280), Image.Resampling.NEAREST)
    large.convert("RGBA").save(path)
    for source in (path, str(path), large, np.asarray(large)):
        assert classifier.classify(source)[0][0] == "7"
    assert classifier.model.name == "mlp"
    assert classifier.card is not None
    assert classifier.card.builder == "mlp"


def test_probabilities_classify_batches(
    classifier: ImageClassifier, digits: datasets.ImageDataset
) -> None:
    probabilities = classifier.probabilities(digits.x_test)
    assert probabilities.shape == (20, 10)
    np.testing.assert_allclose(probabilities.sum(-1), 1)
    assert (probabilities.argmax(-1) == digits.y_test).sum() >= 19


def test_load_opens_finished_runs_as_tasks(finished_runs: Path) -> None:
    """Untrained ones."""
    text = zoo.load(finished_runs / "text")
    assert isinstance(text, TextCompletion)
    assert text.card is None
    written = text.generate("to be ", 5, seed=1)
    assert written == "to be" + "".join(text.stream("to be", 5, seed=1))
    assert written.startswith("to be")
    assert len(written) > len("to be")
    sampler = zoo.load(finished_runs / "prompts")
    assert isinstance(sampler, ImageSampler)
    images = sampler.sample(["a seven", "the digit 3"], steps=2)
    assert images.shape == (2, 4, 4, 1)
    assert zoo.load(finished_runs / "latents").sample(2, steps=2).shape == (2, 8, 8, 1)
    classifier = zoo.load(finished_runs / "classifier")
    assert isinstance(classifier, ImageClassifier)
    assert classifier.labels == tuple("0123456789")
    assert len(classifier.classify(np.zeros((9, 5), np.uint8))) == 5


def test_next_words_of_a_run_are_its_most_probable(tmp_path: Path) -> None:
    from zoo.datasets.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["to be, or not to be"], 20)
    run = RunDirectory(tmp_path, {"recipe": "next_word"})
    run.write("vocabulary.json", tokenizer.to_json())
    run.save_model(zoo.rnn_language_model(len(tokenizer), "gru", 4, 4))
    run.write_metrics({})
    task = zoo.load(tmp_path)
    assert isinstance(task, NextWord)
    words = task.next_words("to be", 2)
    assert len(words) == 2
    assert words[0][1] >= words[1][1] > 0


@pytest.mark.once
def test_load_returns_a_plain_task_of_another_model(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, {"recipe": "autoencoder"})
    run.write_config()
    run.save_model(zoo.autoencoder((8, 8, 1), (8, 16)))
    run.write_metrics({"test_loss": 1.0})
    task = zoo.load(tmp_path)
    assert type(task) is Task
    assert task.model.name == "autoencoder"


@pytest.mark.once
def test_class_names_of_a_run_are_the_labels(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, {"recipe": "mnist"})
    run.write_config()
    run.save_model(zoo.mlp((4, 4, 3), 2, ()))
    metrics = {"dataset": "pets", "mean": [0.5] * 3, "std": [0.5] * 3}
    run.write_metrics({**metrics, "class_names": ["cat", "dog"]})
    ranking = zoo.load(tmp_path).classify(np.zeros((7, 5), np.uint8))
    assert {label for label, _ in ranking} == {"cat", "dog"}
    run.write_metrics({**metrics, "class_names": ["cat"]})
    with pytest.raises(ValueError, match=r"`labels` must be the names of the 2 classes.*1 names"):
        zoo.load(tmp_path)


@pytest.mark.once
def test_load_names_what_there_is(tmp_path: Path) -> None:
    assert "mlp-mnist" in zoo.list_weights()
    text = r"`source` must be one of .*mlp-mnist.*, a weights folder, .* Received: source='lenet'"
    with pytest.raises(ValueError, match=text):
        zoo.load("lenet")
    with pytest.raises(ValueError, match=r"must hold a finished run .*has no metrics\.json"):
        zoo.load(tmp_path)
    with pytest.raises(ValueError, match=r"`source` must be a name or a path\. Received: source=3"):
        zoo.load(3)  # type: ignore[arg-type]
