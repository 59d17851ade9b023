import hashlib

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageEnhance

from zoo import datasets, random
from zoo.backends import backend
from zoo.datasets import augmentation
from zoo.datasets.augmentation import ImageTransform

MNIST = ImageTransform((0.1307,), (0.3081,))
AUGMENTED_SHA256 = "dd9e9e75b9e0c115b3120dbae03c04c043980ae77b10d9739f90367db7368996"


def pixels(tensor: object) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def test_the_test_transform_is_torchvisions() -> None:
    """Resize, three channels, normalise: worked out with Pillow and NumPy, image by image."""
    data = datasets.load("mnist", image_size=48, train_examples=1, test_examples=16)
    raw = datasets.load("mnist", train_examples=1, test_examples=16).x_test
    for ours, image in zip(pixels(MNIST.test(data.x_test)), raw):
        resized = Image.fromarray(image[..., 0]).resize((48, 48), Image.Resampling.BILINEAR)
        expected = (np.asarray(resized.convert("RGB")) / 255 - 0.1307) / 0.3081
        one_level = 1 / 255 / 0.3081
        assert np.abs(ours - expected).max() < one_level / 100
    assert pixels(MNIST.base(data.x_test)).max() <= 1
    np.testing.assert_allclose(pixels(MNIST.base(data.x_test))[..., 1], data.x_test[..., 0] / 255)


def test_resizing_by_hand() -> None:
    """Bilinear, pixel centres at halves: the weights of a 2 to 4 enlargement are 1/4 and 3/4."""
    image = np.array([[0, 100], [200, 40]], np.uint8)
    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = weights @ image @ weights.T
    assert np.abs(augmentation.resize(image[None], 4)[0, ..., 0] - expected).max() <= 1


def test_rotation_is_pillows(images: np.ndarray) -> None:
    angles = np.linspace(-10, 10, 4096)
    for draw in (0, 1, 777, 2048, 4095):
        draws = ops.convert_to_tensor(np.full(len(images), draw << 4, np.int32))
        rotated = pixels(augmentation._rotate(ops.convert_to_tensor(images), draws, 10.0))
        for ours, image in zip(rotated, images):
            expected = Image.fromarray(image[..., 0]).rotate(angles[draw])
            np.testing.assert_array_equal(ours[..., 0], np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast_are_pillows(images: np.ndarray, channels: int) -> None:
    grey = np.repeat(images, channels, axis=-1)
    if channels == 3:
        grey[..., 1] //= 2
    transform = ImageTransform((0.0,), (1.0,), rotation=0)
    key = random.key(4)
    draws = (random.bits(key, (3, len(grey))) >> 16 & 0xFFFF) / 2**16
    ours = pixels(transform.augment(grey, key))
    for image, result, brightness, contrast in zip(grey, ours, *(0.8 + 0.4 * draws[1:])):
        expected = Image.fromarray(image.squeeze())
        expected = ImageEnhance.Brightness(expected).enhance(brightness)
        expected = ImageEnhance.Contrast(expected).enhance(contrast)
        # Pillow cuts fractions off where we round, twice.
        assert np.abs(result.squeeze() - np.asarray(expected).astype(int)).max() <= 2


def test_same_key_same_pixels_eager_compiled_and_everywhere(images: np.ndarray) -> None:
    key = random.key(0, "augmentation")
    eager = pixels(MNIST.training(images, key))
    compiled = backend.inference_function(keras.Model(), lambda x: MNIST.training(x, key))(images)
    np.testing.assert_array_equal(pixels(compiled), eager)
    assert (pixels(MNIST.training(images, random.fold_in(key, 1))) != eager).any()
    assert hashlib.sha256(eager.tobytes()).hexdigest() == AUGMENTED_SHA256


def test_augmentation_stays_within_its_limits() -> None:
    grey = np.full((512, 48, 48, 1), 100, np.uint8)
    levels = pixels(MNIST.augment(grey, random.key(0)))[:, 24, 24, 0]
    assert levels.min() >= 79
    assert levels.max() <= 121
    assert len(np.unique(levels)) > 30
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None, None], (512, 1, 48, 1))
    turned = pixels(ImageTransform((0.0,), (1.0,), 10.0, 0, 0).augment(ramp, random.key(0)))
    slope = (turned[:, 24, 40, 0].astype(float) - turned[:, 24, 8, 0]) / 5 / 32
    angles = np.degrees(np.arctan(slope))
    assert 9 < np.abs(angles).max() < 12
    assert abs(angles.mean()) < 1


def test_colour_is_normalised_by_channel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    transform = ImageTransform((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    expected = (image / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(pixels(transform.test(image)), expected, atol=1e-6)
    assert pixels(transform.training(image, random.key(0))).shape == (2, 48, 48, 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: augmentation.resize(np.zeros((1, 28, 28), np.float32), 48),
            "dtype=float32 at index 0",
        ),
        (
            lambda: augmentation.resize(np.zeros((1, 28, 28, 2), np.uint8), 48),
            r"shape=\(28, 28, 2\)",
        ),
        (lambda: augmentation.resize(np.zeros((1, 28, 28), np.uint8), 0), "image_size=0"),
        (lambda: augmentation.resize([], 48), "Received: none"),
        (
            lambda: augmentation.resize(
                [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.uint8)], 48
            ),
            "1 channels.*index 1",
        ),
        (lambda: ImageTransform((0.1, 0.2), (0.1, 0.2)), r"mean=\(0\.1, 0\.2\)"),
        (lambda: ImageTransform((0.1,), (0.0,)), r"std=\(0\.0,\)"),
        (lambda: ImageTransform((0.1,), (0.1,), rotation=200), "rotation=200"),
        (lambda: ImageTransform((0.1,), (0.1,), contrast=1.0), r"contrast=1\.0"),
        (
            lambda: MNIST.training(np.zeros((1, 20, 30, 1), np.uint8), random.key(0)),
            "height=20, width=30",
        ),
    ],
)
def test_errors_name_what_was_received(call, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_the_shape_that_a_network_wants(images: np.ndarray) -> None:
    """Channels as they are, or rows one after another; the same numbers."""
    default = ops.convert_to_numpy(ImageTransform((0.5,), (0.25,)).test(images))
    assert default.shape == (8, 48, 48, 3)
    for shape in ((48, 48, 1), (48, 48), (48 * 48,)):
        found = ImageTransform((0.5,), (0.25,), shape=shape).test(images)
        assert tuple(found.shape) == (8, *shape)
        expected = default[..., :1].reshape(8, *shape)
        np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)
    colour = np.repeat(images, 3, axis=-1)
    found = ImageTransform((0.5,), (0.25,), shape=(48, 144)).test(colour)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), default.reshape(8, 48, 144))
    with pytest.raises(ValueError, match=r"an image, \(48, 48, 1\). Received: shape=\(28, 28\)"):
        ImageTransform((0.5,), (0.25,), shape=(28, 28)).test(images)
