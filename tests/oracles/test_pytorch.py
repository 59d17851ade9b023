"""`TransformerBlock` and `transformer` against PyTorch's: both norm orders, padding masks."""

from typing import Any

import numpy as np
import pytest
import torch
from keras import ops
from torch import nn

from zoo import transformer
from zoo.layers.attention import sinusoidal_table
from zoo.layers.transformer_block import TransformerBlock

X = np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32)
CONTEXT = np.random.default_rng(1).normal(size=(3, 9, 16)).astype(np.float32)
PADDING_MASK = np.arange(6) < np.array([[6], [3], [1]])
CONTEXT_MASK = np.arange(9) < np.array([[2], [9], [5]])
NORM_FIRST = pytest.mark.parametrize("norm_first", [True, False])
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "gelu"])


def assign(layer: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.set_weights([weight.detach().numpy().T, bias.detach().numpy()])


def copy_attention(ours: Any, theirs: nn.MultiheadAttention) -> None:
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases):
        assign(getattr(ours, f"{name}_projection"), weight, bias)
    assign(ours.output_projection, theirs.out_proj.weight, theirs.out_proj.bias)


def copy_block(ours: TransformerBlock, theirs: Any) -> None:
    copy_attention(ours.attention, theirs.self_attn)
    norms = ["attention_norm", "feed_forward_norm"]
    if ours.cross_attention is not None:
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.insert(1, "cross_attention_norm")
    assign(ours.feed_forward.up, theirs.linear1.weight, theirs.linear1.bias)
    assign(ours.feed_forward.down, theirs.linear2.weight, theirs.linear2.bias)
    for number, name in enumerate(norms, 1):
        norm = getattr(theirs, f"norm{number}")
        weights = [norm.weight.detach().numpy(), norm.bias.detach().numpy()]
        getattr(ours, name).set_weights(weights)


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
    ours = TransformerBlock(24, activation, 4, norm_first=norm_first)
    ours.build((None, None, 16))
    copy_block(ours, theirs)
    outputs = ops.convert_to_numpy(ours(X, padding_mask=ops.convert_to_tensor(PADDING_MASK)))
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
    ours = TransformerBlock(
        24, activation, 4, causal=True, cross_attention=True, norm_first=norm_first
    )
    ours.build((None, None, 16))
    copy_block(ours, theirs)
    outputs = ours(X, CONTEXT, context_mask=ops.convert_to_tensor(CONTEXT_MASK))
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(X), torch.from_numpy(CONTEXT), tgt_mask=causal, tgt_is_causal=True,
            memory_key_padding_mask=torch.from_numpy(~CONTEXT_MASK),
        ).numpy()  # fmt: skip
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # warns of a slow path
@NORM_FIRST
def test_transformer_matches_pytorch(norm_first: bool) -> None:
    """`nn.Transformer` with the same embeddings, followed by the same projection to logits."""
    ours = transformer(
        40, 50, 16, num_layers=2, num_heads=4, hidden_dim=16, intermediate_dim=24, dropout=0.0,
        norm_first=norm_first,
    )  # fmt: skip
    theirs = nn.Transformer(16, 4, 2, 2, 24, 0.0, "relu", batch_first=True, norm_first=norm_first)
    if not norm_first:  # the paper has no norms after the last blocks
        theirs.encoder.norm = theirs.decoder.norm = None
    theirs = randomize(theirs)
    for half in ("encoder", "decoder"):
        stack = getattr(theirs, half)
        for number, layer in enumerate(stack.layers, 1):
            copy_block(ours.get_layer(f"{half}_block{number}"), layer)
        if norm_first:
            weights = [stack.norm.weight.detach().numpy(), stack.norm.bias.detach().numpy()]
            ours.get_layer(f"{half}_norm").set_weights(weights)
    sources = np.random.default_rng(2).integers(1, 40, (3, 9)) * CONTEXT_MASK
    targets = np.random.default_rng(3).integers(1, 50, (3, 6))
    positions = sinusoidal_table(16, 16)
    tables = (ours.get_layer(f"{half}_embedding").get_weights()[0] for half in ("source", "target"))
    source_table, target_table = tables
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
