"""Attention: each position asks all others, and takes a weighted mean of what they hold.

For each head, with q = x·W_q, k = y·W_k and v = y·W_v, each (positions, d):

    attention(q, k, v) = softmax(q·kᵀ/sqrt(d) + mask)·v

and the heads side by side go through W_o. y is x itself (self-attention), or what another network
made of another sequence (cross-attention). The mask is -inf where a position is not to look: at
padding or, in a decoder, at what is yet to come.

The weights do not depend on where a position is, so that is said otherwise: a table is added to x
(sinusoidal, or learned), or q and k are rotated by it (rotary).

Source: the document's section "Architecture de Transformateur"; Vaswani et al., "Attention Is All
You Need", 2017, sections 3.2 and 3.5; Su et al., "RoFormer", 2021; Ainslie et al., "GQA", 2023.
"""

import contextvars
import functools
import math
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.backends import backend
from zoo.layers.core import call_built, dense_projection

Tensor = Any
Cache = tuple[Tensor, Tensor]  # keys and values so far, (B, num_kv_heads, capacity, head_dim) each
PositionKind = Literal["sinusoidal", "learned", "rotary"]

# Where layers leave their weights, by path: see `zoo.evaluation.attention_maps`.
asked_for: contextvars.ContextVar[dict[str, Tensor] | None] = contextvars.ContextVar(
    "asked_for", default=None
)

# ------------------------------------------------------------------ where a position is


def sinusoidal_table(length: int, dim: int) -> np.ndarray:
    """(length, dim) float64: sines of falling frequency, and cosines, in turn."""
    angles = _angles(length, dim, 10000.0)
    table = np.empty((length, dim))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : dim // 2])
    return table


