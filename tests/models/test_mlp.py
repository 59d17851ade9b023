"""Tests of the multilayer perceptron."""

import keras
import numpy as np
import pytest
from keras import ops

from zoo import mlp

FUNCTIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
}


@pytest.mark.parametrize("activation", [["sigmoid", "tanh"], ["relu", "softmax"]])
def test_mlp_matches_the_formula(activation: list[str]) -> None:
    model = mlp((2, 3), 4, (8, 5), activation)
    x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    weights = dict(zip([v.path for v in model.variables], model.get_weights()))
    z = x.reshape(7, 6)
    for layer, function in zip(("hidden1", "hidden2"), activation):
        z = FUNCTIONS[function](z @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"])
    expected = z @ weights["output/kernel"] + weights["output/bias"]
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-6)


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_mlp_output_activation_gives_probabilities(output: str) -> None:
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    logits = ops.convert_to_numpy(mlp((6,), 4)(x))
    probabilities = ops.convert_to_numpy(mlp((6,), 4, output_activation=output)(x))
    np.testing.assert_allclose(probabilities, FUNCTIONS[output](logits), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "parameter_count"),
    [
        ({}, (784 + 1) * 512 + (512 + 1) * 10),
        ({"hidden_units": ()}, (784 + 1) * 10),
        ({"input_shape": (3,), "hidden_units": (4, 5), "num_classes": 2}, 4 * 4 + 5 * 5 + 6 * 2),
    ],
)
def test_mlp_has_the_expected_parameter_count(arguments: dict, parameter_count: int) -> None:
    assert mlp(**arguments).count_params() == parameter_count


def test_mlp_accepts_every_keras_activation_of_one_argument() -> None:
    with pytest.raises(ValueError, match="must be one of") as error:
        mlp(activation="glu")
    names = str(error.value).partition("one of ")[2].partition(" or a sequence")[0].split(", ")
    assert {"sigmoid", "relu", "tanh", "softmax", "gelu", "silu", "leaky_relu"} <= set(names)
    for name in names:
        model = mlp((4,), 2, (3,), activation=name)
        assert model.get_layer("hidden1").activation is keras.activations.get(name)
        assert model.output.shape == (None, 2)


@pytest.mark.parametrize("argument", ["num_classes", "seed"])
def test_mlp_rejects_a_bool_in_an_array_or_tensor(argument: str) -> None:
    for value in (np.array(True), keras.ops.convert_to_tensor(True)):
        with pytest.raises(ValueError, match=rf"`{argument}` must be a whole number.*True"):
            mlp((4,), **{argument: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"activation": "rely"},
            "`activation` must be one of .*sigmoid.*. Received: activation='re",
        ),
        ({"activation": ("relu",), "hidden_units": (3, 3)}, r"one for each. .*\('relu',\).*\(3, 3"),
        (
            {"hidden_units": (0,)},
            r"`hidden_units` must be .* each a whole number of at least 1.*=\(0,\)",
        ),
        ({"hidden_units": (-3,)}, r"hidden_units=\(-3,\)"),
        ({"input_shape": (28, None)}, r"`input_shape` must be.*input_shape=\(28, None\)"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\). Received: dropout=1.0"),
        (
            {"output_activation": "relu"},
            "one of sigmoid, softmax. Received: output_activation='relu'",
        ),
    ],
)
def test_mlp_rejects_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)
