"""Tests of the convolutional network."""

import keras
import numpy as np
import pytest

import zoo


def test_cnn_layers_have_the_parameter_counts_of_the_docstring() -> None:
    model = zoo.cnn_48x48(num_classes=43)
    parameter_counts = {
        layer.name: layer.count_params() for layer in model.layers if layer.count_params()
    }
    assert parameter_counts == {
        "conv1": (3 * 3 * 3 + 1) * 32,
        "conv2": (3 * 3 * 32 + 1) * 64,
        "conv3": (3 * 3 * 64 + 1) * 128,
        "fc1": (128 * 12 * 12 + 1) * 512,
        "fc2": (512 + 1) * 43,
    }
    assert list(parameter_counts.values()) == [896, 18_496, 73_856, 9_437_696, 513 * 43]


@pytest.mark.parametrize(("classes", "total"), [(10, 9_536_074), (32, 9_547_360), (43, 9_553_003)])
def test_cnn_parameter_count_depends_on_the_classes(classes: int, total: int) -> None:
    assert zoo.cnn_48x48(classes).count_params() == total == 9_530_944 + 513 * classes
    if classes == 32:
        assert zoo.cnn_48x48().count_params() == total


def test_cnn_docstring_corrects_the_parameter_count_of_the_document() -> None:
    """The document prints 3,221,504 for a dense layer from 64·24·24 features to 512 units."""
    layer = keras.layers.Dense(512)
    layer.build((None, 64 * 24 * 24))
    assert layer.count_params() == 18_874_880 != 3_221_504
    assert "18,874,880" in (zoo.models.cnn.__doc__ or "")


def test_cnn_layers_have_the_output_shapes_of_the_docstring() -> None:
    shapes = {layer.name: tuple(layer.output.shape[1:]) for layer in zoo.cnn_48x48(10).layers}
    assert shapes == {
        "image": (48, 48, 3),
        "conv1": (48, 48, 32),
        "conv2": (48, 48, 64),
        "pool1": (24, 24, 64),
        "conv3": (24, 24, 128),
        "pool2": (12, 12, 128),
        "flatten": (18432,),
        "dropout1": (18432,),
        "fc1": (512,),
        "dropout2": (512,),
        "fc2": (10,),
    }


def test_cnn_seed_determines_the_initial_weights() -> None:
    first, same, other = (zoo.cnn_48x48(10, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.get_weights(), same.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_cnn_rejects_images_of_another_shape() -> None:
    with pytest.raises(
        ValueError, match=r"expected shape=\(None, 48, 48, 3\), found shape=\(1, 28, 28"
    ):
        zoo.cnn_48x48(10)(np.zeros((1, 28, 28, 1), np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"seed": -3}, "seed=-3"),
    ],
)
def test_cnn_rejects_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.cnn_48x48(**arguments)
