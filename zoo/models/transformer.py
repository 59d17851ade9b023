"""Encoder-decoder transformer: predicts a target sequence from a source sequence.

    memory = embedding(source)·sqrt(d) + positions              (B, S, d)
    memory = block(memory), num_layers times                    self-attention, feed-forward
    x = embedding(target)·sqrt(d) + positions                   (B, T, d)
    x = block(x, memory), num_layers times      causal self-attention, cross-attention, feed-forward
    logits = embedding(x, reverse=True)                         (B, T, target_vocabulary_size)

With d = hidden_dim, f = intermediate_dim and one table of V tokens for source, target and output,
the parameter count is

    V·d + num_layers·((4·d² + 2·d·f + 9·d + f) + (8·d² + 2·d·f + 15·d + f))

The base model of the paper, with 37,000 tokens, has 63,082,496 parameters.

Source: the document's section "Architecture de Transformateur"; Vaswani et al., "Attention Is All
You Need", 2017.
"""

from typing import Any

import keras

from zoo import initializers, random
from zoo.layers.attention import PositionKind, Positions
from zoo.layers.core import Dense, Embedding, PaddingMask
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
    TokenId,
    Vocabulary,
    validated,
)

Tensor = Any

PADDING = 0  # default id of padding

_BPE = {"source_vocabulary_size": 37000, "target_vocabulary_size": 37000, "share_embeddings": True}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "small": {"num_layers": 3, "num_heads": 4, "hidden_dim": 256, "intermediate_dim": 1024},
    "base": {
        **_BPE, "max_length": 1024,
        "num_layers": 6, "num_heads": 8, "hidden_dim": 512, "intermediate_dim": 2048,
    },
    "big": {
        **_BPE, "max_length": 1024, "dropout": 0.3,
        "num_layers": 6, "num_heads": 16, "hidden_dim": 1024, "intermediate_dim": 4096,
    },
}  # fmt: skip


@validated
def parameter_count(
    source_vocabulary_size: Vocabulary,
    target_vocabulary_size: Vocabulary,
    max_length: Size,
    num_layers: Layers,
    num_heads: Size,
    hidden_dim: Size,
    intermediate_dim: Size | None,
    num_kv_heads: Size | None,
    activation: str,
    norm: str,
    norm_first: bool,
    final_norm: bool | None,
    positions: str,
    use_bias: bool,
    share_embeddings: bool,
    tie_embeddings: bool,
    **_: object,
) -> int:
    """Returns the parameter count of a `transformer` with these arguments."""
    encoder, decoder = (
        block_parameter_count(
            hidden_dim, intermediate_dim or 4 * hidden_dim, num_heads, num_kv_heads, activation,
            cross_attention=cross_attention, norm=norm, use_bias=use_bias,
        )
        for cross_attention in (False, True)
    )  # fmt: skip
    rows = target_vocabulary_size * (1 if tie_embeddings else 2)
    rows += 0 if share_embeddings else source_vocabulary_size
    rows += 2 * max_length if positions == "learned" else 0
    has_final_norms = norm_first if final_norm is None else final_norm
    rows += (2 if norm == "rms_norm" else 4) if has_final_norms else 0
    return num_layers * (encoder + decoder) + rows * hidden_dim


