"""Tests of the U-Net, the text encoder and the text-to-image model."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import registry, summary, text_to_image, unet
from zoo.layers.image import Downsample, TimeEmbedding, Upsample
from zoo.models.text_encoder import text_encoder, text_encoder_parameter_count

TEXT: dict[str, Any] = {
    "vocabulary_size": 12, "max_length": 4, "hidden_dim": 16, "input_shape": (8, 8, 1),
    "channels": (8, 16), "num_steps": 20,
}  # fmt: skip


def make_inputs(batch: int = 2) -> dict[str, np.ndarray]:
    """Returns a batch of noisy images, time steps and padded prompts."""
    image = np.random.default_rng(0).normal(size=(batch, 8, 8, 1)).astype(np.float32)
    prompt = np.array([[1, 3, 2, 0], [1, 4, 0, 0]], np.int32)[:batch]
    return {"image": image, "time": np.arange(batch, dtype=np.int32), "prompt": prompt}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"channels": (32,), "input_shape": (7, 5, 3)},
        {"channels": (8, 16, 64), "num_blocks": 2, "input_shape": (16, 12, 1)},
        {"context_dim": 24, "num_blocks": 2, "channels": (16, 32)},
    ],
)
def test_unet_parameter_count_matches_the_closed_form(arguments: dict[str, Any]) -> None:
    model = unet(**arguments)
    assert model.count_params() == registry.get("unet").parameter_count(**arguments)
    assert model.output.shape[1:] == tuple(arguments.get("input_shape", (28, 28, 1)))


def test_text_encoder_parameter_count_matches_the_closed_form() -> None:
    arguments = {"vocabulary_size": 30, "max_length": 9, "num_layers": 2, "num_heads": 4,
                 "hidden_dim": 32}  # fmt: skip
    assert text_encoder(**arguments).count_params() == text_encoder_parameter_count(**arguments)


def test_downsample_averages_and_upsample_repeats_pixels() -> None:
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    downsampled = ops.convert_to_numpy(Downsample()(x))
    expected = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(downsampled, expected)
    upsampled = ops.convert_to_numpy(Upsample()(x))
    np.testing.assert_array_equal(upsampled, x.repeat(2, axis=1).repeat(2, axis=2))


def test_text_to_image_depends_on_time_and_prompt() -> None:
    model = text_to_image(**TEXT)
    inputs = make_inputs()
    outputs = ops.convert_to_numpy(model(inputs))
    other_time = ops.convert_to_numpy(model({**inputs, "time": inputs["time"] + 10}))
    other_prompt = ops.convert_to_numpy(model({**inputs, "prompt": inputs["prompt"][::-1]}))
    for other_outputs in (other_time, other_prompt):
        assert np.abs(other_outputs - outputs).max() > 1e-4


def test_text_to_image_ignores_padding_of_prompts() -> None:
    model = text_to_image(**TEXT)
    inputs = make_inputs()
    shorter = {**inputs, "prompt": inputs["prompt"][:, :3]}
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(shorter)), ops.convert_to_numpy(model(inputs)), atol=1e-6
    )


def test_text_to_image_treats_examples_independently() -> None:
    model = text_to_image(**TEXT)
    inputs = make_inputs()
    beside_itself = {name: array[[1, 1]] for name, array in inputs.items()}
    outputs = ops.convert_to_numpy(model(inputs))
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(beside_itself)), outputs[[1, 1]], atol=1e-6
    )
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


def test_time_embedding_rejects_a_time_outside_the_schedule() -> None:
    with pytest.raises(ValueError, match=r"Ids must lie in \[0, 20\).*Received: id 20"):
        TimeEmbedding(20, 8)(np.array([3, 20], np.int32))


def test_unet_dropout_is_active_in_training_only() -> None:
    model = unet((8, 8, 1), (8,), num_steps=20, dropout=0.5)
    inputs = {name: array for name, array in make_inputs().items() if name != "prompt"}
    first, second, inference = (
        ops.convert_to_numpy(model(inputs, training=training)) for training in (True, True, False)
    )
    assert np.abs(first - second).max() > 1e-5
    assert np.abs(first - inference).max() > 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_shape": (28, 30, 1), "channels": (8, 16, 32)},
            r"divisible by 4, since 3 levels of `channels` halve them 2 times.*"
            r"input_shape=\(28, 30, 1\), channels=\(8, 16, 32\)",
        ),
        ({"channels": (12,)}, r"multiples of `num_groups`=8. Received: channels=\(12,\)"),
        (
            {"channels": ()},
            r"`channels` must be a sequence of at least 1 element.* Received: channels=\(\)",
        ),
        ({"channels": (8, 40)}, r"multiple of 32.* or less. Received: channels=\(8, 40\)"),
        ({"channels": (0,)}, "each a whole number of at least 1. Received: channels="),
        ({"input_shape": (28, 28)}, r"`input_shape` must be a sequence of 3 elements"),
        ({"num_blocks": 0}, "`num_blocks` must be a whole number of at least 1"),
        ({"num_steps": 0}, "`num_steps` must be a whole number of at least 1"),
        ({"context_dim": 0}, "`context_dim` must be a whole number of at least 1"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\). Received: dropout=1.0"),
    ],
)
def test_unet_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(**arguments)


def test_text_to_image_rejects_invalid_prompts_and_sizes() -> None:
    model = text_to_image(**TEXT)
    inputs = {**make_inputs(), "prompt": np.array([[1, 12, 0], [1, 2, 0]], np.int32)}
    with pytest.raises(ValueError, match=r"Ids must lie in \[0, 12\).*layer words.*id 12"):
        model(inputs)
    with pytest.raises(ValueError, match="`max_length` = 4 tokens"):
        text_encoder(12, max_length=4)(np.ones((1, 5), np.int32))
    with pytest.raises(ValueError, match="Received: hidden_dim=10"):
        text_encoder(12, hidden_dim=10, num_heads=4)


def test_summary_rows_lists_the_layers_of_nested_models() -> None:
    rows = summary.rows(text_to_image(**TEXT))
    names = [row[0] for row in rows]
    assert names.index("text_encoder/words") < names.index("unet/conv_in")
    assert sum(row[-1] for row in rows) == registry.get("text_to_image").parameter_count(**TEXT)


def test_text_to_image_contains_two_named_models() -> None:
    model = text_to_image(**TEXT)
    assert isinstance(model.get_layer("unet"), keras.Model)
    assert isinstance(model.get_layer("text_encoder"), keras.Model)
