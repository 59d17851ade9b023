"""Multi-head attention and position encodings.

For each head, with q = x·W_q, k = y·W_k and v = y·W_v, each (positions, d):

    attention(q, k, v) = softmax(q·kᵀ/sqrt(d) + mask)·v

The concatenated outputs of the heads are multiplied by W_o. In self-attention y is x; in
cross-attention y is the encoded context. The mask is -inf for padding and, in causal attention,
for later positions.

Attention does not depend on the order of the positions. Position encodings supply the order: a
sinusoidal or learned table is added to x, or q and k are rotated (rotary embeddings:
`zoo.layers.rotary`).

Source: the document's section "Architecture de Transformateur"; Vaswani et al., "Attention Is All
You Need", 2017, sections 3.2 and 3.5; Su et al., "RoFormer", 2021; Ainslie et al., "GQA", 2023.
"""

import contextvars
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.backends import backend
from zoo.layers.core import call_built, dense_projection
from zoo.layers.rotary import RotaryScaling, rotate, rotations
from zoo.validation import MAX_ELEMENTS, Index, NonNegative, Positive, Rule, Seed, Size, validated

Tensor = Any
Cache = tuple[Tensor, Tensor]  # cached keys and values, (B, num_kv_heads, capacity, head_dim) each
PositionKind = Literal["sinusoidal", "learned", "rotary"]
AttentionBias = bool | Literal["qkv"]

# While set, each `Attention` layer stores its attention weights in this dictionary, by layer path:
# see `zoo.evaluation.attention_maps`.
collected_attention_maps: contextvars.ContextVar[dict[str, Tensor] | None] = contextvars.ContextVar(
    "collected_attention_maps", default=None
)

# ------------------------------------------------------------------ position encodings

Initializer = Annotated[Any, Rule("an initializer of Keras or its name", keras.initializers.get)]


@validated
def sinusoidal_table(length: Size, dim: Size) -> np.ndarray:
    """Returns sinusoidal position encodings, (length, dim) float64.

    Even columns hold sines and odd columns cosines. The frequency falls from column to column.
    Source: Vaswani et al., 2017, section 3.5.

    Raises:
        ValueError: If `length` or `dim` is not a size, or the table would have 2**31 numbers.
    """
    if length * dim > MAX_ELEMENTS:
        raise ValueError(
            "`length` and `dim` must give a table of fewer than 2**31 numbers. Received: "
            f"length={length}, dim={dim}"
        )
    angles = np.arange(length)[:, None] * 10000.0 ** -(np.arange(0, dim, 2) / dim)
    table = np.empty((length, dim))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : dim // 2])
    return table


def heads_first(x: Tensor) -> Tensor:
    """Transposes (B, T, heads, head_dim) to the layout of a cache, (B, heads, T, head_dim)."""
    return ops.transpose(x, (0, 2, 1, 3))


@keras.saving.register_keras_serializable("zoo")
class Positions(keras.layers.Layer):  # type: ignore[misc]
    """Position encoding that is added to its input, (B, T, dim).

    Args:
        kind: "sinusoidal" or "learned".
        max_length: Number of positions.
        initializer: Initializer of the learned table.

    Raises:
        ValueError: When called with a sequence longer than `max_length`.
    """

    @validated
    def __init__(
        self,
        kind: Literal["sinusoidal", "learned"],
        max_length: Index,
        initializer: Initializer = "zeros",
        **kwargs: Any,
    ):
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
        """Adds the encoding of each position.

        Args:
            x: Vectors of the tokens, (B, T, dim).
            positions: Positions of the tokens, (B, T) int; by default 0, 1, ..., T - 1.
        """
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


def check_length(length: int | None, max_length: int, layer: str) -> None:
    """Raises ValueError for a sequence longer than `max_length`, the positions of a layer."""
    # An exported file's length is symbolic, and of another type.
    if isinstance(length, int) and length > max_length:
        raise ValueError(
            f"A sequence must have at most `max_length` = {max_length} tokens, the positions of "
            f"the layer {layer}. Received: {length}. Truncate the sequence, or build the model "
            "with a larger `max_length`"
        )


# ------------------------------------------------------------------ attention


