"""Text encoder of a prompt: the encoder of a transformer.

    ids             (B, L)               beginning of sequence (1), tokens, padding (0)
    x               (B, L, hidden_dim)   vector of each token in its context
    padding_mask    (B, L)               false at padding

Source: Vaswani et al., 2017; Rombach et al., 2022, section 3.3.
"""

from typing import Any

import keras

from zoo import initializers
from zoo.layers.attention import Positions
from zoo.layers.core import Embedding, PaddingMask
from zoo.layers.transformer_block import (
    TransformerBlock,
    block_parameter_count,
    check_heads,
    normalization,
)
from zoo.validation import DType, Layers, Name, Seed, Size, Vocabulary, validated

PADDING = 0  # id of padding
_STDDEV = 1.0  # of the initial embeddings, so that words differ from the first step on


@validated
def text_encoder(
    vocabulary_size: Vocabulary,
    max_length: Size = 16,
    num_layers: Layers = 1,
    num_heads: Size = 2,
    hidden_dim: Size = 64,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "text_encoder",
) -> keras.Model:
    """Transformer encoder that encodes prompts.

    Args:
        vocabulary_size: Number of tokens in the vocabulary; id 0 is padding.
        max_length: Number of tokens of the longest prompt.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention heads, a divisor of `hidden_dim`.
        hidden_dim: Width of a token's vector.
        seed: Seed of the initial weights.
        dtype: A dtype or dtype policy; by default Keras' global one.
        name: Name of the model.

    Returns:
        An uncompiled model from token ids, (B, L) int, to [vectors, padding_mask]. The vectors are
        (B, L, hidden_dim); the padding mask is (B, L) bool, false at padding.

    Raises:
        ValueError: If a size is not at least 1, or `num_heads` does not divide `hidden_dim`. When
            called: if a prompt is longer than `max_length`, or an id lies outside the vocabulary.
    """
    check_heads(hidden_dim, num_heads)
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


@validated
def text_encoder_parameter_count(
    vocabulary_size: Vocabulary,
    max_length: Size,
    num_layers: Layers,
    num_heads: Size,
    hidden_dim: Size,
) -> int:
    """Returns the parameter count of a `text_encoder` with these arguments."""
    block = block_parameter_count(hidden_dim, 4 * hidden_dim, num_heads)
    return (vocabulary_size + max_length + 2) * hidden_dim + num_layers * block
