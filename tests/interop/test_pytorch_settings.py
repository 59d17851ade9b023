"""Settings of layers for which no PyTorch module computes the same: they are refused by name."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from zoo.interop import pytorch
from zoo.layers.transformer_block import TransformerBlock

Tensor = Any

pytestmark = pytest.mark.once


class ScaledConv(layers.Conv2D):
    """Convolution with a scaled kernel."""

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return super().convolution_op(inputs, kernel / 2)


class NamedDense(layers.Dense):
    """Dense layer with other defaults, which computes what Keras' does."""

    def __init__(self) -> None:
        super().__init__(2, name="fc")


def channels_first_conv() -> Any:
    return layers.Conv2D(4, 3, padding="same", data_format="channels_first", name="conv")


def stacked(x: Tensor) -> Tensor:
    x = layers.SimpleRNN(4, return_sequences=True, name="r1")(x)
    return layers.SimpleRNN(4, "relu", name="r2")(x)


def directions(backward: Callable[..., Any], **options: Any) -> Callable[[Tensor], Tensor]:
    return layers.Bidirectional(
        layers.LSTM(4), backward_layer=backward(go_backwards=True, **options), name="r1"
    )


def block(**options: Any) -> Callable[[Tensor], Tensor]:
    return TransformerBlock(8, "relu", 2, **options, name="block1")


# Each layer reads a sequence of 6 steps with 4 features, or an image of 4 x 4 pixels, 4 channels.
SEQUENCE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "lstm_backwards": (layers.LSTM(4, go_backwards=True, name="r1"), "r1, a LSTM.*`go_backwards`"),
    "lstm_relu": (
        layers.LSTM(4, activation="relu", name="r1"),
        "r1, a LSTM.*activation tanh. Its activation is relu",
    ),
    "lstm_gates": (
        layers.LSTM(4, recurrent_activation="hard_sigmoid", name="r1"),
        "r1, a LSTM.*sigmoid. Its recurrent_activation is hard_sigmoid",
    ),
    "lstm_lambda": (layers.LSTM(4, activation=lambda x: 2 * x, name="r1"), "Its activation is"),
    "gru_relu": (layers.GRU(4, activation="relu", name="r1"), "r1, a GRU.*activation is relu"),
    "gru_reset": (layers.GRU(4, reset_after=False, name="r1"), "r1, a GRU.*`reset_after`"),
    "rnn_sigmoid": (
        layers.SimpleRNN(4, "sigmoid", name="r1"),
        "r1, a SimpleRNN.*activation tanh or relu. Its activation is sigmoid",
    ),
    "rnn_stack": (stacked, "r2, a SimpleRNN.*the same activation"),
    "merged": (layers.Bidirectional(layers.LSTM(4), "sum", name="r1"), "`merge_mode='concat'`"),
    "two_kinds": (directions(layers.GRU, units=4), "directions are layers of one kind"),
    "two_widths": (directions(layers.LSTM, units=3), "with as many units"),
    "two_activations": (directions(layers.LSTM, units=4, activation="relu"), "one activation"),
    "batch_norm_scale": (layers.BatchNormalization(scale=False, name="n"), "`scale` and `center`"),
    "layer_norm_scale": (layers.LayerNormalization(scale=False, name="n"), "no `center` without"),
    "block_biases": (block(attention_bias="qkv"), "block1, a TransformerBlock.*biases"),
    "block_heads": (block(head_dim=4), "block1, a TransformerBlock.*no `head_dim`"),
}
IMAGE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "batch_norm": (
        layers.BatchNormalization(axis=1, name="n"),
        "n, a BatchNormalization.*axis of the normalization, 1, is not that of the channels, 3",
    ),
    "group_norm": (
        layers.GroupNormalization(2, axis=2, name="n"),
        "2, is not that of the channels",
    ),
    "layer_norm": (layers.LayerNormalization(axis=1, name="n"), "1.*, is not that of the channels"),
    "rms_norm": (layers.RMSNormalization(axis=2, name="n"), "2.*, is not that of the channels"),
    "layer_norm_order": (layers.LayerNormalization([1, 2, -1], name="n"), "in another order"),
    "batch_norm_first": (
        lambda x: layers.BatchNormalization(name="n")(channels_first_conv()(x)),
        "-1, is not that of the channels, 1",
    ),
    "class": (ScaledConv(2, 3, name="conv"), "conv, a ScaledConv.*replaces convolution_op"),
}


def convert(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    inputs = keras.Input(shape)
    return pytorch.state_dict(keras.Model(inputs, layer(inputs)))


@pytest.mark.parametrize("name", SEQUENCE)
def test_settings_of_sequence_layers_are_refused(name: str) -> None:
    layer, text = SEQUENCE[name]
    with pytest.raises(ValueError, match=rf"must have a counterpart in PyTorch.*{text}"):
        convert(layer, (6, 4))


@pytest.mark.parametrize("name", IMAGE)
def test_settings_of_image_layers_are_refused(name: str) -> None:
    layer, text = IMAGE[name]
    with pytest.raises(ValueError, match=rf"must have a counterpart in PyTorch.*{text}"):
        convert(layer, (4, 4, 4))


def test_deprecated_scaling_is_refused() -> None:
    with pytest.warns(UserWarning, match="rms_scaling"):
        layer = layers.LayerNormalization(rms_scaling=True, name="n")
    with pytest.raises(
        ValueError, match=r"n, a LayerNormalization.*`rms_scaling` divides by the v"
    ):
        convert(layer, (6, 4))


def test_settings_that_pytorch_has_are_converted() -> None:
    backward = layers.Bidirectional(layers.SimpleRNN(4, "relu"), name="r1")
    assert convert(backward, (6, 4))["r.weight_hh_l0_reverse"].shape == (4, 4)
    assert convert(NamedDense(), (6, 4)).keys() == {"fc.weight", "fc.bias"}
    for axis, shape in ((1, 6), (-1, 4)):  # either axis of a sequence holds the features
        norm = layers.BatchNormalization(axis, name="n")
        assert convert(norm, (6, 4))["n.weight"].shape == (shape,)
    for norm in (layers.LayerNormalization(1, name="n"), layers.BatchNormalization(1, name="n")):
        state = convert(lambda x, norm=norm: norm(channels_first_conv()(x)), (3, 5, 6))
        assert state["n.weight"].shape == (4,)
