"""Tests of the model registry."""

import inspect

import keras
import pytest

import zoo
from zoo import registry


def test_examples_lists_all_examples_of_a_builder_or_a_single_one() -> None:
    cells = ["simple_rnn", "lstm", "gru"]
    assert list(registry.examples("rnn_classifier")) == [f"rnn_classifier/{c}" for c in cells]
    assert registry.examples("rnn_classifier/gru") == {"rnn_classifier/gru": {"cell": "gru"}}
    assert registry.examples("mlp") == {"mlp": {}}
    with pytest.raises(ValueError, match=r"one of rnn_classifier/gru, .*=rnn_classifier/elman"):
        registry.examples("rnn_classifier/elman")


def test_origin_returns_the_builder_and_all_of_its_arguments() -> None:
    model = zoo.mlp((4,), 2, hidden_units=(3,))
    name, arguments = registry.origin(model)
    assert name == "mlp"
    assert {*arguments, "weights"} == set(inspect.signature(zoo.mlp).parameters)
    assert (arguments["input_shape"], arguments["activation"]) == ((4,), "relu")
    assert arguments["dtype"] == keras.config.dtype_policy().name
    policy = keras.DTypePolicy("mixed_bfloat16")
    assert registry.origin(zoo.mlp((4,), dtype=policy))[1]["dtype"] == "mixed_bfloat16"
    with pytest.raises(ValueError, match=r"must be made by one of autoencoder, .*Received: mlp"):
        registry.origin(keras.models.clone_model(model))


def test_classifiers_have_image_formats() -> None:
    classifiers = registry.classifiers()
    assert sorted(classifiers) == ["cnn_48x48", "gru", "lstm", "mlp", "simple_rnn"]
    assert classifiers["cnn_48x48"].images.shape(1) == (48, 48, 3)
    assert classifiers["mlp"].images.shape(1) == (28, 28, 1)
    assert classifiers["mlp"].images.shape(3) == (28, 28, 3)
    assert classifiers["gru"].images.shape(1) == (28, 28)
    assert classifiers["gru"].images.shape(3) == (28, 84)
    model = classifiers["gru"].build(num_classes=3, input_shape=(28, 84))
    assert type(model.get_layer("rnn1")).__name__ == "GRU"
    with pytest.raises(ValueError, match="one of cnn_48x48, gru, lstm, mlp, simple_rnn"):
        registry.get_classifier("rnn_language_model")
