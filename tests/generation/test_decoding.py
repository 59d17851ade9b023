"""Tests of incremental decoding of recurrent models."""

import numpy as np
import pytest
from keras import ops

from zoo import rnn_language_model
from zoo.generation import decoding
from zoo.layers.recurrent import LAYERS

VOCABULARY = 50


@pytest.mark.parametrize("cell", LAYERS)
def test_recurrent_decoder_takes_prompts_of_any_length_in_two_shapes(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled step is kept for each shape, so prompts of 40 lengths must not make 40 shapes."""
    model = rnn_language_model(VOCABULARY, cell, embedding_dim=6, units=8, num_layers=2)
    decoder = decoding.decoder_for(model)
    compiled_step = decoder._compiled_step
    shapes = set()

    def step(ids: np.ndarray, *states: object) -> object:
        shapes.add(ids.shape)
        return compiled_step(ids, *states)

    monkeypatch.setattr(decoder, "_compiled_step", step)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 40)).astype(np.int32)
    expected = ops.convert_to_numpy(model(ids))
    for length in range(1, 41):
        logits = ops.convert_to_numpy(decoder.prefill(list(ids[:, :length]), 1))
        np.testing.assert_allclose(logits, expected[:, length - 1], atol=1e-6)
    assert shapes == {(2, 16), (2, 1)}
