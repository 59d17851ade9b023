"""The blocks against PyTorch's own transformer layers: both orders of norms, masks."""

from typing import Any

import numpy as np
import pytest
import torch
from keras import ops
from torch import nn

from zoo.blocks import TransformerBlock

X = np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32)
CONTEXT = np.random.default_rng(1).normal(size=(3, 9, 16)).astype(np.float32)
COUNTS = np.arange(6) < np.array([[6], [3], [1]])
CONTEXT_COUNTS = np.arange(9) < np.array([[2], [9], [5]])
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


def randomised(layer: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    return layer.eval()


@NORM_FIRST
@ACTIVATIONS
def test_an_encoders_layer_with_padding(norm_first: bool, activation: Any) -> None:
    theirs = randomised(
        nn.TransformerEncoderLayer(
            16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first
        )
    )
    ours = TransformerBlock(24, activation, 4, norm_first=norm_first)
    ours.build((None, None, 16))
    copy_block(ours, theirs)
    found = ops.convert_to_numpy(ours(X, counts=ops.convert_to_tensor(COUNTS)))
    with torch.enable_grad():  # PyTorch's fast path, without, leaves padding out
        padding = torch.from_numpy(~COUNTS)
        expected = theirs(torch.from_numpy(X), src_key_padding_mask=padding).detach().numpy()
    np.testing.assert_allclose(found[COUNTS], expected[COUNTS], atol=1e-5)


@NORM_FIRST
@ACTIVATIONS
def test_a_decoders_layer_with_a_context(norm_first: bool, activation: Any) -> None:
    theirs = randomised(
        nn.TransformerDecoderLayer(
            16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first
        )
    )
    ours = TransformerBlock(
        24, activation, 4, causal=True, cross_attention=True, norm_first=norm_first
    )
    ours.build((None, None, 16))
    copy_block(ours, theirs)
    found = ours(X, CONTEXT, context_counts=ops.convert_to_tensor(CONTEXT_COUNTS))
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(X), torch.from_numpy(CONTEXT), tgt_mask=causal, tgt_is_causal=True,
            memory_key_padding_mask=torch.from_numpy(~CONTEXT_COUNTS),
        ).numpy()  # fmt: skip
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)