@register(
    section="Architecture de Transformateur",
    recipe="recipes/translate.py",
    parameter_formula="V·d + num_layers·((4·d² + 2·d·f + 9·d + f) + (8·d² + 2·d·f + 15·d + f))",
    parameter_count=parameter_count,
    generates="tokens",
    examples={
        "": {
            "source_vocabulary_size": 48, "target_vocabulary_size": 64, "max_length": 72,
            "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "dropout": 0.1,
        },
        "pre_norm": {
            "source_vocabulary_size": 64, "target_vocabulary_size": 64, "max_length": 72,
            "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 32,
            "intermediate_dim": 48, "activation": "swiglu", "norm": "rms_norm", "norm_first": True,
            "positions": "rotary", "use_bias": False, "share_embeddings": True,
            "tie_embeddings": False,
        },
    },
)  # fmt: skip
def transformer(
    source_vocabulary_size: Vocabulary = 8000,
    target_vocabulary_size: Vocabulary = 8000,
    max_length: Size = 128,
    num_layers: Layers = 3,
    num_heads: Size = 4,
    hidden_dim: Size = 256,
    intermediate_dim: Size | None = None,
    num_kv_heads: Size | None = None,
    activation: FeedForwardActivation = "relu",
    norm: Norm = "layer_norm",
    norm_first: bool = False,
    final_norm: bool | None = None,
    positions: PositionKind = "sinusoidal",
    rotary_base: Positive = 10000.0,
    epsilon: Positive = 1e-5,
    use_bias: bool = True,
    share_embeddings: bool = False,
    tie_embeddings: bool = True,
    padding: TokenId = PADDING,
    dropout: Rate = 0.1,
    seed: Seed = 0,
    dtype: DType | None = None,
    name: Name = "transformer",
    weights: Source | None = None,
) -> keras.Model:
    """Encoder-decoder transformer: predicts the next target token from source and earlier tokens.

    `transformer(**CONFIGURATIONS["base"])` is the base model of the paper
    (`from zoo.models.transformer import CONFIGURATIONS`).

    Args:
        source_vocabulary_size: Number of tokens in the source vocabulary.
        target_vocabulary_size: Number of tokens in the target vocabulary.
        max_length: Number of tokens of the longest source or target.
        num_layers: Number of blocks of the encoder, and of the decoder.
        num_heads: Number of query heads, a divisor of `hidden_dim`.
        hidden_dim: Width of a token's vector.
        intermediate_dim: Inner width of a block's feed-forward network; by default 4·hidden_dim.
        num_kv_heads: Number of key and value heads, a divisor of `num_heads`; by default
            `num_heads`.
        activation: Activation of the feed-forward networks: "relu", "gelu", "gelu_tanh" or
            "swiglu".
        norm: Kind of the normalizations: "layer_norm" or "rms_norm".
        norm_first: Whether the inputs of the sublayers are normalized (pre-norm), instead of the
            sum after each sublayer (post-norm, as in the paper).
        final_norm: Whether the outputs of the last blocks are normalized; by default `norm_first`.
            PyTorch's `nn.Transformer` has these normalizations with both orders of norms.
        positions: Kind of the position encodings: "sinusoidal", "learned" or "rotary".
        rotary_base: Base of the wavelengths of rotary embeddings.
        epsilon: Constant added to the variance in a normalization.
        use_bias: Whether the dense layers have biases; the output layer never has.
        share_embeddings: Whether source and target share one token embedding.
        tie_embeddings: Whether the output layer shares the weights of the target embedding.
        padding: Token id of padding in sources. Padding of a target follows the target's tokens,
            where the causal mask hides it.
        dropout: Dropout rate of the embeddings and of each sublayer's output, in [0, 1).
        seed: Seed of the initial weights and dropout masks; their values are equal on all backends.
        dtype: A dtype or dtype policy, such as "mixed_bfloat16"; by default Keras' global one.
        name: Name of the model.
        weights: Trained weights to load: a name that `zoo.list_weights` gives or the data in it,
            such as "mnist"; a weights folder; or the directory of a finished run. The arguments
            that are not given are then those of the trained model. By default none are loaded.

    Returns:
        An uncompiled model from token ids [source (B, S), target (B, T)], int, to the logits of
        the next target tokens, (B, T, target_vocabulary_size).

    Raises:
        ValueError: If a size is not at least 1, `num_heads` does not divide `hidden_dim`,
            `num_kv_heads` does not divide `num_heads`, `activation`, `norm` or `positions` is
            unknown, shared embeddings have vocabularies of different sizes, `padding` lies outside
            the source vocabulary, or `dropout` lies outside [0, 1). When called: if a sequence is
            longer than `max_length`, there are not as many sources as targets, or an id lies
            outside the vocabulary (see `zoo.layers.core.Embedding`).
    """
    check_heads(hidden_dim, num_heads, num_kv_heads, positions)
    intermediate_dim = 4 * hidden_dim if intermediate_dim is None else intermediate_dim
    final_norm = norm_first if final_norm is None else final_norm
    if share_embeddings and source_vocabulary_size != target_vocabulary_size:
        raise ValueError(
            "`share_embeddings` needs source and target vocabularies of one size. Received: "
            f"source_vocabulary_size={source_vocabulary_size}, "
            f"target_vocabulary_size={target_vocabulary_size}"
        )
    if padding >= source_vocabulary_size:
        raise ValueError(
            f"`padding` must lie in [0, {source_vocabulary_size}), the source vocabulary. "
            f"Received: padding={padding}"
        )

    def token_embedding(vocabulary_size: int, name: str) -> Embedding:
        initializer = initializers.Normal(seed, name, hidden_dim**-0.5)
        return Embedding(
            vocabulary_size, hidden_dim, embeddings_initializer=initializer, dtype=dtype, name=name
        )

    def embed(embedding: Embedding, ids: Tensor, stack: str) -> Tensor:
        x = embedding(ids)
        x = keras.layers.Rescaling(hidden_dim**0.5, dtype=dtype, name=f"{stack}_scale")(x)
        if positions != "rotary":
            name = f"{stack}_positions"
            initializer = initializers.Normal(seed, name, 0.02)
            x = Positions(positions, max_length, initializer, dtype=dtype, name=name)(x)
        if dropout:
            x = random.Dropout(dropout, seed, dtype=dtype, name=f"{stack}_dropout")(x)
        return x

    def block(stack: str, number: int) -> TransformerBlock:
        is_decoder = stack == "decoder"
        return TransformerBlock(
            intermediate_dim, activation, num_heads, num_kv_heads,
            causal=is_decoder, cross_attention=is_decoder,
            rotary_base=rotary_base if positions == "rotary" else None, max_length=max_length,
            norm=norm, epsilon=epsilon, norm_first=norm_first, dropout=dropout, use_bias=use_bias,
            seed=seed, dtype=dtype, name=f"{stack}_block{number}",
        )  # fmt: skip

    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    embedding = token_embedding(
        target_vocabulary_size, "embedding" if share_embeddings else "target_embedding"
    )
    source_embedding = embedding
    if not share_embeddings:
        source_embedding = token_embedding(source_vocabulary_size, "source_embedding")
    padding_mask = PaddingMask(padding, name="source_mask")(source)

    memory = embed(source_embedding, source, "encoder")
    for number in range(1, num_layers + 1):
        memory = block("encoder", number)(memory, padding_mask=padding_mask)
    if final_norm:
        memory = normalization(norm, epsilon, dtype, "encoder_norm")(memory)

    x = embed(embedding, target, "decoder")
    for number in range(1, num_layers + 1):
        x = block("decoder", number)(x, memory, context_mask=padding_mask)
    if final_norm:
        x = normalization(norm, epsilon, dtype, "decoder_norm")(x)
    if tie_embeddings:
        logits = embedding(x, reverse=True)
    else:
        kernel = initializers.Normal(seed, "output", hidden_dim**-0.5)
        logits = Dense(
            target_vocabulary_size, use_bias=False, kernel_initializer=kernel, dtype=dtype,
            name="output",
        )(x)  # fmt: skip
    return keras.Model([source, target], logits, name=name)
