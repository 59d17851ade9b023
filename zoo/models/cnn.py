"""Convolutional neural network for 48×48 images.

Output shapes for a batch of B images, and parameters of each layer:

    image      (B, 48, 48, 3)
    conv1      (B, 48, 48, 32)   (3·3·3 + 1)·32       =       896
    conv2      (B, 48, 48, 64)   (3·3·32 + 1)·64      =    18,496
    pool1      (B, 24, 24, 64)
    conv3      (B, 24, 24, 128)  (3·3·64 + 1)·128     =    73,856
    pool2      (B, 12, 12, 128)
    flatten    (B, 18432)
    fc1        (B, 512)          (12·12·128 + 1)·512  = 9,437,696
    fc2        (B, classes)      (512 + 1)·classes

The document also counts the parameters of a dense layer from the 64·24·24 features after `pool1` to
512 units, and prints 3,221,504. The correct count is (64·24·24 + 1)·512 = 18,874,880. The network
itself has a second pooling layer before `flatten`, as listed above.

Source: the document's sections "Convolutional Neural Networks" and "Exemple de code CNN".
"""

import keras

from zoo import initializers, random
from zoo.layers.core import Conv2D, MaxPooling2D
from zoo.registry import ImageInput, register
from zoo.validation import DType, Name, Rate, Seed, Size, Source


@register(
    section="Convolutional Neural Networks",
    recipe="recipes/mnist.py",
    parameter_formula="9,530,944 + 513·num_classes",
    parameter_count=lambda num_classes=32, **_: 9_530_944 + 513 * num_classes,
    images=ImageInput(48, channels=3),
)
def cnn_48x48(
    num_classes: Size = 32,
    dropout: Rate = 0.5,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "cnn_48x48",
    weights: Source | None = None,
) -> keras.Model:
    """Convolutional network `MY_NET` of the document, with three convolutions.

    Two pooling layers and two dense layers complete the network.

    Args:
        num_classes: Number of classes, the width of the output.
        dropout: Dropout rate before each of the two dense layers, in [0, 1).
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
            Initial weights are uniform in ±1/sqrt(fan_in), as in PyTorch.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from images, (B, 48, 48, 3) float, to logits, (B, num_classes). Pixels
        are normalized: (pixel/255 - mean) / std, with the mean and standard deviation of the
        training pixels in [0, 1] (MNIST: 0.1307 and 0.3081, so values from -0.42 to 2.82), as
        `zoo.datasets.augmentation.ImageAugmentation` computes them.

    Raises:
        ValueError: If an argument is invalid; the text names it.
    """

    def weight_options(layer: str, fan_in: int) -> dict[str, object]:
        return {
            "kernel_initializer": initializers.FanInUniform(seed, f"{layer}/kernel"),
            "bias_initializer": initializers.FanInUniform(seed, f"{layer}/bias", fan_in),
            "dtype": dtype,
            "name": layer,
        }

    def conv(layer: str, channels: int, filters: int) -> Conv2D:
        weights = weight_options(layer, 3 * 3 * channels)
        return Conv2D(
            filters, 3, padding="same", data_format="channels_last", activation="relu", **weights
        )

    def pool(layer: str) -> MaxPooling2D:
        return MaxPooling2D(2, data_format="channels_last", dtype=dtype, name=layer)

    image = keras.Input((48, 48, 3), name="image")
    x = conv("conv1", 3, 32)(image)
    x = conv("conv2", 32, 64)(x)
    x = pool("pool1")(x)
    x = conv("conv3", 64, 128)(x)
    x = pool("pool2")(x)
    x = keras.layers.Flatten("channels_last", dtype=dtype, name="flatten")(x)
    x = random.Dropout(dropout, seed, dtype=dtype, name="dropout1")(x)
    x = keras.layers.Dense(512, activation="relu", **weight_options("fc1", 12 * 12 * 128))(x)
    x = random.Dropout(dropout, seed, dtype=dtype, name="dropout2")(x)
    logits = keras.layers.Dense(num_classes, **weight_options("fc2", 512))(x)
    return keras.Model(image, logits, name=name)