def _without_empty_rows(
    attention_mask: Tensor, query: Tensor, keys: Tensor, causal: bool
) -> Tensor:
    """Mask in which a query whose keys are all masked attends as if none was.

    The backends return zeros, a mean or NaN for such a query, and PyTorch's fused kernel a wrong
    gradient where the mask is a huge number.
    """
    if causal:
        allowed = ops.tril(ops.ones((ops.shape(query)[1], ops.shape(keys)[1]), "bool"))
        attention_mask = ops.logical_and(attention_mask, allowed)
    is_empty = ops.logical_not(ops.any(attention_mask, axis=-1, keepdims=True))
    unmasked = ops.logical_and(is_empty, allowed) if causal else is_empty
    return ops.logical_or(attention_mask, unmasked)


@keras.saving.register_keras_serializable("zoo")
class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Multi-head attention by the backend's fused kernel; keeps (B, T, hidden_dim).

    Args:
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads, a divisor of num_heads; by default num_heads.
            Each is shared by num_heads/num_kv_heads query heads (grouped-query attention).
        head_dim: Width of a head; by default hidden_dim/num_heads.
        causal: Whether a position attends only to itself and earlier positions.
        rotary_base: Base of the rotary embeddings, usually 10000; None disables them.
        rotary_scaling: Scaling of the rotary embeddings, the arguments of
            `zoo.layers.rotary.RotaryScaling` by name; by default none.
        max_length: Number of positions of the rotary embeddings.
        use_bias: Whether the four projections have biases. With "qkv" the projections to queries,
            keys and values have biases, and the output projection has none.
        stddev: Standard deviation of the initial query, key and value kernels; by default
            1/sqrt(fan_in).
        output_stddev: Standard deviation of the initial output kernel; by default 1/sqrt(fan_in).
        seed: Seed of the initial weights.
        stream: Name of the random stream of the initial weights, unique within a model.
    """

    @validated
    def __init__(
        self,
        num_heads: Size,
        num_kv_heads: Size | None = None,
        head_dim: Size | None = None,
        causal: bool = False,
        rotary_base: Positive | None = None,
        rotary_scaling: Mapping[str, Any] | None = None,
        max_length: Index = 0,
        use_bias: AttentionBias = True,
        stddev: NonNegative | None = None,
        output_stddev: NonNegative | None = None,
        seed: Seed = 0,
        stream: str = "attention",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim: Any = head_dim  # an integer once the layer is built
        self.causal = causal
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling
        self._scaling = RotaryScaling.from_config(rotary_scaling)
        self.max_length = max_length
        self.use_bias = use_bias
        self.stddev = stddev
        self.output_stddev = output_stddev
        self.seed = seed
        self.stream = stream

    def build(self, input_shape: Any, *_: Any) -> None:
        width = input_shape[-1]
        if self.head_dim is None:
            self.head_dim = width // self.num_heads
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.query_projection = dense_projection(self, "query", width, q_width, self.stddev)
        self.key_projection = dense_projection(self, "key", width, kv_width, self.stddev)
        self.value_projection = dense_projection(self, "value", width, kv_width, self.stddev)
        self.output_projection = dense_projection(
            self,
            "output",
            q_width,
            width,
            self.output_stddev,
            use_bias=bool(self.use_bias) and self.use_bias != "qkv",
        )

    def call(
        self, x: Tensor, context: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Computes self-attention or, with a context, cross-attention.

        Args:
            x: Vectors of the queries, (B, T, hidden_dim).
            context: Vectors of the keys and values, (B, S, hidden_dim); by default x.
            padding_mask: Boolean mask of the keys, (B, S), false at padding.

        Returns:
            Attention output, (B, T, hidden_dim).
        """
        query = self.queries(x)
        keys, values = self.keys_and_values(x if context is None else context)
        attention_mask = None if padding_mask is None else ops.expand_dims(padding_mask, (1, 2))
        return self.attend(query, keys, values, attention_mask, self.causal)

    def compute_output_shape(self, input_shape: Any, *_: Any, **__: Any) -> Any:
        return input_shape

    # The stages of `call`, for incremental decoding with cached keys and values.

    def queries(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Projects (B, T, hidden_dim) to queries, (B, T, num_heads, head_dim)."""
        queries = self._split_heads(call_built(self.query_projection, x), self.num_heads)
        return self._rotate(queries, positions)

    def keys_and_values(self, x: Tensor, positions: Tensor | None = None) -> Cache:
        """Projects (B, S, hidden_dim) to keys and values, (B, S, num_kv_heads, head_dim) each."""
        keys = self._split_heads(call_built(self.key_projection, x), self.num_kv_heads)
        values = self._split_heads(call_built(self.value_projection, x), self.num_kv_heads)
        return self._rotate(keys, positions), values

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Computes attention and the output projection.

        Args:
            query: Queries, (B, T, num_heads, head_dim).
            keys: Keys, (B, S, num_kv_heads, head_dim).
            values: Values, (B, S, num_kv_heads, head_dim).
            attention_mask: Boolean mask, broadcastable to (B, num_heads, T, S). A query whose keys
                are all masked attends as if none was.
            causal: Whether a position attends only to itself and earlier positions.

        Returns:
            Attention output, (B, T, hidden_dim).
        """
        if attention_mask is not None:
            attention_mask = _without_empty_rows(attention_mask, query, keys, causal)
            causal = False
        maps = collected_attention_maps.get()
        if maps is not None:
            maps[self.path] = self._attention_weights(query, keys, attention_mask, causal)
        scale = self.head_dim**-0.5
        heads = backend.attention(query, keys, values, attention_mask, causal, scale)
        return self._project_output(heads)

    def attend_to_cache(self, query: Tensor, cache: Cache, attention_mask: Tensor) -> Tensor:
        """Computes attention to cached keys and values, and the output projection.

        Args:
            query: Queries, (B, T, num_heads, head_dim).
            cache: Cached keys and values, (B, num_kv_heads, S, head_dim) each.
            attention_mask: Boolean mask, (B, 1, T, S).

        Returns:
            Attention output, (B, T, hidden_dim).
        """
        heads = backend.cached_attention(query, *cache, attention_mask, self.head_dim**-0.5)
        return self._project_output(heads)

    def _project_output(self, heads: Tensor) -> Tensor:
        # (B, T, num_heads, head_dim) -> (B, T, hidden_dim)
        shape = ops.shape(heads)
        concatenated = ops.reshape(heads, (*shape[:2], shape[2] * shape[3]))
        return call_built(self.output_projection, concatenated)

    def _split_heads(self, x: Tensor, heads: int) -> Tensor:
        # (B, T, heads · head_dim) -> (B, T, heads, head_dim)
        return ops.reshape(x, (*ops.shape(x)[:2], heads, self.head_dim))

    def _rotate(self, x: Tensor, positions: Tensor | None) -> Tensor:
        if self.rotary_base is None:
            return x
        if positions is None:
            check_length(x.shape[1], self.max_length, self.path)
            positions = ops.arange(ops.shape(x)[1], dtype="int32")[None]
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        cosines, sines = rotations(
            positions, self.max_length, self.head_dim, self.rotary_base, self._scaling, dtype
        )
        return rotate(x, cosines, sines)

    def _attention_weights(
        self, query: Tensor, keys: Tensor, attention_mask: Any, causal: bool
    ) -> Tensor:
        """Computes the attention weights, (B, heads, T, S), which the fused kernel hides."""
        keys = ops.repeat(keys, self.num_heads // self.num_kv_heads, axis=2)
        scores = ops.einsum("btnh,bsnh->bnts", query, keys) * self.head_dim**-0.5
        if causal:
            attention_mask = ops.tril(ops.ones(scores.shape[-2:], "bool"))
        if attention_mask is not None:
            scores = ops.where(attention_mask, scores, ops.full_like(scores, -math.inf))
        # Computed by hand, since Keras' softmax warns about an axis of size 1 (a single key).
        weights = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
        return weights / ops.sum(weights, axis=-1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        names = (
            "num_heads", "num_kv_heads", "head_dim", "causal", "rotary_base", "rotary_scaling",
            "max_length", "use_bias", "stddev", "output_stddev", "seed", "stream",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
