"""Transformer block: attention and a feed-forward network, each with a residual connection.

    x = x + attention(norm(x))          pre-norm, as in GPT-2 and later models
    x = x + feed_forward(norm(x))

    x = norm(x + attention(x))          post-norm, as in the paper
    x = norm(x + feed_forward(x))

The decoder of an encoder-decoder has cross-attention to the encoded source between the two.

Source: Vaswani et al., "Attention Is All You Need", 2017, section 3; Xiong et al., "On Layer
Normalization in the Transformer Architecture", 2020; Zhang and Sennrich, "Root Mean Square Layer
Normalization", 2019.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from zoo import random
from zoo.layers.attention import Attention, AttentionBias, Cache, heads_first
from zoo.layers.core import call_built
from zoo.layers.feed_forward import FeedForward, FeedForwardActivation
from zoo.layers.rotary import RotaryScaling
from zoo.validation import (
    Count,
    DType,
    Index,
    Name,
    NonNegative,
    Positive,
    Rate,
    Seed,
    Size,
    validated,
)

Tensor = Any
Norm = Literal["layer_norm", "rms_norm"]


@validated
def normalization(
    norm: Norm, epsilon: Positive, dtype: DType | None, name: Name
) -> keras.layers.Layer:
    """Creates a normalization layer over the last axis.

    Args:
        norm: "layer_norm" or "rms_norm".
        epsilon: Constant added to the variance for numerical stability.
        dtype: A dtype or dtype policy; None means Keras' global one.
        name: Name of the layer.
    """
    if norm == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=epsilon, dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


@keras.saving.register_keras_serializable("zoo")
class TransformerBlock(keras.layers.Layer):  # type: ignore[misc]
    """Transformer block of an encoder or a decoder; keeps (B, T, hidden_dim).

    Args:
        intermediate_dim: Width between the two layers of the feed-forward network.
        activation: Activation of the feed-forward network: "relu", "gelu", "gelu_tanh" or "swiglu".
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads, a divisor of num_heads; by default num_heads.
        head_dim: Width of a head; by default hidden_dim/num_heads.
        causal: Whether self-attention covers only the position itself and earlier positions.
        rotary_base: Base of the rotary embeddings of self-attention; None disables them.
        rotary_scaling: Scaling of the rotary embeddings, the arguments of
            `zoo.layers.rotary.RotaryScaling` by name; by default none.
        max_length: Number of positions of the rotary embeddings.
        cross_attention: Whether the block has cross-attention to a context.
        norm: "layer_norm" or "rms_norm".
        epsilon: Constant added to the variance in a normalization.
        norm_first: Whether the input of each sublayer is normalized (pre-norm), instead of the sum
            after the sublayer (post-norm).
        dropout: Fraction of each sublayer's output that is dropped, in [0, 1).
        use_bias: Whether the dense layers have biases.
        attention_bias: Whether the four projections of attention have biases; "qkv" means those to
            queries, keys and values only. By default as `use_bias`.
        stddev: Standard deviation of the initial kernels; by default 1/sqrt(fan_in).
        output_stddev: Standard deviation of the initial kernels of each sublayer's last
            projection; by default 1/sqrt(fan_in).
        seed: Seed of the initial weights and dropout masks.
    """

    @validated
    def __init__(
        self,
        intermediate_dim: Size,
        activation: FeedForwardActivation,
        num_heads: Size,
        num_kv_heads: Size | None = None,
        head_dim: Size | None = None,
        causal: bool = False,
        rotary_base: Positive | None = None,
        rotary_scaling: Mapping[str, Any] | None = None,
        max_length: Index = 0,
        cross_attention: bool = False,
        norm: Norm = "layer_norm",
        epsilon: Positive = 1e-5,
        norm_first: bool = True,
        dropout: Rate = 0.0,
        use_bias: bool = True,
        attention_bias: AttentionBias | None = None,
        stddev: NonNegative | None = None,
        output_stddev: NonNegative | None = None,
        seed: Seed = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._block_config = {
            "intermediate_dim": intermediate_dim, "activation": activation,
            "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim,
            "causal": causal, "rotary_base": rotary_base, "rotary_scaling": rotary_scaling,
            "max_length": max_length, "attention_bias": attention_bias,
            "cross_attention": cross_attention, "norm": norm, "epsilon": epsilon,
            "norm_first": norm_first, "dropout": dropout, "use_bias": use_bias,
            "stddev": stddev, "output_stddev": output_stddev, "seed": seed,
        }  # fmt: skip
        self.norm_first = norm_first
        common_options: dict[str, Any] = {
            "stddev": stddev, "output_stddev": output_stddev, "seed": seed,
            "dtype": self.dtype_policy,
        }  # fmt: skip
        attention_options = {
            "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim,
            "use_bias": use_bias if attention_bias is None else attention_bias, **common_options,
        }  # fmt: skip
        self.attention = Attention(
            causal=causal, rotary_base=rotary_base, rotary_scaling=rotary_scaling,
            max_length=max_length, stream=f"{self.name}/attention", name="attention",
            **attention_options,
        )  # fmt: skip
        self.cross_attention = None
        if cross_attention:
            self.cross_attention = Attention(
                stream=f"{self.name}/cross_attention", name="cross_attention",
                **attention_options,
            )  # fmt: skip
        self.feed_forward = FeedForward(
            intermediate_dim, activation, use_bias=use_bias,
            stream=f"{self.name}/feed_forward", name="feed_forward", **common_options,
        )  # fmt: skip
        for sublayer in self._sublayers:
            norm_layer = normalization(norm, epsilon, self.dtype_policy, f"{sublayer}_norm")
            setattr(self, f"{sublayer}_norm", norm_layer)
            if dropout:
                # The name of a dropout layer selects its random stream, so the name is unique.
                name = f"{self.name}_{sublayer}_dropout"
                dropout_layer = random.Dropout(dropout, seed, dtype=self.dtype_policy, name=name)
                setattr(self, f"{sublayer}_dropout", dropout_layer)

    @property
    def _sublayers(self) -> list[str]:
        cross_attention = ["cross_attention"] if self.cross_attention is not None else []
        return ["attention", *cross_attention, "feed_forward"]

    def build(self, input_shape: Any, *_: Any) -> None:
        for sublayer in self._sublayers:
            for name in (sublayer, f"{sublayer}_norm", f"{sublayer}_dropout"):
                if hasattr(self, name):
                    getattr(self, name).build(input_shape)

    def call(
        self,
        x: Tensor,
        context: Tensor | None = None,
        padding_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        training: bool = False,
    ) -> Tensor:
        """Applies the block.

        Args:
            x: Vectors of the tokens, (B, T, hidden_dim).
            context: Vectors that cross-attention reads, (B, S, hidden_dim).
            padding_mask: Boolean mask of x, (B, T), false at padding.
            context_mask: Boolean mask of the context, (B, S), false at padding.
            training: Whether dropout is active.

        Returns:
            Output, (B, T, hidden_dim).

        Raises:
            ValueError: If the batch sizes of x and the context differ.
        """
        if context is not None:
            _check_batch_sizes(context.shape[0], x.shape[0])

        def attend_context(x: Tensor) -> Tensor:
            assert self.cross_attention is not None
            return call_built(self.cross_attention, x, context, padding_mask=context_mask)

        def attend(x: Tensor) -> Tensor:
            return call_built(self.attention, x, padding_mask=padding_mask)

        return self._apply_sublayers(x, attend, attend_context, training)

    def _apply_sublayers(
        self,
        x: Tensor,
        attend: Callable[[Tensor], Tensor],
        attend_context: Callable[[Tensor], Tensor] | None = None,
        training: bool = False,
    ) -> Tensor:
        """Applies all sublayers with the given functions of attention and cross-attention."""
        x = self._residual("attention", x, attend, training)
        if self.cross_attention is not None:
            x = self._residual("cross_attention", x, attend_context, training)
        feed_forward = self.feed_forward
        return self._residual("feed_forward", x, lambda x: call_built(feed_forward, x), training)

    def _residual(self, sublayer: str, x: Tensor, function: Any, training: bool) -> Tensor:
        norm = getattr(self, f"{sublayer}_norm")
        dropout = getattr(self, f"{sublayer}_dropout", None)
        residual = function(call_built(norm, x) if self.norm_first else x)
        if dropout is not None:
            residual = call_built(dropout, residual, training=training)
        return x + residual if self.norm_first else call_built(norm, x + residual)

    def call_with_cache(
        self,
        x: Tensor,
        cache: Cache,
        update_cache: Callable[[Tensor, Tensor], Tensor],
        attention_mask: Tensor,
        positions: Tensor,
        cross_attention_cache: Cache | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """Applies the block to the next positions, with cached keys and values, in inference mode.

        Args:
            x: Vectors of the next tokens, (B, T, hidden_dim).
            cache: Keys and values of the earlier positions, (B, num_kv_heads, capacity, head_dim)
                each.
            update_cache: Function from a cached tensor and the new keys or values to the updated
                cached tensor.
            attention_mask: Boolean mask of self-attention, (B, 1, T, capacity).
            positions: Positions of the next tokens, (B, T) int.
            cross_attention_cache: Keys and values of the context, from `context_cache`.
            context_mask: Boolean mask of the context, (B, 1, 1, S).

        Returns:
            The output of `call` for these positions, (B, T, hidden_dim), and the updated cache.
        """
        keys, values = cache

        def attend(x: Tensor) -> Tensor:
            nonlocal keys, values
            query = self.attention.queries(x, positions)
            new_keys, new_values = self.attention.keys_and_values(x, positions)
            keys = update_cache(keys, heads_first(new_keys))
            values = update_cache(values, heads_first(new_values))
            return self.attention.attend_to_cache(query, (keys, values), attention_mask)

        def attend_context(x: Tensor) -> Tensor:
            assert self.cross_attention is not None
            assert cross_attention_cache is not None
            query = self.cross_attention.queries(x)
            return self.cross_attention.attend_to_cache(query, cross_attention_cache, context_mask)

        x = self._apply_sublayers(x, attend, attend_context)
        return x, (keys, values)

    def context_cache(self, context: Tensor) -> Cache:
        """Computes the keys and values of a context for `call_with_cache`.

        Args:
            context: Vectors that cross-attention reads, (B, S, hidden_dim).

        Returns:
            Keys and values, (B, num_kv_heads, S, head_dim) each.
        """
        assert self.cross_attention is not None
        keys, values = self.cross_attention.keys_and_values(context)
        return heads_first(keys), heads_first(values)

    def cache_spec(self, batch_size: int, capacity: int) -> tuple[tuple[int, ...], str]:
        """Returns the shape and dtype of the keys (and of the values) of a `call_with_cache` cache.

        Args:
            batch_size: Number of sequences.
            capacity: Number of positions in the cache.
        """
        attention = self.attention
        shape = batch_size, attention.num_kv_heads, capacity, attention.head_dim
        return shape, attention.compute_dtype

    def compute_output_shape(self, input_shape: Any, *_: Any, **__: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._block_config}


def _check_batch_sizes(sources: int | None, targets: int | None) -> None:
    if None not in (sources, targets) and sources != targets:
        raise ValueError(
            "There must be as many sources as targets, since each target attends to one source. "
            f"Received: {sources} sources and {targets} targets"
        )


@validated
def check_heads(
    hidden_dim: Size,
    num_heads: Size,
    num_kv_heads: Size | None = None,
    positions: str = "learned",
    head_dim: Size | None = None,
    rotary_scaling: Mapping[str, Any] | None = None,
) -> None:
    """Checks the relations between the widths of a transformer block.

    Args:
        hidden_dim: Width of a token's vector.
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads; None means `num_heads`.
        positions: Kind of the position encodings.
        head_dim: Width of a head; None means `hidden_dim` / `num_heads`.
        rotary_scaling: Scaling of rotary embeddings; None means none.

    Raises:
        ValueError: If `num_heads` does not divide `hidden_dim`, `num_kv_heads` does not divide
            `num_heads`, or the width of a head is odd and positions are rotary.
    """
    if head_dim is None and hidden_dim % num_heads:
        raise ValueError(
            "`hidden_dim` must be divisible by `num_heads`. Received: "
            f"hidden_dim={hidden_dim}, num_heads={num_heads}"
        )
    if num_heads % (num_kv_heads or 1):
        raise ValueError(
            "`num_heads` must be divisible by `num_kv_heads`, since each key and value head serves "
            f"as many query heads. Received: num_heads={num_heads}, num_kv_heads={num_kv_heads}"
        )
    if positions == "rotary" and (head_dim or hidden_dim // num_heads) % 2:
        raise ValueError(
            "`head_dim`, by default `hidden_dim` / `num_heads`, must be even for rotary positions. "
            f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}, head_dim={head_dim}"
        )
    if RotaryScaling.from_config(rotary_scaling) is not None and positions != "rotary":
        raise ValueError(
            "`rotary_scaling` must be None unless the positions are rotary. Received: "
            f"rotary_scaling={rotary_scaling}, positions={positions}"
        )


@validated
def block_parameter_count(
    hidden_dim: Size,
    intermediate_dim: Count,
    num_heads: Size,
    num_kv_heads: Size | None = None,
    activation: str = "relu",
    cross_attention: bool = False,
    norm: str = "layer_norm",
    use_bias: bool = True,
    head_dim: int | None = None,
    attention_bias: AttentionBias | None = None,
) -> int:
    """Returns the parameter count of a transformer block in closed form.

    Args:
        hidden_dim: Width of a token's vector.
        intermediate_dim: Width between the two layers of the feed-forward network.
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads; None means `num_heads`.
        activation: Activation of the feed-forward network.
        cross_attention: Whether the block has cross-attention to a context.
        norm: "layer_norm" or "rms_norm".
        use_bias: Whether the dense layers have biases.
        head_dim: Width of a head; None means `hidden_dim` / `num_heads`.
        attention_bias: Which projections of attention have biases; None means as `use_bias`.
    """
    d, bias = hidden_dim, int(use_bias)
    attention_bias = use_bias if attention_bias is None else attention_bias
    head_dim = head_dim or d // num_heads
    q_width, kv_width = num_heads * head_dim, (num_kv_heads or num_heads) * head_dim
    qkv_bias, output_bias = bool(attention_bias), int(attention_bias not in (False, "qkv"))
    attention = (d + qkv_bias) * (q_width + 2 * kv_width) + (q_width + output_bias) * d
    num_inner = 2 if activation == "swiglu" else 1
    feed_forward = num_inner * (d + bias) * intermediate_dim + (intermediate_dim + bias) * d
    norms = (3 if cross_attention else 2) * (d if norm == "rms_norm" else 2 * d)
    return (2 if cross_attention else 1) * attention + feed_forward + norms
