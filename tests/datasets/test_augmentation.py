"""Tests of the resizing of images and of the layer ImageAugmentation."""

import hashlib

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageEnhance

from zoo import Trainer, datasets, random
from zoo.backends import backend
from zoo.datasets import augmentation
from zoo.datasets.augmentation import ImageAugmentation
from zoo.training import Batches

AUGMENTED_SHA256 = "dd9e9e75b9e0c115b3120dbae03c04c043980ae77b10d9739f90367db7368996"


def mnist_augmentation(**arguments: object) -> ImageAugmentation:
    return ImageAugmentation((0.1307,), (0.3081,), **arguments)  # type: ignore[arg-type]


def to_numpy(tensor: object) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


# ------------------------------------------------------------------ images in, inputs out


def test_inference_matches_torchvision_transforms() -> None:
    """Resize, three channels, normalise: computed with Pillow and NumPy, image by image."""
    data = datasets.load("mnist", image_size=48, train_examples=1, test_examples=16)
    raw = datasets.load("mnist", train_examples=1, test_examples=16).x_test
    for inputs, image in zip(to_numpy(mnist_augmentation()(data.x_test)), raw):
        resized = Image.fromarray(image[..., 0]).resize((48, 48), Image.Resampling.BILINEAR)
        expected = (np.asarray(resized.convert("RGB")) / 255 - 0.1307) / 0.3081
        one_level = 1 / 255 / 0.3081
        assert np.abs(inputs - expected).max() < one_level / 100
    fractions = to_numpy(ImageAugmentation((0.0,), (1.0,))(data.x_test))
    assert fractions.max() <= 1
    np.testing.assert_allclose(fractions[..., 1], data.x_test[..., 0] / 255)


@pytest.mark.once
def test_resize_matches_bilinear_weights() -> None:
    """Pixel centres at halves: the weights of a 2 to 4 enlargement are 1/4 and 3/4."""
    image = np.array([[0, 100], [200, 40]], np.uint8)
    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = weights @ image @ weights.T
    assert np.abs(augmentation.resize(image[None], 4)[0, ..., 0] - expected).max() <= 1


def test_rotate_matches_pillow(images: np.ndarray) -> None:
    angles = np.linspace(-10, 10, 4096)
    for draw in (0, 1, 777, 2048, 4095):
        draws = ops.convert_to_tensor(np.full(len(images), draw << 4, np.int32))
        rotated = to_numpy(augmentation._rotate(ops.convert_to_tensor(images), draws, 10.0))
        for result, image in zip(rotated, images):
            expected = Image.fromarray(image[..., 0]).rotate(angles[draw])
            np.testing.assert_array_equal(result[..., 0], np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_augment_brightness_and_contrast_match_pillow(images: np.ndarray, channels: int) -> None:
    originals = np.repeat(images, channels, axis=-1)
    if channels == 3:
        originals[..., 1] //= 2
    layer = ImageAugmentation((0.0,), (1.0,), rotation=0)
    key = random.key(4)
    draws = (random.bits(key, (3, len(originals))) >> 16 & 0xFFFF) / 2**16
    augmented = to_numpy(layer.augment(originals, key))
    for image, result, brightness, contrast in zip(originals, augmented, *(0.8 + 0.4 * draws[1:])):
        expected = Image.fromarray(image.squeeze())
        expected = ImageEnhance.Brightness(expected).enhance(brightness)
        expected = ImageEnhance.Contrast(expected).enhance(contrast)
        # Pillow truncates fractions where `augment` rounds, twice.
        assert np.abs(result.squeeze() - np.asarray(expected).astype(int)).max() <= 2


def test_augment_gives_the_same_bits_eager_compiled_and_on_all_backends(
    images: np.ndarray,
) -> None:
    layer, key = mnist_augmentation(), random.key(0, "augmentation")

    def augmented(x: object, key: random.Key = key) -> object:
        return layer.normalize(layer.augment(x, key))

    eager = to_numpy(augmented(images))
    compiled = backend.inference_function(keras.Model(), augmented)(images)
    np.testing.assert_array_equal(to_numpy(compiled), eager)
    assert (to_numpy(augmented(images, random.fold_in(key, 1))) != eager).any()
    assert hashlib.sha256(eager.tobytes()).hexdigest() == AUGMENTED_SHA256


def test_augment_stays_within_limits() -> None:
    grey = np.full((512, 48, 48, 1), 100, np.uint8)
    levels = to_numpy(mnist_augmentation().augment(grey, random.key(0)))[:, 24, 24, 0]
    assert levels.min() >= 79
    assert levels.max() <= 121
    assert len(np.unique(levels)) > 30
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None, None], (512, 1, 48, 1))
    rotated = to_numpy(ImageAugmentation((0.0,), (1.0,), 10.0, 0, 0).augment(ramp, random.key(0)))
    gradient = (rotated[:, 24, 40, 0].astype(float) - rotated[:, 24, 8, 0]) / 5 / 32
    angles = np.degrees(np.arctan(gradient))
    assert 9 < np.abs(angles).max() < 12
    assert abs(angles.mean()) < 1