@functools.lru_cache(maxsize=8)
def rotary_tables(
    length: int, dim: int, base: float = 10000.0, dtype: str = "float64"
) -> tuple[np.ndarray, np.ndarray]:
    """(length, dim) each: the cosines and sines that a position rotates by, for all layers."""
    angles = np.tile(_angles(length, dim, base), 2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _angles(length: int, dim: int, base: float) -> np.ndarray:
    frequencies = base ** -(np.arange(0, dim, 2) / dim)
    return np.arange(length)[:, None] * frequencies


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns the plane of elements i and i + head_dim/2. x: (B, T, heads, head_dim)."""
    dtype = x.dtype
    x = ops.cast(x, cosines.dtype)  # 16 bits are too few for an angle
    first, second = ops.split(x, 2, axis=-1)
    return ops.cast(x * cosines + ops.concatenate([-second, first], axis=-1) * sines, dtype)


def heads_first(x: Tensor) -> Tensor:
    """(B, T, heads, head_dim) as caches hold it: (B, heads, T, head_dim)."""
    return ops.transpose(x, (0, 2, 1, 3))


@keras.saving.register_keras_serializable("zoo")
class Positions(keras.layers.Layer):  # type: ignore[misc]
    """Adds to each position's vector which position it is: (B, T, dim) to the same.

    Args:
        kind: "sinusoidal" or "learned".
        max_length: positions there are.
        initializer: of the learned table.

    Raises:
        ValueError: for a sequence longer than `max_length`.
    """

    def __init__(self, kind: str, max_length: int, initializer: Any = "zeros", **kwargs: Any):
        super().__init__(**kwargs)
        self.kind = kind
        self.max_length = max_length
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Any) -> None:
        shape = self.max_length, input_shape[-1]
        if self.kind == "learned":
            self.table = self.add_weight(shape=shape, initializer=self.initializer, name="table")
        else:
            self._table = sinusoidal_table(*shape)

    def call(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """With `positions`, (B, T), they are these; else 0, 1, ..."""
        if positions is None:
            check_length(x.shape[1], self.max_length, self.name)
        table = self.table if self.kind == "learned" else self._table
        table = ops.convert_to_tensor(table, dtype=self.compute_dtype)
        if positions is not None:
            return x + ops.take(table, positions, axis=0)
        return x + table[: ops.shape(x)[1]]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "max_length": self.max_length,
            "initializer": keras.initializers.serialize(self.initializer),
        }


def check_length(length: int | None, most: int, layer: str) -> None:
    """Raises ValueError for a sequence longer than a model was made for."""
    if length is not None and length > most:
        raise ValueError(
            f"A sequence must have at most `max_length` = {most} tokens, the positions that the "
            f"layer {layer} has. Received: {length}. Cut it, or build the model with more"
        )


# ------------------------------------------------------------------ attention


@keras.saving.register_keras_serializable("zoo")
class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Multi-head attention: (B, T, hidden_dim) to the same, by the backend's fused kernel.

    Args:
        num_heads: heads of the queries; a divisor of hidden_dim.
        num_kv_heads: heads of keys and values, each shared by num_heads/num_kv_heads of the
            queries'; by default as many as there are.
        causal: whether a position sees only itself and those before.
        rotary_base: of the rotations, if they say where a position is; 10000 is usual.
        max_length: positions there are rotations for.
        use_bias: of the four projections.
        stddev: of the initial weights; by default 1/sqrt(fan_in).
        output_stddev: of the output's.
        seed: of the initial weights.
        stream: names them.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int | None = None,
        causal: bool = False,
        rotary_base: float | None = None,
        max_length: int = 0,
        use_bias: bool = True,
        stddev: float | None = None,
        output_stddev: float | None = None,
        seed: int = 0,
        stream: str = "attention",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.causal = causal
        self.rotary_base = rotary_base
        self.max_length = max_length
        self.use_bias = use_bias
        self.stddev = stddev
        self.output_stddev = output_stddev
        self.seed = seed
        self.stream = stream

    def build(self, input_shape: Any, *_: Any) -> None:
        width = input_shape[-1]
        self.head_dim = width // self.num_heads
        narrow = self.num_kv_heads * self.head_dim
        self.query_projection = dense_projection(self, "query", width, width, self.stddev)
        self.key_projection = dense_projection(self, "key", width, narrow, self.stddev)
        self.value_projection = dense_projection(self, "value", width, narrow, self.stddev)
        self.output_projection = dense_projection(self, "output", width, width, self.output_stddev)

    def call(
        self, x: Tensor, context: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Attends to `context`, (B, S, hidden_dim), or to x; where `padding_mask`, (B, S), is true."""
        query = self.queries(x)
        keys, values = self.keys_and_values(x if context is None else context)
        attention_mask = None if padding_mask is None else padding_mask[:, None, None, :]
        return self.attend(query, keys, values, attention_mask, self.causal)

    def compute_output_shape(self, input_shape: Any, *_: Any, **__: Any) -> Any:
        return input_shape

    # The steps of `call`, for generation, which keeps keys and values.

    def queries(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, T, hidden_dim) to (B, T, num_heads, head_dim)."""
        return self._rotated(
            self._heads(call_built(self.query_projection, x), self.num_heads), positions
        )

    def keys_and_values(self, x: Tensor, positions: Tensor | None = None) -> Cache:
        """(B, S, hidden_dim) to (B, S, num_kv_heads, head_dim) each."""
        keys = self._heads(call_built(self.key_projection, x), self.num_kv_heads)
        values = self._heads(call_built(self.value_projection, x), self.num_kv_heads)
        return self._rotated(keys, positions), values

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """To (B, T, hidden_dim); `attention_mask`: bool, broadcast to (B, heads, T, S)."""
        maps = asked_for.get()
        if maps is not None:
            maps[self.path] = self._weights(query, keys, attention_mask, causal)
        scale = self.head_dim**-0.5
        return self._output(backend.attention(query, keys, values, attention_mask, causal, scale))

    def attend_cache(self, query: Tensor, cache: Cache, attention_mask: Tensor) -> Tensor:
        """The same to keys and values that are kept; `attention_mask`: (B, 1, T, S) bool."""
        return self._output(
            backend.cached_attention(query, *cache, attention_mask, self.head_dim**-0.5)
        )

    def _output(self, mixed: Tensor) -> Tensor:
        shape = ops.shape(mixed)
        return call_built(
            self.output_projection, ops.reshape(mixed, (*shape[:2], shape[2] * shape[3]))
        )

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return ops.reshape(x, (*ops.shape(x)[:2], heads, self.head_dim))

    def _rotated(self, x: Tensor, positions: Tensor | None) -> Tensor:
        if self.rotary_base is None:
            return x
        if positions is None:
            check_length(x.shape[1], self.max_length, self.path)
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        tables = (
            ops.convert_to_tensor(table, dtype=dtype)
            for table in rotary_tables(self.max_length, self.head_dim, self.rotary_base, dtype)
        )
        if positions is None:
            turns = [table[: ops.shape(x)[1], None] for table in tables]
        else:
            turns = [ops.take(table, positions, axis=0)[:, :, None] for table in tables]
        return rotate(x, *turns)

    def _weights(self, query: Tensor, keys: Tensor, attention_mask: Any, causal: bool) -> Tensor:
        """(B, heads, T, S): what the fused kernel does not show."""
        keys = ops.repeat(keys, self.num_heads // self.num_kv_heads, axis=2)
        scores = ops.einsum("btnh,bsnh->bnts", query, keys) * self.head_dim**-0.5
        if causal:
            before = ops.tril(ops.ones(scores.shape[-2:], "bool"))
            attention_mask = (
                before if attention_mask is None else ops.logical_and(attention_mask, before)
            )
        if attention_mask is not None:
            scores = ops.where(attention_mask, scores, ops.full_like(scores, -math.inf))
        # Keras' softmax warns of a single key.
        weights = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
        return weights / ops.sum(weights, axis=-1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        names = (
            "num_heads", "num_kv_heads", "causal", "rotary_base", "max_length", "use_bias",
            "stddev", "output_stddev", "seed", "stream",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
