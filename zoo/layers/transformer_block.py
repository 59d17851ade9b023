"""The transformer's block: attention and a feed-forward network, each added to what came in.

    x = x + attention(norm(x))          pre-norm, as GPT-2 and later
    x = x + feed_forward(norm(x))

    x = norm(x + attention(x))          post-norm, as in the paper
    x = norm(x + feed_forward(x))

A decoder that reads another sequence has cross-attention to it between the two.

Source: Vaswani et al., "Attention Is All You Need", 2017, section 3; Xiong et al., "On Layer
Normalization in the Transformer Architecture", 2020; Shazeer, "GLU Variants Improve Transformer",
2020; Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from collections.abc import Callable
from typing import Any, Literal

import keras
from keras import ops

from zoo import random
from zoo.layers.attention import Attention, Cache, heads_first
from zoo.layers.core import call_built, dense_projection
from zoo.validation import check_dropout, check_sizes

Tensor = Any


Norm = Literal["layer_norm", "rms_norm"]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": ops.relu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "swiglu": ops.silu,
}


def normalization(norm: str, epsilon: float, dtype: Any, name: str) -> keras.layers.Layer:
    """Over the last axis."""
    if norm == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=epsilon, dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


@keras.saving.register_keras_serializable("zoo")
class FeedForward(keras.layers.Layer):  # type: ignore[misc]
    """Two layers for each position by itself: (B, T, hidden_dim) to the same.

    Args:
        intermediate_dim: width between them.
        activation: "relu", "gelu", "gelu_tanh" (its approximation in GPT-2), or "swiglu", where the
            SiLU of one layer gates another.
        use_bias: of the layers.
        stddev: of the initial weights; by default 1/sqrt(fan_in).
        output_stddev: of the last layer's.
        seed: of the initial weights.
        stream: names them.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str = "relu",
        use_bias: bool = True,
        stddev: float | None = None,
        output_stddev: float | None = None,
        seed: int = 0,
        stream: str = "feed_forward",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.stddev = stddev
        self.output_stddev = output_stddev
        self.seed = seed
        self.stream = stream

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        inner = self.intermediate_dim
        self.up = dense_projection(self, "up", width, inner, self.stddev)
        if self.activation == "swiglu":
            self.gate = dense_projection(self, "gate", width, inner, self.stddev)
        self.down = dense_projection(self, "down", inner, width, self.output_stddev)

    def call(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        if self.activation == "swiglu":
            return call_built(
                self.down, activate(call_built(self.gate, x)) * call_built(self.up, x)
            )
        return call_built(self.down, activate(call_built(self.up, x)))

    def get_config(self) -> dict[str, Any]:
        names = (
            "intermediate_dim", "activation", "use_bias", "stddev", "output_stddev", "seed",
            "stream",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("zoo")
class TransformerBlock(keras.layers.Layer):  # type: ignore[misc]
    """One layer of an encoder or a decoder: (B, T, hidden_dim) to the same.

    Args:
        intermediate_dim, activation: of the `FeedForward`.
        num_heads, num_kv_heads, causal, rotary_base, max_length: of the `Attention` to itself.
        cross_attention: whether it also attends to a `context`.
        norm: "layer_norm" or "rms_norm", with `epsilon` added to the variance.
        norm_first: whether what goes into each part is normalised (pre-norm), or the sum after it.
        dropout: fraction of each part's output that is dropped, in [0, 1).
        use_bias, stddev, output_stddev, seed: of all parts.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str,
        num_heads: int,
        num_kv_heads: int | None = None,
        causal: bool = False,
        rotary_base: float | None = None,
        max_length: int = 0,
        cross_attention: bool = False,
        norm: str = "layer_norm",
        epsilon: float = 1e-5,
        norm_first: bool = True,
        dropout: float = 0.0,
        use_bias: bool = True,
        stddev: float | None = None,
        output_stddev: float | None = None,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._settings = {
            "intermediate_dim": intermediate_dim, "activation": activation,
            "num_heads": num_heads, "num_kv_heads": num_kv_heads, "causal": causal,
            "rotary_base": rotary_base, "max_length": max_length,
            "cross_attention": cross_attention, "norm": norm, "epsilon": epsilon,
            "norm_first": norm_first, "dropout": dropout, "use_bias": use_bias,
            "stddev": stddev, "output_stddev": output_stddev, "seed": seed,
        }  # fmt: skip
        self.norm_first = norm_first
        shared: dict[str, Any] = {
            "use_bias": use_bias, "stddev": stddev, "output_stddev": output_stddev, "seed": seed,
            "dtype": self.dtype_policy,
        }  # fmt: skip
        self.attention = Attention(
            num_heads, num_kv_heads, causal, rotary_base, max_length,
            stream=f"{self.name}/attention", name="attention", **shared,
        )  # fmt: skip
        self.cross_attention = None
        if cross_attention:
            self.cross_attention = Attention(
                num_heads, num_kv_heads,
                stream=f"{self.name}/cross_attention", name="cross_attention", **shared,
            )  # fmt: skip
        self.feed_forward = FeedForward(
            intermediate_dim, activation,
            stream=f"{self.name}/feed_forward", name="feed_forward", **shared,
        )  # fmt: skip
        for part in self._parts:
            normalize = normalization(norm, epsilon, self.dtype_policy, f"{part}_norm")
            setattr(self, f"{part}_norm", normalize)
            if dropout:
                # The layer's name says which numbers it draws.
                name = f"{self.name}_{part}_dropout"
                drop = random.Dropout(dropout, seed, dtype=self.dtype_policy, name=name)
                setattr(self, f"{part}_dropout", drop)

    @property
    def _parts(self) -> list[str]:
        cross = ["cross_attention"] if self.cross_attention is not None else []
        return ["attention", *cross, "feed_forward"]

    def build(self, input_shape: Any, *_: Any) -> None:
        for part in self._parts:
            for name in (part, f"{part}_norm", f"{part}_dropout"):
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
        """`context`: (B, S, hidden_dim); `padding_mask`, `context_mask`: (B, T), (B, S), no padding."""
        if context is not None:
            _check_rows(context.shape[0], x.shape[0])

        def attend_context(x: Tensor) -> Tensor:
            assert self.cross_attention is not None
            return call_built(self.cross_attention, x, context, padding_mask=context_mask)

        def attend(x: Tensor) -> Tensor:
            return call_built(self.attention, x, padding_mask=padding_mask)

        return self.combine(x, attend, attend_context, training)

    def combine(
        self,
        x: Tensor,
        attend: Callable[[Tensor], Tensor],
        attend_context: Callable[[Tensor], Tensor] | None = None,
        training: bool = False,
    ) -> Tensor:
        """The block around whatever attention is done by."""
        x = self._add("attention", x, attend, training)
        if self.cross_attention is not None:
            x = self._add("cross_attention", x, attend_context, training)
        return self._add("feed_forward", x, lambda x: call_built(self.feed_forward, x), training)

    def _add(self, part: str, x: Tensor, function: Any, training: bool) -> Tensor:
        norm, drop = getattr(self, f"{part}_norm"), getattr(self, f"{part}_dropout", None)
        added = function(call_built(norm, x) if self.norm_first else x)
        if drop is not None:
            added = call_built(drop, added, training=training)
        return x + added if self.norm_first else call_built(norm, x + added)

    def step(
        self,
        x: Tensor,
        cache: Cache,
        write: Callable[[Tensor, Tensor], Tensor],
        attention_mask: Tensor,
        positions: Tensor,
        context: Cache | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """The same in inference mode for the next positions, with keys and values kept.

        Args:
            x: (B, T, hidden_dim).
            cache: of the positions before, (B, num_kv_heads, capacity, head_dim) each.
            write: puts new keys or values into one.
            attention_mask: (B, 1, T, capacity) bool.
            positions: (B, T).
            context: keys and values of the context: `context_cache`.
            context_mask: (B, 1, 1, S) bool.

        Returns:
            What `call` gives for these positions, and the cache with them in it.
        """
        kept: list[Tensor] = []

        def attend(x: Tensor) -> Tensor:
            query = self.attention.queries(x, positions)
            new = (heads_first(x) for x in self.attention.keys_and_values(x, positions))
            kept.extend(write(old, added) for old, added in zip(cache, new))
            return self.attention.attend_cache(query, (kept[0], kept[1]), attention_mask)

        def attend_context(x: Tensor) -> Tensor:
            assert self.cross_attention is not None
            assert context is not None
            query = self.cross_attention.queries(x)
            return self.cross_attention.attend_cache(query, context, context_mask)

        x = self.combine(x, attend, attend_context)
        return x, (kept[0], kept[1])

    def context_cache(self, context: Tensor) -> Cache:
        """Keys and values of a context, (B, S, hidden_dim), for every `step` that reads it."""
        assert self.cross_attention is not None
        keys, values = self.cross_attention.keys_and_values(context)
        return heads_first(keys), heads_first(values)

    def cache_spec(self, rows: int, capacity: int) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of each half of a cache for `step`."""
        attention = self.attention
        shape = rows, attention.num_kv_heads, capacity, attention.head_dim
        return shape, attention.compute_dtype

    def compute_output_shape(self, input_shape: Any, *_: Any, **__: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._settings}


def _check_rows(sources: int | None, targets: int | None) -> None:
    if None not in (sources, targets) and sources != targets:
        raise ValueError(
            "There must be as many sources as targets, each of which attends to its own. "
            f"Received: {sources} sources and {targets} targets"
        )


def check_block(
    hidden_dim: int,
    num_heads: int,
    num_kv_heads: int | None,
    activation: str,
    norm: str,
    dropout: float,
    positions: str,
    **sizes: int,
) -> None:
    """Raises ValueError for arguments of a block that make no sense; the text says which."""
    check_sizes(hidden_dim=hidden_dim, num_heads=num_heads, **sizes)
    check_sizes(num_kv_heads=1 if num_kv_heads is None else num_kv_heads)
    check_dropout(dropout)
    if hidden_dim % num_heads:
        raise ValueError(
            "`hidden_dim` must be divisible by `num_heads`. Received: "
            f"hidden_dim={hidden_dim}, num_heads={num_heads}"
        )
    if num_heads % (num_kv_heads or 1):
        raise ValueError(
            "`num_heads` must be divisible by `num_kv_heads`, which share the queries. Received: "
            f"num_heads={num_heads}, num_kv_heads={num_kv_heads}"
        )
    if positions == "rotary" and hidden_dim // num_heads % 2:
        raise ValueError(
            "`hidden_dim` / `num_heads` must be even for rotary positions, which turn pairs. "
            f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}"
        )
    for argument, value, known in (
        ("activation", activation, tuple(ACTIVATIONS)),
        ("norm", norm, ("layer_norm", "rms_norm")),
        ("positions", positions, ("learned", "sinusoidal", "rotary")),
    ):
        if value not in known:
            raise ValueError(
                f"`{argument}` must be one of {', '.join(known)}. Received: {argument}={value}"
            )


def block_parameter_count(
    hidden_dim: int,
    intermediate_dim: int,
    num_heads: int,
    num_kv_heads: int | None = None,
    activation: str = "relu",
    cross_attention: bool = False,
    norm: str = "layer_norm",
    use_bias: bool = True,
) -> int:
    """Parameters of a block, in closed form."""
    d, bias = hidden_dim, int(use_bias)
    narrow = d // num_heads * (num_kv_heads or num_heads)
    attention = 2 * d * (d + bias) + 2 * (d + bias) * narrow
    ups = 2 if activation == "swiglu" else 1
    feed_forward = ups * (d + bias) * intermediate_dim + (intermediate_dim + bias) * d
    norms = (3 if cross_attention else 2) * (d if norm == "rms_norm" else 2 * d)
    return (2 if cross_attention else 1) * attention + feed_forward + norms


@keras.saving.register_keras_serializable("zoo")
class PaddingMask(keras.layers.Layer):  # type: ignore[misc]
    """Which tokens of a sequence count: (B, T) ids to (B, T) bool.

    The first always does, so that attention has something to look at.

    Args:
        padding: the id that fills up shorter sequences.
    """

    def __init__(self, padding: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.padding = padding

    def call(self, ids: Tensor) -> Tensor:
        return ops.logical_or(ids != self.padding, ops.arange(ops.shape(ids)[1]) == 0)

    def compute_output_spec(self, ids: Tensor) -> Any:
        return keras.KerasTensor(ids.shape, "bool")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.padding}
