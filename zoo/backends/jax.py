"""JAX backend: compiled functions that reuse the memory of their arguments."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from zoo.backends import common
from zoo.backends.common import ForeachMixin as ForeachMixin
from zoo.backends.common import adam_update as adam_update
from zoo.backends.common import assigning_alone as assigning_alone
from zoo.backends.common import cached_attention as cached_attention
from zoo.backends.common import create_variables as create_variables
from zoo.backends.common import host_integer as host_integer
from zoo.backends.common import is_sharding as is_sharding
from zoo.backends.common import look_up as look_up
from zoo.backends.common import preprocessing_function as preprocessing_function
from zoo.backends.common import shards_among_workers as shards_among_workers
from zoo.backends.exporting import is_exporting
from zoo.backends.jax_cluster import TrainerMixin as TrainerMixin
from zoo.backends.jax_cluster import as_dataset as as_dataset
from zoo.backends.jax_cluster import broadcast as broadcast
from zoo.backends.jax_cluster import broadcast_variables as broadcast_variables
from zoo.backends.jax_cluster import join_cluster as join_cluster
from zoo.backends.jax_cluster import leave_cluster as leave_cluster
from zoo.backends.jax_convolution import conv2d as conv2d
from zoo.backends.jax_convolution import max_pool2d as max_pool2d
from zoo.backends.jax_generation import decode_loop as decode_loop
from zoo.backends.jax_recurrent import recurrent as recurrent
from zoo.backends.jax_sharding import sharded_model as sharded_model
from zoo.backends.jax_training import check_range as check_range

Tensor = Any

_MANY_CLASSES = 256
_QUERY_BLOCKS = 4  # in causal attention on a CPU


def version() -> str:
    return str(jax.__version__)


def device() -> str:
    first = jax.devices()[0]
    return "cpu" if first.platform == "cpu" else str(first.device_kind)


def on_device(array: Any) -> Tensor:
    return jnp.asarray(array)


def keep_malloc_pages() -> None:
    """Keeps one arena a thread: with a single arena XLA's threads take half as long again.

    XLA then allocates a step's activations in the calling thread, whose arena can grow: a block
    above 64 MiB in the arena of another thread is mapped anew each time, which made a step of an
    LSTM language model 20 % longer. JAX reads the setting when it first lists the devices.
    """
    common.keep_malloc_pages(one_arena=False)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_deterministic() -> None:
    """Sets the XLA flag for GPUs. XLA reads its flags when JAX first lists the devices."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"


def disable_tf32() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")


@contextmanager
def float64() -> Iterator[None]:
    """Context manager of `common.float64`, with `JAX_ENABLE_X64` enabled in addition.

    JAX's attention is replaced, because JAX computes its softmax in float32.
    """
    x64_enabled = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        with common.float64(), common.replaced(jax.nn, dot_product_attention=_attention):
            yield
    finally:
        jax.config.update("jax_enable_x64", x64_enabled)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """Replaces `jax.nn.dot_product_attention`, with the softmax in the dtype of the scores.

    Args:
        query: Queries, (B, T, N, H).
        key: Keys, (B, S, K, H), where K divides N.
        value: Values, (B, S, K, H).
        bias: Numbers added to the scores, broadcast to (B, N, T, S).
        mask: Boolean mask, (B, 1 or N, T, S), true where a query attends to a key.
        scale: Factor of the dot products; 1/sqrt(H) by default.
        is_causal: Whether query t attends to no key beyond t.

    Returns:
        Outputs of the heads, (B, T, N, H).
    """
    groups = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key)
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if is_causal:
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        mask = causal if mask is None else mask & causal
    if mask is not None:
        scores = jnp.where(mask, scores, -0.7 * jnp.finfo(scores.dtype).max)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), value)


def gradients(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    trainable, others = model.trainable_variables, model.non_trainable_variables

    @jax.jit  # type: ignore[untyped-decorator]
    def compiled(values: Any, other_values: Any, arrays: Any) -> Any:
        def loss_of(values: Any) -> Any:
            mapping = [*zip(trainable, values), *zip(others, other_values)]
            # Without `collect_losses` the losses that layers add would be lost.
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                return function(*arrays)

        return jax.value_and_grad(loss_of)(values)

    return lambda *arrays: compiled([v.value for v in trainable], [v.value for v in others], arrays)


def inference_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    variables = model.variables

    @jax.jit  # type: ignore[untyped-decorator]
    def compiled(values: Any, arrays: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return function(*arrays)

    return lambda *arrays: compiled([variable.value for variable in variables], arrays)


compiled_function = sampling_function = inference_function


def decode_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    variables = model.variables

    def with_values(values: Any, arrays: Any, caches: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return function(arrays, caches)

    compiled = jax.jit(with_values, donate_argnums=2)
    return lambda arrays, caches: compiled([v.value for v in variables], arrays, caches)


def create_cache(shape: tuple[int, ...], dtype: str) -> Tensor:
    return jnp.zeros(shape, dtype)


def update_cache(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    return jax.lax.dynamic_update_slice_in_dim(cache, new, start, axis=2)


@partial(jax.jit, donate_argnums=0)
def reorder_caches(caches: Any, rows: Any) -> Any:
    return jax.tree.map(lambda cache: cache[rows], caches)


def dense(layer: Any, inputs: Tensor) -> Tensor:
    """Computes the layer on inputs that are reshaped to (rows, features).

    With more axes XLA copies the factors of the kernel's gradient.
    """
    outputs = keras.layers.Dense.call(layer, inputs.reshape(-1, inputs.shape[-1]))
    return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def _repeat(group_values: Tensor, size: int) -> Tensor:
    """Repeats by a matrix product: `jnp.repeat` makes XLA index the group at every pixel."""
    groups = jnp.eye(group_values.shape[1], dtype=group_values.dtype)
    return group_values @ jnp.repeat(groups, size, axis=1)


# Compiled as a whole also where the caller is not compiled.
_normalize_groups = jax.jit(common.normalize_groups, static_argnums=(4, 5, 6), inline=True)


def group_norm(layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
    gamma, beta = (jnp.asarray(variable) for variable in (layer.gamma, layer.beta))
    return _normalize_groups(inputs, gamma, beta, scale_shift, layer.groups, layer.epsilon, _repeat)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """Attention; causal attention on a CPU is computed in blocks of queries.

    A block omits the keys beyond its last query, and the blocks run in parallel.
    """
    length = query.shape[1]
    if not causal or is_exporting() or length < _QUERY_BLOCKS or device() != "cpu":
        return common.attention(query, keys, values, attention_mask, causal, scale)
    group = query.shape[2] // keys.shape[2]
    query = (query * scale).swapaxes(1, 2)
    keys, values = (jnp.repeat(x.swapaxes(1, 2), group, axis=1) for x in (keys, values))
    outputs = []
    for block in range(_QUERY_BLOCKS):
        start, stop = (length * border // _QUERY_BLOCKS for border in (block, block + 1))
        scores = query[:, :, start:stop] @ keys[:, :, :stop].swapaxes(2, 3)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        causal_mask = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        weights = jax.nn.softmax(jnp.where(causal_mask, scores, -jnp.inf))
        outputs.append(weights.astype(values.dtype) @ values[:, :, :stop])
    return jnp.concatenate(outputs, axis=2).swapaxes(1, 2)


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy without the one-hot labels that Keras makes, which many classes make slow."""
    if logits.shape[-1] < _MANY_CLASSES:
        return keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    label_logits = jnp.take_along_axis(logits, labels[..., None].astype("int32"), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - label_logits
