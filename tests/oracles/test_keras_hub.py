"""`gpt` against KerasHub's GPT-2 with the same weights: logits and greedy tokens."""

from collections.abc import Iterator
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from zoo import gpt
from zoo.generation.sampling import generate

IDS = np.random.default_rng(0).integers(0, 80, (3, 20)).astype(np.int32)


def variable_pairs(model: Any, backbone: Any) -> Iterator[tuple[Any, Any]]:
    """Yields matching variables. KerasHub's kernels have an additional axis for the heads."""

    def layer(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
        yield from zip(ours.weights, theirs.weights)

    yield from layer(model.get_layer("embedding"), backbone.token_embedding)
    yield from layer(model.get_layer("positions"), backbone.position_embedding)
    for number, hub_block in enumerate(backbone.transformer_layers, 1):
        block = model.get_layer(f"block{number}")
        attention = hub_block._self_attention_layer
        yield from layer(block.attention_norm, hub_block._self_attention_layer_norm)
        yield from layer(block.attention.query_projection, attention._query_dense)
        yield from layer(block.attention.key_projection, attention._key_dense)
        yield from layer(block.attention.value_projection, attention._value_dense)
        yield from layer(block.attention.output_projection, attention._output_dense)
        yield from layer(block.feed_forward_norm, hub_block._feedforward_layer_norm)
        yield from layer(block.feed_forward.up, hub_block._feedforward_intermediate_dense)
        yield from layer(block.feed_forward.down, hub_block._feedforward_output_dense)
    yield from layer(model.get_layer("norm"), backbone.layer_norm)


def make_models() -> tuple[Any, Any]:
    """Creates both models with the same weights, which are large enough for varied tokens."""
    ours = gpt(80, 96, 3, 4, 32, intermediate_dim=48)
    backbone = keras_hub.models.GPT2Backbone(80, 3, 4, 32, 48, max_sequence_length=96)
    rng = np.random.default_rng(1)
    pairs = list(variable_pairs(ours, backbone))
    for variable, hub_variable in pairs:
        array = rng.normal(0, 0.3, variable.shape) + variable.path.endswith("gamma")
        variable.assign(array)
        hub_variable.assign(array.reshape(hub_variable.shape))
    assert {id(variable) for variable, _ in pairs} == {id(v) for v in ours.weights}
    assert {id(variable) for _, variable in pairs} == {id(v) for v in backbone.trainable_weights}
    return ours, keras_hub.models.GPT2CausalLM(backbone)


def test_gpt_gives_the_same_logits_and_tokens() -> None:
    ours, theirs = make_models()
    assert ours.count_params() == theirs.count_params()
    inputs = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
    expected = ops.convert_to_numpy(theirs(inputs, training=False))
    assert np.abs(expected).max() > 1
    logits = ops.convert_to_numpy(ours(IDS))
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # measured: 4e-6

    theirs.compile(sampler="greedy")
    prompt_mask = np.arange(72) < 8
    prompts = {
        "token_ids": np.where(prompt_mask, np.pad(IDS, ((0, 0), (0, 52))), 0).astype(np.int32),
        "padding_mask": np.tile(prompt_mask, (3, 1)),
    }
    greedy = theirs.generate(prompts, stop_token_ids=None)["token_ids"]
    tokens = generate(ours, list(IDS[:, :8]), 64, temperature=0.0)
    np.testing.assert_array_equal(tokens, np.asarray(greedy)[:, 8:])
    assert all(len(set(row.tolist())) > 3 for row in tokens)
