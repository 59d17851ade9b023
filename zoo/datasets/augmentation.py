"""Image augmentation and normalisation: the document's transforms as a layer.

The layer maps uint8 images, (B, H, W, 1) or (B, H, W, 3), to float32 inputs of a network. It runs
within the compiled training step, on the device, in integer arithmetic: an augmented pixel is a
grey level, as in Pillow, which torchvision's transforms use. The same key therefore gives the same
pixels, to the bit, on every backend.

Images are resized once, when a data set is loaded.

Source: the document's section "Exemple de code d'entraînement CNN" ("Transforms").
"""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops
from PIL import Image

from zoo import random
from zoo.backends import backend
from zoo.validation import MAX_COUNT, Rate, Seed, Size, array, each, number, validated, whole

Tensor = Any

FILTER = Image.Resampling.BILINEAR  # as torchvision's `Resize`, which also averages when it shrinks


@validated
def resize(images: Annotated[Any, each(array("biuf"), 1, MAX_COUNT)], size: Size) -> np.ndarray:
    """Resizes with Pillow's bilinear filter, as torchvision's `Resize` does.

    Args:
        images: uint8 images, each (H, W), (H, W, 1) or (H, W, 3); they may differ in size.
        size: height and width of the result.

    Returns:
        (N, size, size, 1 or 3) uint8.

    Raises:
        ValueError: if an image is of another shape or type, or grey and colour are mixed.
    """
    out: np.ndarray | None = None
    for index, image in enumerate(images):
        image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        channels = 1 if image.ndim == 2 else image.shape[-1] if image.ndim == 3 else 0
        if channels not in (1, 3) or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                "`images` must be uint8, each of shape (height, width), (height, width, 1) or "
                f"(height, width, 3). Received: shape={image.shape}, dtype={image.dtype} at index "
                f"{index}"
            )
        if out is None:
            out = np.empty((len(images), size, size, channels), np.uint8)
        if out.shape[-1] != channels:
            raise ValueError(
                f"`images` must all have {out.shape[-1]} channels, as the first has. Received: "
                f"shape={image.shape} at index {index}"
            )
        resized = Image.fromarray(image).resize((size, size), FILTER)
        out[index] = np.asarray(resized).reshape(size, size, channels)
    assert out is not None
    return out


