"""The decoder-only transformer: reads tokens, and predicts the next after each.

    x = embedding(ids) + positions                 (B, T, hidden_dim)
    x = block(x), num_layers times                 causal self-attention, feed-forward
    logits = embedding(norm(x), reverse=True)      (B, T, vocabulary_size)

With d = hidden_dim, V = vocabulary_size and blocks as GPT-2's:

    V·d + max_length·d + num_layers·(12·d² + 13·d) + 2·d       124,439,808 for GPT-2 small

What came later (RMSNorm, rotary positions, SwiGLU, grouped queries, no biases) is another
configuration of the same code: `CONFIGURATIONS["llama"]`.

Source: the document's section "LLMs"; Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019; Touvron et al., "LLaMA", 2023.
"""

from typing import Any

import keras

from zoo import initializers, random
from zoo.layers.attention import PositionKind, Positions
from zoo.layers.core import Dense, Embedding
from zoo.layers.transformer_block import (
    Norm,
    TransformerBlock,
    block_parameter_count,
    check_block,
    normalization,
)
from zoo.registry import register
from zoo.validation import check_sizes

_STDDEV = 0.02  # of initial weights, as GPT-2's

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


def _count(
    vocabulary_size: int,
    max_length: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    num_kv_heads: int | None,
    intermediate_dim: int | None,
    activation: str,
    norm: str,
    positions: str,
    use_bias: bool,
    tie_embeddings: bool,
    **_: object,
) -> int:
    block = block_parameter_count(
        hidden_dim, intermediate_dim or 4 * hidden_dim, num_heads, num_kv_heads, activation,
        norm=norm, use_bias=use_bias,
    )  # fmt: skip
    embeddings = vocabulary_size * (1 if tie_embeddings else 2)
    embeddings += max_length if positions == "learned" else 0
    last = 1 if norm == "rms_norm" else 2
    return num_layers * block + (embeddings + last) * hidden_dim


@register(
    section="LLMs",
    recipe="recipes/shakespeare.py",
    parameters="V·d + max_length·d + num_layers·(12·d² + 13·d) + 2·d",
    count=_count,
    generates="tokens",
    examples={
        "": {
            "vocabulary_size": 64, "max_length": 72, "num_layers": 2, "num_heads": 2,
            "hidden_dim": 16, "dropout": 0.1,
        },
        "llama": {
            **CONFIGURATIONS["llama"], "vocabulary_size": 64, "max_length": 72, "num_layers": 2,
            "hidden_dim": 32, "intermediate_dim": 48,
        },
    },
)  # fmt: skip
def gpt(
    vocabulary_size: int = 5000,
    max_length: int = 64,
    num_layers: int = 4,
    num_heads: int = 4,
    hidden_dim: int = 128,
    num_kv_heads: int | None = None,
    intermediate_dim: int | None = None,
    activation: str = "gelu_tanh",
    norm: Norm = "layer_norm",
    positions: PositionKind = "learned",
    rotary_base: float = 10000.0,
    epsilon: float = 1e-5,
    use_bias: bool = True,
    tie_embeddings: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    dtype: str | None = None,
    name: str = "gpt",
) -> keras.Model:
    """Reads tokens and predicts the next after each, from all that stand before it.

    `gpt(**CONFIGURATIONS["gpt2_small"])` is GPT-2 (`from zoo.models.gpt import CONFIGURATIONS`).

    Args:
        vocabulary_size: how many tokens there are.
        max_length: the context, the longest sequence it reads.
        num_layers: blocks.
        num_heads: of the attention; a divisor of `hidden_dim`.
        hidden_dim: width of a token's vector.
        num_kv_heads: heads of keys and values, a divisor of `num_heads`; by default as many.
        intermediate_dim: width within a block's feed-forward network; by default 4·hidden_dim.
        activation: of it: "relu", "gelu", "gelu_tanh" or "swiglu".
        norm: "layer_norm" or "rms_norm".
        positions: "learned", "sinusoidal" or "rotary".
        rotary_base: of the rotations' wave lengths.
        epsilon: added to the variance in a normalisation.
        use_bias: of the dense layers.
        tie_embeddings: whether the output's kernel is the embedding's.
        dropout: fraction dropped of the embeddings and of what each part of a block adds, in
            [0, 1).
        seed: of the initial weights and the dropout masks; the same on every backend.
        dtype: a dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: of the model.

    Returns:
        An uncompiled model from token ids, (B, T) int, to logits, (B, T, vocabulary_size). An id
        outside the vocabulary is refused: see `zoo.layers.core.Embedding`.

    Raises:
        ValueError: for a size that is not at least 1, heads that do not divide what they share, an
            unknown `activation`, `norm` or kind of `positions`, `dropout` outside [0, 1) and, when
            it is called, for a sequence longer than `max_length`.
    """
    check_sizes(vocabulary_size=vocabulary_size, max_length=max_length, num_layers=num_layers)
    intermediate_dim = 4 * hidden_dim if intermediate_dim is None else intermediate_dim
    check_block(
        hidden_dim, num_heads, num_kv_heads, activation, norm, dropout, positions,
        intermediate_dim=intermediate_dim,
    )  # fmt: skip

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
            intermediate_dim, activation, num_heads, num_kv_heads,
            causal=True, max_length=max_length,
            rotary_base=rotary_base if positions == "rotary" else None,
            norm=norm, epsilon=epsilon, dropout=dropout, use_bias=use_bias,
            # What is added 2·num_layers times begins smaller, so that the sum does not grow.
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
