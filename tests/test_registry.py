"""Tests of the model registry."""

import pytest

from zoo import registry


def test_examples_lists_all_examples_of_a_builder_or_a_single_one() -> None:
    cells = ["simple_rnn", "lstm", "gru"]
    assert list(registry.examples("rnn_classifier")) == [f"rnn_classifier/{c}" for c in cells]
    assert registry.examples("rnn_classifier/gru") == {"rnn_classifier/gru": {"cell": "gru"}}
    assert registry.examples("mlp") == {"mlp": {}}
    with pytest.raises(ValueError, match=r"one of rnn_classifier/gru, .*=rnn_classifier/elman"):
        registry.examples("rnn_classifier/elman")


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
