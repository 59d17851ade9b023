import keras
import numpy as np
import pytest

import zoo


def test_parameters_by_hand() -> None:
    model = zoo.cnn_48x48(num_classes=43)
    counts = {layer.name: layer.count_params() for layer in model.layers if layer.count_params()}
    assert counts == {
        "conv1": (3 * 3 * 3 + 1) * 32,
        "conv2": (3 * 3 * 32 + 1) * 64,
        "conv3": (3 * 3 * 64 + 1) * 128,
        "fc1": (128 * 12 * 12 + 1) * 512,
        "fc2": (512 + 1) * 43,
    }
    assert list(counts.values()) == [896, 18_496, 73_856, 9_437_696, 513 * 43]


@pytest.mark.parametrize(("classes", "total"), [(10, 9_536_074), (32, 9_547_360), (43, 9_553_003)])
def test_total_parameters(classes: int, total: int) -> None:
    assert zoo.cnn_48x48(classes).count_params() == total == 9_530_944 + 513 * classes
    if classes == 32:
        assert zoo.cnn_48x48().count_params() == total


def test_the_documents_slip() -> None:
    """It prints 3,221,504 for a dense layer from 64·24·24 features to 512."""
    layer = keras.layers.Dense(512)
    layer.build((None, 64 * 24 * 24))
    assert layer.count_params() == 18_874_880 != 3_221_504
    assert "18,874,880" in (zoo.models.cnn.__doc__ or "")


def test_layers_and_shapes() -> None:
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


def test_the_seed_decides_the_weights() -> None:
    first, same, other = (zoo.cnn_48x48(10, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.get_weights(), same.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_images_of_another_shape() -> None:
    with pytest.raises(
        ValueError, match=r"expected shape=\(None, 48, 48, 3\), found shape=\(1, 28, 28"
    ):
        zoo.cnn_48x48(10)(np.zeros((1, 28, 28, 1), np.float32))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"seed": -3}, "seed=-3"),
    ],
)
def test_errors_name_what_was_received(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        zoo.cnn_48x48(**arguments)
