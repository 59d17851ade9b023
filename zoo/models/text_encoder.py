"""The network that reads a prompt: a transformer's encoder.

    ids      (B, L)               1 first, padding behind
    x        (B, L, hidden_dim)   what each token is, given the others

Source: Vaswani et al., 2017; Rombach et al., 2022, section 3.3.
"""

from typing import Any

import keras

from zoo import initializers
from zoo.diffusion.prompts import PADDING
from zoo.layers.attention import Positions
from zoo.layers.core import Embedding
from zoo.layers.transformer_block import (
    PaddingMask,
    TransformerBlock,
    block_parameter_count,
    check_block,
    normalization,
)
from zoo.validation import check_sizes

_STDDEV = 1.0  # of the embeddings: words are to differ from the first step on


def text_encoder(
    vocabulary_size: int,
    max_length: int = 16,
    num_layers: int = 1,
    num_heads: int = 2,
    hidden_dim: int = 64,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "text_encoder",
) -> keras.Model:
    """Reads prompts.

    Args:
        vocabulary_size: how many tokens there are; 0 is padding.
        max_length: tokens of the longest prompt.
        num_layers: blocks.
        num_heads: of each attention; a divisor of `hidden_dim`.
        hidden_dim: width of a token's vector.
        seed: of the initial weights.
        dtype: a dtype or dtype policy; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from ids, (B, L) int, to [tokens (B, L, hidden_dim), padding_mask (B, L) bool,
        true but for padding].

    Raises:
        ValueError: for a size that is not at least 1, or heads that do not divide `hidden_dim`.
    """
    check_sizes(vocabulary_size=vocabulary_size, max_length=max_length, num_layers=num_layers)
    check_block(hidden_dim, num_heads, None, "gelu", "layer_norm", 0.0, "learned")
    ids = keras.Input((None,), dtype="int32", name="prompt")
    padding_mask = PaddingMask(PADDING, name="prompt_mask")(ids)
    x: Any = Embedding(
        vocabulary_size, hidden_dim,
        embeddings_initializer=initializers.Normal(seed, "words", _STDDEV), dtype=dtype,
        name="words",
    )(ids)  # fmt: skip
    table = initializers.Normal(seed, "word_positions", 0.02)
    x = Positions("learned", max_length, table, dtype=dtype, name="word_positions")(x)
    for number in range(1, num_layers + 1):
        x = TransformerBlock(
            4 * hidden_dim, "gelu", num_heads, seed=seed, dtype=dtype, name=f"text_block{number}"
        )(x, padding_mask=padding_mask)
    x = normalization("layer_norm", 1e-5, dtype, "text_norm")(x)
    return keras.Model(ids, [x, padding_mask], name=name)


def text_encoder_parameter_count(
    vocabulary_size: int, max_length: int, num_layers: int, num_heads: int, hidden_dim: int
) -> int:
    """Parameters, in closed form."""
    block = block_parameter_count(hidden_dim, 4 * hidden_dim, num_heads)
    return (vocabulary_size + max_length + 2) * hidden_dim + num_layers * block
