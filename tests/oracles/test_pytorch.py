"""`TransformerBlock` and `transformer` with PyTorch's weights: both norm orders, padding masks."""

from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import ops
from torch import nn

from zoo import transformer
from zoo.interop import pytorch
from zoo.layers.attention import sinusoidal_table
from zoo.layers.transformer_block import TransformerBlock

X = np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32)
CONTEXT = np.random.default_rng(1).normal(size=(3, 9, 16)).astype(np.float32)
PADDING_MASK = np.arange(6) < np.array([[6], [3], [1]])
CONTEXT_MASK = np.arange(9) < np.array([[2], [9], [5]])
HALVES = "source", "target"
NORM_FIRST = pytest.mark.parametrize("norm_first", [True, False])
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "gelu"])


def model_of(block: TransformerBlock, masks: str) -> keras.Model:
    """Model of one block named `block`, whose padding mask or context mask is an input."""
    x, context = keras.Input((None, 16)), keras.Input((None, 16))
    mask = keras.Input((None,), dtype="bool")
    if masks == "padding_mask":
        return keras.Model([x, mask], block(x, padding_mask=mask))
    return keras.Model([x, context, mask], block(x, context, context_mask=mask))


def load_block(model: keras.Model, theirs: nn.Module) -> None:
    pytorch.load(model, {f"block.{name}": tensor for name, tensor in theirs.state_dict().items()})


def randomize(layer: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    return layer.eval()


@NORM_FIRST
@ACTIVATIONS
def test_encoder_block_with_padding_mask(norm_first: bool, activation: Any) -> None:
    theirs = randomize(
        nn.TransformerEncoderLayer(
            16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first
        )
    )
    block = TransformerBlock(24, activation, 4, norm_first=norm_first, name="block")
    ours = model_of(block, "padding_mask")
    load_block(ours, theirs)
    outputs = ops.convert_to_numpy(ours([X, PADDING_MASK]))
    with torch.enable_grad():  # without gradients, PyTorch's fast path removes padding
        padding = torch.from_numpy(~PADDING_MASK)
        expected = theirs(torch.from_numpy(X), src_key_padding_mask=padding).detach().numpy()
    np.testing.assert_allclose(outputs[PADDING_MASK], expected[PADDING_MASK], atol=1e-5)


@NORM_FIRST
@ACTIVATIONS
def test_decoder_block_with_context_mask(norm_first: bool, activation: Any) -> None:
    theirs = randomize(
        nn.TransformerDecoderLayer(
            16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first
        )
    )
    block = TransformerBlock(
        24, activation, 4, causal=True, cross_attention=True, norm_first=norm_first, name="block"
    )
    ours = model_of(block, "context_mask")
    load_block(ours, theirs)
    outputs = ours([X, CONTEXT, CONTEXT_MASK])
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(X), torch.from_numpy(CONTEXT), tgt_mask=causal, tgt_is_causal=True,
            memory_key_padding_mask=torch.from_numpy(~CONTEXT_MASK),
        ).numpy()  # fmt: skip
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # warns of a slow path
@pytest.mark.parametrize(
    ("norm_first", "final_norm"), [(True, True), (False, True), (False, False)]
)
def test_transformer_matches_pytorch(norm_first: bool, final_norm: bool) -> None:
    """`nn.Transformer` with the same embeddings, followed by the same projection to logits."""
    ours = transformer(
        40, 50, 16, num_layers=2, num_heads=4, hidden_dim=16, intermediate_dim=24, dropout=0.0,
        norm_first=norm_first, final_norm=final_norm,
    )  # fmt: skip
    theirs = nn.Transformer(16, 4, 2, 2, 24, 0.0, "relu", batch_first=True, norm_first=norm_first)
    if not final_norm:  # as in the paper
        theirs.encoder.norm = theirs.decoder.norm = None
    theirs = randomize(theirs)
    embeddings = {n: a for n, a in pytorch.state_dict(ours).items() if "embedding" in n}
    pytorch.load(ours, {**embeddings, **theirs.state_dict()})
    saved = pytorch.state_dict(ours)
    assert saved.keys() == embeddings.keys() | theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(saved[name], tensor.numpy())
    sources = np.random.default_rng(2).integers(1, 40, (3, 9)) * CONTEXT_MASK
    targets = np.random.default_rng(3).integers(1, 50, (3, 6))
    positions = sinusoidal_table(16, 16)
    source_table, target_table = (embeddings[f"{half}_embedding.weight"] for half in HALVES)
    embedded = (
        torch.from_numpy((4 * table[ids] + positions[: ids.shape[1]]).astype(np.float32))
        for table, ids in ((source_table, sources), (target_table, targets))
    )
    padding = torch.from_numpy(~CONTEXT_MASK)
    with torch.enable_grad():  # without gradients, PyTorch's fast path removes padding
        decoded = theirs(
            *embedded, tgt_mask=nn.Transformer.generate_square_subsequent_mask(6),
            src_key_padding_mask=padding, memory_key_padding_mask=padding, tgt_is_causal=True,
        )  # fmt: skip
    expected = decoded.detach().numpy() @ target_table.T
    outputs = ops.convert_to_numpy(ours([sources, targets]))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
