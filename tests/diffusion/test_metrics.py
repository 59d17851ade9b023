"""The scores tell good images from bad ones."""

from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from zoo import mlp
from zoo.datasets.augmentation import ImageTransform
from zoo.datasets.images import ImageDataset, load
from zoo.diffusion.metrics import (
    FeatureExtractor,
    evaluate_samples,
    first_of_each,
    frechet_distance,
    intra_class_diversity,
    to_uint8,
)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return load("mnist", train_examples=600, test_examples=600)


@pytest.fixture(scope="module")
def judge(data: ImageDataset) -> FeatureExtractor:
    """It knows nothing, but sees one digit differ from another."""
    model = mlp((28, 28, 1), 10, hidden_units=(16,))
    return FeatureExtractor(model, ImageTransform(data.mean, data.std, shape=(28, 28, 1)), 28)


def test_the_distance_of_two_clouds() -> None:
    """Against the formula, with SciPy's root of a matrix; and 0 of a cloud from itself."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6))
    second = generator.normal(size=(400, 6)) @ generator.normal(size=(6, 6)) + 1
    c1, c2 = (np.cov(cloud, rowvar=False) for cloud in (first, second))
    apart = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    expected = apart + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(4 * 6)


def test_fewer_points_than_numbers() -> None:
    cloud = np.random.default_rng(0).normal(size=(5, 20))
    assert np.isfinite(frechet_distance(cloud, 2 * cloud))
    # The root of a variance that is 0 but for rounding: 5e-7 measured.
    assert frechet_distance(cloud, cloud) == pytest.approx(0, abs=1e-5)


def test_one_image_over_and_over_is_not_varied(data: ImageDataset) -> None:
    images, labels = data.x_test[:100], data.y_test[:100]
    assert intra_class_diversity(images, images, labels) == 1
    assert intra_class_diversity(np.repeat(images[:1], 100, axis=0), images, labels) == 0
    assert intra_class_diversity(images[:2], images[:2], np.array([0, 1])) is None


def test_the_next_of_each_class() -> None:
    labels = np.array([2, 0, 1, 0, 2])
    assert first_of_each(labels, np.array([0, 2, 0, 2, 2])).tolist() == [1, 0, 3, 4, 0]
    with pytest.raises(ValueError, match="Received: none of 7"):
        first_of_each(labels, np.array([0, 7]))


def test_numbers_become_bytes() -> None:
    given = np.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    assert to_uint8(given).tolist() == [0, 0, 128, 255, 255]


def test_real_images_are_good_and_noise_is_not(judge: FeatureExtractor, data: ImageDataset) -> None:
    asked = np.arange(200) % 10
    real = data.x_train[first_of_each(data.y_train, asked)]
    found: Any = evaluate_samples(judge, real, asked, data)
    assert found["frechet_distance"] == pytest.approx(found["frechet_floor"])
    assert found["frechet_ceiling"] > 10 * found["frechet_floor"]
    assert found["diversity"] == pytest.approx(1, abs=0.1)
    classes = judge.classes(judge.features(real))
    assert found["prompt_accuracy"] == (classes == asked).mean()
    one = np.repeat(real[:1], 200, axis=0)
    assert evaluate_samples(judge, one, asked, data)["diversity"] == 0
    unasked = evaluate_samples(judge, real, None, data)
    assert unasked["prompt_accuracy"] is None
    assert set(unasked) == set(found)


def test_what_are_no_images_is_refused(judge: FeatureExtractor) -> None:
    with pytest.raises(ValueError, match=r"`images` must be uint8.*dtype=float32"):
        judge.features(np.zeros((2, 28, 28, 1), np.float32))


def test_larger_images_are_made_smaller(judge: FeatureExtractor, data: ImageDataset) -> None:
    large = data.x_test[:3].repeat(2, axis=1).repeat(2, axis=2)
    assert judge.features(large).shape == (3, 16)
