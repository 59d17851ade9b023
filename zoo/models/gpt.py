"""GPT: decoder-only transformer that predicts the next token after each token.

    x = embedding(ids) + positions                 (B, T, hidden_dim)
    x = block(x), num_layers times                 causal self-attention, feed-forward
    logits = embedding(norm(x), reverse=True)      (B, T, vocabulary_size)

With d = hidden_dim, V = vocabulary_size and the blocks of GPT-2, the parameter count is

    V·d + max_length·d + num_layers·(12·d² + 13·d) + 2·d       124,439,808 for GPT-2 small

`CONFIGURATIONS["llama"]` has the later blocks: RMSNorm, rotary embeddings, SwiGLU, grouped-query
attention and no biases. With `attention_bias="qkv"` they are the blocks of Qwen2.

Source: the document's section "LLMs"; Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019; Touvron et al., "LLaMA", 2023; Yang et al., "Qwen2 Technical Report", 2024.
"""

from collections.abc import Mapping
from typing import Any

import keras

from zoo import initializers, random
from zoo.layers.attention import AttentionBias, PositionKind, Positions
from zoo.layers.core import Dense, Embedding
from zoo.layers.feed_forward import FeedForwardActivation
from zoo.layers.transformer_block import (
    Norm,
    TransformerBlock,
    block_parameter_count,
    check_heads,
    normalization,
)
from zoo.registry import register
from zoo.validation import (
    DType,
    Layers,
    Name,
    Positive,
    Rate,
    Seed,
    Size,
    Source,
    Vocabulary,
    validated,
)

_STDDEV = 0.02  # standard deviation of the initial weights, as in GPT-2

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "small": {"max_length": 64, "num_layers": 4, "num_heads": 4, "hidden_dim": 128},
    "gpt2_small": {
        "vocabulary_size": 50257, "max_length": 1024,
        "num_layers": 12, "num_heads": 12, "hidden_dim": 768,
    },
    "llama": {
        "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 128,
        "intermediate_dim": 344, "activation": "swiglu", "norm": "rms_norm", "positions": "rotary",
        "use_bias": False, "tie_embeddings": False,
    },
}  # fmt: skip


@validated
def parameter_count(
    vocabulary_size: Vocabulary,
    max_length: Size,
    num_layers: Layers,
    num_heads: Size,
    hidden_dim: Size,
    num_kv_heads: Size | None,
    head_dim: Size | None,
    intermediate_dim: Size | None,
    activation: str,
    norm: str,
    positions: str,
    use_bias: bool,
    attention_bias: AttentionBias | None,
    tie_embeddings: bool,
    **_: object,
) -> int:
    """Returns the parameter count of a `gpt` with these arguments."""
    block = block_parameter_count(
        hidden_dim, intermediate_dim or 4 * hidden_dim, num_heads, num_kv_heads, activation,
        norm=norm, use_bias=use_bias, head_dim=head_dim, attention_bias=attention_bias,
    )  # fmt: skip
    embeddings = vocabulary_size * (1 if tie_embeddings else 2)
    embeddings += max_length if positions == "learned" else 0
    final_norm = 1 if norm == "rms_norm" else 2
    return num_layers * block + (embeddings + final_norm) * hidden_dim