@keras.saving.register_keras_serializable("zoo")
class ImageAugmentation(random.DrawCounter):
    """Normalisation of images and, in training, random rotation, brightness and contrast.

    What a training call draws depends on the seed and on how many training calls came before. In
    inference the layer only normalises.

    Args:
        mean: Mean of the pixels in [0, 1], one number or one for each channel.
        std: Standard deviation of the pixels in [0, 1], as many numbers.
        rotation: Largest angle, in degrees, that a training image turns by either way. Pixels from
            outside the image are black. Nearest neighbour, the default of torchvision's
            `RandomRotation`.
        brightness: Largest fraction by which the brightness of a training image changes.
        contrast: Largest fraction by which the contrast changes, after the brightness.
            (torchvision's `ColorJitter` also draws the order of the two.)
        shape: Shape of one image as the network takes it, such as (28, 28, 1), or (28, 28) for a
            sequence of rows. By default (H, W, 3); grey images are repeated three times.
        seed: Seed of the random draws.

    Raises:
        ValueError: If a number lies outside its range.
    """

    @validated
    def __init__(
        self,
        mean: Annotated[Sequence[float], each(number(), 1, 3)],
        std: Annotated[Sequence[float], each(number("(0, inf)"), 1, 3)],
        rotation: Annotated[float, number("[0, 180]")] = 10.0,
        brightness: Rate = 0.2,
        contrast: Rate = 0.2,
        shape: Annotated[Sequence[int], each(whole(), 1, 3)] | None = None,
        seed: Seed = 0,
        name: str = "image_augmentation",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ValueError(
                f"`mean` and `std` must have one number or three. Received: mean={mean}, std={std}"
            )
        self.mean = mean
        self.std = std
        self.rotation = rotation
        self.brightness = brightness
        self.contrast = contrast
        self.shape = shape
        self.seed = seed
        self.random_key = random.key(seed, "augmentation")
        self.create_counter()
        self._preprocess = backend.preprocessing_function(self, self._augment_and_normalize)
        self.built = True

    def call(self, images: Tensor, training: bool = False) -> Tensor:
        """Images (B, H, W, 1 or 3) uint8 to network inputs (B, *shape) float32."""
        if training and (self.rotation or self.brightness or self.contrast):
            call = backend.host_integer(self.next_draw())
            place = random.current_rows()
            numbers = () if place is None else (place.start, place.total)
            return self._preprocess(images, random.fold_in(self.random_key, call), *numbers)
        return self.normalize(images)

    def _augment_and_normalize(self, images: Tensor, key: random.Key, *place: Tensor) -> Tensor:
        """Network inputs of images, of which a part of a batch also gives `start` and `total`.

        They are arguments because a function that PyTorch replays keeps all other values.
        """
        if not place:
            return self.normalize(self.augment(images, key))
        start, total = place
        with random.Rows(start, ops.shape(images)[0], total).applied():
            return self.normalize(self.augment(images, key))

    def augment(self, images: Tensor, key: random.Key) -> Tensor:
        """Rotation, brightness, contrast: uint8 images in, grey levels as int32 out."""
        images = ops.convert_to_tensor(images)
        draws = random.bits(key, (3, ops.shape(images)[0]), batch_axis=1)
        draws = ops.bitwise_and(ops.right_shift(ops.convert_to_tensor(draws), 16), 0xFFFF)
        if self.rotation:
            images = _rotate(images, draws[0], self.rotation)
        pixels = ops.cast(images, "int32")
        if self.brightness:
            pixels = ops.minimum(_scale(pixels, _factor(draws[1], self.brightness)), 255)
        if self.contrast:
            mean = _mean_grey(pixels)
            scaled = _scale(pixels - mean, _factor(draws[2], self.contrast))
            pixels = ops.clip(mean + scaled, 0, 255)
        return pixels

    def normalize(self, images: Tensor) -> Tensor:
        """Grey levels (B, H, W, 1 or 3) to (pixel - mean) / std, (B, *shape) float32."""
        pixels = _look_up(images, _levels(self.mean, self.std))
        size = pixels.shape[1] * pixels.shape[2]
        channels = 3 if self.shape is None else math.prod(self.shape) // size
        if pixels.shape[-1] == 1 and channels == 3:
            pixels = ops.repeat(pixels, 3, axis=-1)
        if self.shape is None:
            return pixels
        if pixels.shape[-1] * size != math.prod(self.shape):
            raise ValueError(
                f"`shape` must hold as many numbers as an image, {tuple(pixels.shape[1:])}. "
                f"Received: shape={self.shape}"
            )
        return ops.reshape(pixels, (-1, *self.shape))

    def get_config(self) -> dict[str, Any]:
        names = ("mean", "std", "rotation", "brightness", "contrast", "shape", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@functools.cache
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(256, channels) float32: what each grey level becomes. A table rounds alike everywhere."""
    levels = np.arange(256)[:, None] / 255
    return np.asarray((levels - np.array(mean)) / np.array(std), np.float32)


def _look_up(pixels: Tensor, table: np.ndarray) -> Tensor:
    pixels = ops.cast(pixels, "int32")
    columns = table.shape[1]
    if columns == 1:
        return backend.look_up(table[:, 0], pixels)
    return backend.look_up(table.reshape(-1), pixels * columns + ops.arange(columns, dtype="int32"))


_ANGLES = 4096  # so many angles, 0.005 degrees apart for a rotation of ±10


@functools.cache
def _rotations(size: int, limit: float) -> np.ndarray:
    """(4096, 6) int32: Pillow's affine map of each angle, in units of 2**-16 pixels.

    Row (a, b, c, d, e, f): the pixel at column x and row y comes from column a·x + b·y + c and row
    d·x + e·y + f.
    """
    rows = []
    centre = size / 2
    for degrees in np.linspace(-limit, limit, _ANGLES):
        angle = -math.radians(degrees)
        a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
        d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
        c = -a * centre - b * centre + centre
        f = -d * centre - e * centre + centre
        matrix = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)  # from the pixel's middle
        rows.append([math.floor(value * 2**16 + 0.5) for value in matrix])
    return np.array(rows, np.int32)


def _rotate(images: Tensor, draws: Tensor, limit: float) -> Tensor:
    """images: (B, S, S, C); draws: (B,) in [0, 2**16)."""
    _, size, width, channels = images.shape
    batch = ops.shape(images)[0]
    if size != width:
        raise ValueError(
            f"Rotation takes square images. Received: height={size}, width={width}; set "
            "`rotation=0`"
        )
    affine = backend.look_up(_rotations(size, limit), ops.right_shift(draws, 4))  # (B, 6)
    a, b, c, d, e, f = (affine[:, i, None, None] for i in range(6))
    x = ops.arange(size, dtype="int32")[None, None, :]
    y = ops.arange(size, dtype="int32")[None, :, None]
    # Terms that do not depend on both axes are added first, while they are small.
    column = ops.right_shift((a * x + c) + b * y, 16)  # (B, S, S)
    row = ops.right_shift((e * y + f) + d * x, 16)
    # A sign bit in either is a sign bit in their disjunction.
    inside = ops.logical_and(ops.bitwise_or(column, row) >= 0, ops.maximum(column, row) < size)
    inside = ops.cast(inside, "int32")
    first = ops.arange(batch, dtype="int32")[:, None, None] * (size * size)
    index = (row * size + column + first) * inside
    pixels = ops.reshape(ops.cast(images, "int32"), (-1, channels))
    return backend.look_up(pixels, index) * inside[..., None]  # (B, S, S, C)


def _factor(draws: Tensor, limit: float) -> Tensor:
    """(B,) draws in [0, 2**16) to factors in 1 ± limit, in units of 2**-12."""
    low, span = round((1 - limit) * 2**12), round(2 * limit * 2**12)
    return low + ops.right_shift(draws * span, 16)


def _scale(pixels: Tensor, factor: Tensor) -> Tensor:
    """The rounded products of an image's pixels and its factor, which is in units of 2**-12."""
    return ops.right_shift(pixels * factor[:, None, None, None] + 2**11, 12)


def _mean_grey(pixels: Tensor) -> Tensor:
    """(B, 1, 1, 1): the rounded mean of each image's luma, as Pillow's `ImageEnhance.Contrast`."""
    if pixels.shape[-1] == 3:
        luma = pixels[..., 0] * 19595 + pixels[..., 1] * 38470 + pixels[..., 2] * 7471
        grey = ops.right_shift(luma + 2**15, 16)
    else:
        grey = pixels[..., 0]
    count = grey.shape[1] * grey.shape[2]
    # A sum of int32 is a longer integer on some backends.
    total = ops.cast(ops.sum(grey, axis=(1, 2)), "int32")
    return ops.floor_divide(total + count // 2, count)[:, None, None, None]
