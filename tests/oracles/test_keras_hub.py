"""`gpt` against KerasHub's GPT-2 with the same weights: logits and greedy tokens."""

from collections.abc import Iterator
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from zoo import gpt
from zoo.generation.sampling import generate

IDS = np.random.default_rng(0).integers(0, 80, (3, 20)).astype(np.int32)


def pairs(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    """Variables here and there. A kernel of theirs has an axis more, for the heads."""

    def layer(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
        yield from zip(ours.weights, theirs.weights)

    yield from layer(ours.get_layer("embedding"), theirs.token_embedding)
    yield from layer(ours.get_layer("positions"), theirs.position_embedding)
    for number, block in enumerate(theirs.transformer_layers, 1):
        here = ours.get_layer(f"block{number}")
        attention = block._self_attention_layer
        yield from layer(here.attention_norm, block._self_attention_layer_norm)
        yield from layer(here.attention.query_projection, attention._query_dense)
        yield from layer(here.attention.key_projection, attention._key_dense)
        yield from layer(here.attention.value_projection, attention._value_dense)
        yield from layer(here.attention.output_projection, attention._output_dense)
        yield from layer(here.feed_forward_norm, block._feedforward_layer_norm)
        yield from layer(here.feed_forward.up, block._feedforward_intermediate_dense)
        yield from layer(here.feed_forward.down, block._feedforward_output_dense)
    yield from layer(ours.get_layer("norm"), theirs.layer_norm)


def both() -> tuple[Any, Any]:
    """The two with the same weights, large enough that tokens vary."""
    ours = gpt(80, 96, 3, 4, 32, intermediate_dim=48)
    backbone = keras_hub.models.GPT2Backbone(80, 3, 4, 32, 48, max_sequence_length=96)
    rng = np.random.default_rng(1)
    found = list(pairs(ours, backbone))
    for here, there in found:
        array = rng.normal(0, 0.3, here.shape) + here.path.endswith("gamma")
        here.assign(array)
        there.assign(array.reshape(there.shape))
    assert {id(here) for here, _ in found} == {id(variable) for variable in ours.weights}
    assert {id(there) for _, there in found} == {id(v) for v in backbone.trainable_weights}
    return ours, keras_hub.models.GPT2CausalLM(backbone)


def test_the_same_logits_and_tokens() -> None:
    ours, theirs = both()
    assert ours.count_params() == theirs.count_params()
    inputs = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
    expected = ops.convert_to_numpy(theirs(inputs, training=False))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ops.convert_to_numpy(ours(IDS)), expected, atol=1e-5)  # 4e-6

    theirs.compile(sampler="greedy")
    given = np.arange(72) < 8
    prompts = {
        "token_ids": np.where(given, np.pad(IDS, ((0, 0), (0, 52))), 0).astype(np.int32),
        "padding_mask": np.tile(given, (3, 1)),
    }
    greedy = theirs.generate(prompts, stop_token_ids=None)["token_ids"]
    found = generate(ours, list(IDS[:, :8]), 64, temperature=0.0)
    np.testing.assert_array_equal(found, np.asarray(greedy)[:, 8:])
    assert all(len(set(row.tolist())) > 3 for row in found)