@register(
    section="LLMs",
    recipe="recipes/shakespeare.py",
    parameter_formula="V·d + max_length·d + num_layers·(12·d² + 13·d) + 2·d",
    parameter_count=parameter_count,
    generates="tokens",
    examples={
        "": {
            "vocabulary_size": 64, "max_length": 72, "num_layers": 2, "num_heads": 2,
            "hidden_dim": 16, "dropout": 0.1,
        },
        "llama": {
            **CONFIGURATIONS["llama"], "vocabulary_size": 64, "max_length": 72, "num_layers": 2,
            "hidden_dim": 32, "intermediate_dim": 48, "head_dim": 12, "attention_bias": "qkv",
            "rotary_scaling": {
                "type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_length": 36,
            },
        },
    },
)  # fmt: skip
def gpt(
    vocabulary_size: Vocabulary = 5000,
    max_length: Size = 64,
    num_layers: Layers = 4,
    num_heads: Size = 4,
    hidden_dim: Size = 128,
    num_kv_heads: Size | None = None,
    head_dim: Size | None = None,
    intermediate_dim: Size | None = None,
    activation: FeedForwardActivation = "gelu_tanh",
    norm: Norm = "layer_norm",
    positions: PositionKind = "learned",
    rotary_base: Positive = 10000.0,
    rotary_scaling: Mapping[str, Any] | None = None,
    epsilon: Positive = 1e-5,
    use_bias: bool = True,
    attention_bias: AttentionBias | None = None,
    tie_embeddings: bool = True,
    dropout: Rate = 0.0,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "gpt",
    weights: Source | None = None,
) -> keras.Model:
    """Decoder-only transformer: predicts the next token from all tokens up to each position.

    `gpt(**CONFIGURATIONS["gpt2_small"])` is GPT-2 (`from zoo.models.gpt import CONFIGURATIONS`).

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        max_length: Context length, the number of tokens of the longest input.
        num_layers: Number of transformer blocks.
        num_heads: Number of query heads, a divisor of `hidden_dim` unless `head_dim` is given.
        hidden_dim: Width of a token's vector.
        num_kv_heads: Number of key and value heads, a divisor of `num_heads`; by default
            `num_heads`.
        head_dim: Width of a head of attention; by default hidden_dim/num_heads.
        intermediate_dim: Inner width of a block's feed-forward network; by default 4·hidden_dim.
        activation: Activation of the feed-forward networks: "relu", "gelu", "gelu_tanh" or
            "swiglu".
        norm: Kind of the normalizations: "layer_norm" or "rms_norm".
        positions: Kind of the position encodings: "learned", "sinusoidal" or "rotary".
        rotary_base: Base of the wavelengths of rotary embeddings.
        rotary_scaling: Scaling of the frequencies of rotary embeddings, the arguments of
            `zoo.layers.rotary.RotaryScaling` by name, such as {"type": "linear", "factor": 2.0};
            by default none.
        epsilon: Constant added to the variance in a normalization.
        use_bias: Whether the dense layers have biases.
        attention_bias: Whether the projections of attention have biases. "qkv" means biases of the
            projections to queries, keys and values but not of the output projection, as in Qwen2.
            By default as `use_bias`.
        tie_embeddings: Whether the output layer shares the weights of the token embedding.
        dropout: Dropout rate of the embeddings and of each sublayer's output, in [0, 1).
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from token ids, (B, T) int, to logits, (B, T, vocabulary_size).

    Raises:
        ValueError: If a size is not at least 1, `num_heads` does not divide `hidden_dim`,
            `num_kv_heads` does not divide `num_heads`, `activation`, `norm` or `positions` is
            unknown, `dropout` lies outside [0, 1), or `rotary_scaling` is invalid.
            When called: if a sequence is longer than `max_length`, or an id lies outside the
            vocabulary (see `zoo.layers.core.Embedding`).
    """
    check_heads(hidden_dim, num_heads, num_kv_heads, positions, head_dim, rotary_scaling)
    intermediate_dim = 4 * hidden_dim if intermediate_dim is None else intermediate_dim

    ids = keras.Input((None,), dtype="int32", name="ids")
    embedding = Embedding(
        vocabulary_size,
        hidden_dim,
        embeddings_initializer=initializers.Normal(seed, "embedding", _STDDEV),
        dtype=dtype,
        name="embedding",
    )
    x = embedding(ids)
    if positions != "rotary":
        initializer = initializers.Normal(seed, "positions", _STDDEV)
        x = Positions(positions, max_length, initializer, dtype=dtype, name="positions")(x)
    if dropout:
        x = random.Dropout(dropout, seed, dtype=dtype, name="dropout")(x)
    for i in range(1, num_layers + 1):
        x = TransformerBlock(
            intermediate_dim, activation, num_heads, num_kv_heads, head_dim,
            causal=True, max_length=max_length,
            rotary_base=rotary_base if positions == "rotary" else None,
            rotary_scaling=rotary_scaling, attention_bias=attention_bias,
            norm=norm, epsilon=epsilon, dropout=dropout, use_bias=use_bias,
            # The sum of 2·num_layers residuals keeps its scale with smaller initial weights.
            stddev=_STDDEV, output_stddev=_STDDEV / (2 * num_layers) ** 0.5,
            seed=seed, dtype=dtype, name=f"block{i}",
        )(x)  # fmt: skip
    x = normalization(norm, epsilon, dtype, "norm")(x)
    if tie_embeddings:
        logits = embedding(x, reverse=True)
    else:
        kernel = initializers.Normal(seed, "output", _STDDEV)
        logits = Dense(
            vocabulary_size, use_bias=False, kernel_initializer=kernel, dtype=dtype, name="output"
        )(x)
    return keras.Model(ids, logits, name=name)
