"""Tests of the classifier and the autoencoder that a diffusion recipe trains beside its own."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests import recipe
from zoo import datasets, registry
from zoo.datasets.images import ImageDataset
from zoo.diffusion.auxiliary import (
    build_autoencoder,
    train_autoencoder,
    train_classifier,
    training_images,
)
from zoo.diffusion.config import DiffusionConfig
from zoo.training import Interrupted
from zoo.training.run_directory import RunDirectory

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return datasets.load("mnist", train_examples=100, test_examples=100)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run", {})


@pytest.fixture
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets have 100 training images and 100 test images."""
    load = functools.partial(datasets.load, train_examples=100, test_examples=100)
    monkeypatch.setattr(datasets, "load", load)


def metrics_of(run: RunDirectory, part: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run.path / part / "metrics.json").read_text())
    return metrics


@pytest.mark.usefixtures("_few_images")
def test_train_classifier_resumes_and_ends(
    run: RunDirectory, data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionConfig(quick=True)
    steps = recipe.interrupt_after(3, monkeypatch)
    message = r"Stopped while the classifier was in training; .*`--run-dir .*run` goes on"
    with pytest.raises(Interrupted, match=message):
        train_classifier(config, run, data, QUIET)
    extractor = train_classifier(config, run, data, QUIET)
    assert steps == list(range(1, 11))  # two in each of five epochs
    metrics = metrics_of(run, "classifier")
    expected = {"recipe": "mnist", "model": "mlp", "dataset": "mnist", "epochs": 5,
                "train_examples": 100, "test_examples": 100}  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["test_accuracy"] > 0.4
    classes = extractor.classify(extractor.features(data.x_test))
    assert (classes == data.y_test).mean() == pytest.approx(metrics["test_accuracy"])
    train_classifier(config, run, data, QUIET)
    assert len(steps) == 10


@pytest.mark.once
@pytest.mark.usefixtures("_few_images")
def test_train_classifier_trains_a_convolutional_network_for_one_epoch(
    run: RunDirectory, data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionConfig()
    assert config.classifier_model == "cnn_48x48"
    small = registry.get_classifier("mlp")
    monkeypatch.setattr(registry, "get_classifier", lambda name: small)
    train_classifier(config, run, data, QUIET)
    metrics = metrics_of(run, "classifier")
    assert (metrics["model"], metrics["epochs"]) == ("cnn_48x48", 1)


@pytest.mark.once
def test_train_autoencoder_keeps_its_latent_space_in_a_longer_run(
    run: RunDirectory, data: ImageDataset
) -> None:
    config = DiffusionConfig(latent=True, epochs=1)
    model, shape = build_autoencoder(config, data)
    assert model is not None
    assert shape == (14, 14, 2)
    run.write_config()
    scaler = train_autoencoder(model, config, run, data)
    latents, held_out = training_images(data, scaler)
    assert latents.shape == held_out.shape == (100, *shape)
    longer = DiffusionConfig(latent=True, epochs=8)
    same, _ = build_autoencoder(longer, data)
    assert same is not None
    restored = train_autoencoder(same, longer, run, data)
    np.testing.assert_array_equal(training_images(data, restored)[0], latents)


@pytest.mark.once
def test_training_images_without_an_autoencoder_are_pixels(data: ImageDataset) -> None:
    model, shape = build_autoencoder(DiffusionConfig(), data)
    assert model is None
    assert shape == (28, 28, 1)
    images, held_out = training_images(data, None)
    np.testing.assert_array_equal(images, data.x_train)
    np.testing.assert_array_equal(held_out, data.x_test)
