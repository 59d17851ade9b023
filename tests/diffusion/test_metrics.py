"""Tests of the sample metrics: known values, and the ranking of real images and noise."""

from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from zoo import mlp
from zoo.datasets.augmentation import ImageAugmentation
from zoo.datasets.images import ImageDataset, load
from zoo.diffusion.metrics import (
    FeatureExtractor,
    evaluate_samples,
    frechet_distance,
    indices_of_labels,
    intra_class_diversity,
    to_uint8,
)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return load("mnist", train_examples=600, test_examples=600)


@pytest.fixture(scope="module")
def extractor(data: ImageDataset) -> FeatureExtractor:
    """An untrained classifier, whose features still differ between digits."""
    model = mlp((28, 28, 1), 10, hidden_units=(16,))
    return FeatureExtractor(model, ImageAugmentation(data.mean, data.std, shape=(28, 28, 1)), 28)


@pytest.mark.once
def test_frechet_distance_matches_formula() -> None:
    """The formula with SciPy's matrix square root; a set's distance from itself is 0."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6))
    second = generator.normal(size=(400, 6)) @ generator.normal(size=(6, 6)) + 1
    c1, c2 = (np.cov(features, rowvar=False) for features in (first, second))
    mean_distance = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    expected = mean_distance + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(4 * 6)


@pytest.mark.once
def test_frechet_distance_of_fewer_images_than_features() -> None:
    features = np.random.default_rng(0).normal(size=(5, 20))
    assert np.isfinite(frechet_distance(features, 2 * features))
    # The root of a variance that is 0 but for rounding: 5e-7 measured.
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


@pytest.mark.once
def test_intra_class_diversity_of_repeated_image_is_zero(data: ImageDataset) -> None:
    images, labels = data.x_test[:100], data.y_test[:100]
    assert intra_class_diversity(images, images, labels) == 1
    assert intra_class_diversity(np.repeat(images[:1], 100, axis=0), images, labels) == 0
    assert intra_class_diversity(images[:2], images[:2], np.array([0, 1])) is None


@pytest.mark.once
def test_indices_of_labels_cycles_through_examples() -> None:
    labels = np.array([2, 0, 1, 0, 2])
    assert indices_of_labels(labels, np.array([0, 2, 0, 2, 2])).tolist() == [1, 0, 3, 4, 0]
    with pytest.raises(ValueError, match="Received: none of 7"):
        indices_of_labels(labels, np.array([0, 7]))


@pytest.mark.once
def test_to_uint8_rounds_and_clips() -> None:
    images = np.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    assert to_uint8(images).tolist() == [0, 0, 128, 255, 255]


def test_evaluate_samples_ranks_real_images_above_noise(
    extractor: FeatureExtractor, data: ImageDataset
) -> None:
    labels = np.arange(200) % 10
    real = data.x_train[indices_of_labels(data.y_train, labels)]
    metrics: Any = evaluate_samples(extractor, real, labels, data)
    assert metrics["frechet_distance"] == pytest.approx(metrics["frechet_real"])
    assert metrics["frechet_noise"] > 10 * metrics["frechet_real"]
    assert metrics["intra_class_diversity"] == pytest.approx(1, abs=0.1)
    classes = extractor.classify(extractor.features(real))
    assert metrics["prompt_accuracy"] == (classes == labels).mean()
    repeated = np.repeat(real[:1], 200, axis=0)
    assert evaluate_samples(extractor, repeated, labels, data)["intra_class_diversity"] == 0
    unconditional = evaluate_samples(extractor, real, None, data)
    assert unconditional["prompt_accuracy"] is None
    assert set(unconditional) == set(metrics)


def test_features_rejects_float_images(extractor: FeatureExtractor) -> None:
    with pytest.raises(ValueError, match=r"`images` must be an array of uint8.*dtype float32"):
        extractor.features(np.zeros((2, 28, 28, 1), np.float32))


def test_features_resizes_larger_images(extractor: FeatureExtractor, data: ImageDataset) -> None:
    large = data.x_test[:3].repeat(2, axis=1).repeat(2, axis=2)
    assert extractor.features(large).shape == (3, 16)