def test_call_normalizes_colour_by_channel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    layer = ImageAugmentation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    expected = (image / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(to_numpy(layer(image)), expected, atol=1e-6)
    assert layer(image, training=True).shape == (2, 48, 48, 3)


def test_call_gives_the_shape_of_the_network(images: np.ndarray) -> None:
    """Channels as they are, or rows one after another; the same numbers."""
    default = to_numpy(ImageAugmentation((0.5,), (0.25,))(images))
    assert default.shape == (8, 48, 48, 3)
    for shape in ((48, 48, 1), (48, 48), (48 * 48,)):
        inputs = ImageAugmentation((0.5,), (0.25,), shape=shape)(images)
        assert tuple(inputs.shape) == (8, *shape)
        expected = default[..., :1].reshape(8, *shape)
        np.testing.assert_array_equal(to_numpy(inputs), expected)
    colour = np.repeat(images, 3, axis=-1)
    inputs = ImageAugmentation((0.5,), (0.25,), shape=(48, 144))(colour)
    np.testing.assert_array_equal(to_numpy(inputs), default.reshape(8, 48, 144))
    with pytest.raises(ValueError, match=r"an image, \(48, 48, 1\). Received: shape=\(28, 28\)"):
        ImageAugmentation((0.5,), (0.25,), shape=(28, 28))(images)


# ------------------------------------------------------------------ draws


def test_training_call_draws_by_seed_and_number_of_calls(images: np.ndarray) -> None:
    layer = mnist_augmentation(seed=3)
    key = random.key(3, "augmentation")
    for number in range(3):
        layer(images)  # inference neither draws nor counts
        expected = layer.normalize(layer.augment(images, random.fold_in(key, number)))
        np.testing.assert_array_equal(to_numpy(layer(images, training=True)), to_numpy(expected))
    other = to_numpy(mnist_augmentation(seed=4)(images, training=True))
    assert (other != to_numpy(mnist_augmentation(seed=3)(images, training=True))).any()


def test_training_call_without_augmentation_normalizes_only(images: np.ndarray) -> None:
    layer = mnist_augmentation(rotation=0, brightness=0, contrast=0)
    np.testing.assert_array_equal(to_numpy(layer(images, training=True)), to_numpy(layer(images)))


def test_config_and_counter_restore_the_draws(images: np.ndarray) -> None:
    layer = ImageAugmentation(
        (0.5,), (0.25,), rotation=5.0, brightness=0.1, contrast=0.3, shape=(48, 48), seed=2
    )
    assert not layer.trainable_variables
    layer(images, training=True)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    for variable, source in zip(copy.variables, layer.variables, strict=True):
        variable.assign(source)
    np.testing.assert_array_equal(
        to_numpy(copy(images, training=True)), to_numpy(layer(images, training=True))
    )


def test_trainer_augments_in_training_only(images: np.ndarray) -> None:
    """`fit` draws once a step; `predict` normalises any number of images."""
    network = keras.Sequential([keras.Input((48, 48)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(2))
    layer = mnist_augmentation(shape=(48, 48))
    trainer = Trainer(network, layer)
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.fit(Batches((images, np.arange(8) % 2), batch_size=4, seed=0), epochs=2, verbose=0)
    assert to_numpy(layer.counter.state)[1] == 4
    logits = trainer.predict(Batches(images[:5], batch_size=2), verbose=0)
    expected = ops.stop_gradient(network(layer(images[:5])))
    np.testing.assert_allclose(logits, to_numpy(expected), atol=1e-5)
    assert to_numpy(layer.counter.state)[1] == 4


# ------------------------------------------------------------------ invalid arguments


@pytest.mark.once
@pytest.mark.parametrize(
    ("images", "size", "problem"),
    [
        (np.zeros((1, 28, 28), np.float32), 48, "dtype=float32 at index 0"),
        (np.zeros((1, 28, 28, 2), np.uint8), 48, r"shape=\(28, 28, 2\)"),
        (
            np.zeros((1, 28, 28), np.uint8),
            0,
            "`size` must be a whole number of at least 1. Received: size=0",
        ),
        ([], 48, r"at least 1 element.* Received: images=\[\]"),
        ([np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.uint8)], 48, "1 channels.*index 1"),
    ],
)
def test_resize_rejects_invalid_images(images: object, size: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        augmentation.resize(images, size)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"mean": (0.1, 0.2), "std": (0.1, 0.2)}, r"mean=\(0\.1, 0\.2\)"),
        ({"std": (0.0,)}, r"std=\(0\.0,\)"),
        ({"rotation": 200}, "rotation=200"),
        ({"brightness": -0.1}, r"brightness=-0\.1"),
        ({"contrast": 1.0}, r"contrast=1\.0"),
    ],
)
def test_image_augmentation_rejects_invalid_arguments(arguments: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ImageAugmentation(**{"mean": (0.1,), "std": (0.1,), **arguments})


def test_rotation_rejects_images_that_are_not_square() -> None:
    with pytest.raises(ValueError, match="height=20, width=30"):
        mnist_augmentation()(np.zeros((1, 20, 30, 1), np.uint8), training=True)
