"""JAX: compiled steps that give their memory back."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from zoo.backends import common
from zoo.backends.common import ForeachMixin as ForeachMixin
from zoo.backends.common import adam_update as adam_update
from zoo.backends.common import cached_attention as cached_attention
from zoo.backends.jax_convolution import conv2d as conv2d
from zoo.backends.jax_convolution import max_pool2d as max_pool2d
from zoo.backends.jax_recurrent import recurrent as recurrent

Tensor = Any

_MANY_CLASSES = 256
_BLOCKS = 4  # of causal attention


def version() -> str:
    return str(jax.__version__)


def device() -> str:
    first = jax.devices()[0]
    return "cpu" if first.platform == "cpu" else str(first.device_kind)


def on_device(array: Any) -> Tensor:
    return jnp.asarray(array)


def keep_malloc_pages() -> None:
    """In an arena for each thread: for one, XLA's threads wait, half as long again as they work."""
    common.keep_malloc_pages(one_arena=False)


def make_deterministic() -> None:
    """XLA reads its flags when the first device is asked for; on a CPU it needs none."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"


def disable_tf32() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")


def keep_float64() -> None:
    """As on PyTorch; and attention's softmax, which JAX takes in float32, is taken in float64."""
    common.keep_float64()
    jax.nn.dot_product_attention = _attention


@contextmanager
def float64() -> Iterator[None]:
    """As on PyTorch, with the switch that JAX otherwise reads from `JAX_ENABLE_X64`."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        with common.float64():
            yield
    finally:
        jax.config.update("jax_enable_x64", before)


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
    """query: (B, T, N, H); key, value: (B, S, K, H), K divides N; mask: (B, 1 or N, T, S)."""
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


class TrainStep:
    """Keras' variables go in and come out as arrays; the old ones' memory is reused."""

    def __init__(self, model: Any, optimizer: Any, objective: Callable[..., Any]):
        self._variables = (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
        trainable, non_trainable, _ = self._variables
        self._state: Any = None

        def loss_of(values: Any, other_values: Any, arrays: Any) -> Any:
            mapping = [*zip(trainable, values), *zip(non_trainable, other_values)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                loss, metrics = objective(*arrays)
            others = [scope.get_current_value(variable) for variable in non_trainable]
            return loss, ({"loss": loss, **metrics}, others)

        def step(state: Any, arrays: Any) -> Any:
            values, other_values, optimizer_values = state
            gradient = jax.grad(loss_of, has_aux=True)
            gradients, (metrics, others) = gradient(values, other_values, arrays)
            values, optimizer_values = optimizer.stateless_apply(
                optimizer_values, gradients, values
            )
            return (values, others, optimizer_values), metrics

        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self, *arrays: Any) -> Mapping[str, Tensor]:
        if self._state is None:
            self._state = tuple([v.value for v in group] for group in self._variables)
        self._state, metrics = self._step(self._state, arrays)
        return metrics  # type: ignore[no-any-return]

    def sync(self) -> None:
        if self._state is None:
            return
        for group, values in zip(self._variables, self._state):
            for variable, value in zip(group, values):
                variable.assign(value)
        self._state = None


def train_step(model: Any, optimizer: Any, objective: Callable[..., Any]) -> TrainStep:
    return TrainStep(model, optimizer, objective)


def gradients(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    trainable, others = model.trainable_variables, model.non_trainable_variables

    @jax.jit  # type: ignore[untyped-decorator]
    def compiled(values: Any, other_values: Any, arrays: Any) -> Any:
        def loss_of(values: Any) -> Any:
            mapping = [*zip(trainable, values), *zip(others, other_values)]
            with keras.StatelessScope(state_mapping=mapping):
                return function(*arrays)

        return jax.value_and_grad(loss_of)(values)

    return lambda *arrays: compiled(
        [v.value for v in trainable], [v.value for v in others], arrays
    )


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


def cache(shape: tuple[int, ...], dtype: str) -> Tensor:
    return jnp.zeros(shape, dtype)


def write(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    return jax.lax.dynamic_update_slice_in_dim(cache, new, start, axis=2)


@partial(jax.jit, donate_argnums=0)
def reorder(caches: Any, rows: Any) -> Any:
    return jax.tree.map(lambda cache: cache[rows], caches)


def dense(layer: Any, inputs: Tensor) -> Tensor:
    """As one matrix of rows: of more axes, XLA copies what the kernel's gradient is made of."""
    outputs = keras.layers.Dense.call(layer, inputs.reshape(-1, inputs.shape[-1]))
    return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def _spread(numbers: Tensor, size: int) -> Tensor:
    """As a product, or XLA would look a channel's group up for each of its pixels."""
    return numbers @ jnp.repeat(jnp.eye(numbers.shape[1], dtype=numbers.dtype), size, axis=1)


# Where nothing else compiles it, in one piece.
_grouped_norm = jax.jit(common.grouped_norm, static_argnums=(4, 5, 6), inline=True)


def group_norm(layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
    gamma, beta = (jnp.asarray(variable) for variable in (layer.gamma, layer.beta))
    return _grouped_norm(inputs, gamma, beta, scale_shift, layer.groups, layer.epsilon, _spread)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """On a CPU in blocks of queries, which leave out what is yet to come and run side by side."""
    length = query.shape[1]
    if not causal or attention_mask is not None or length < _BLOCKS or device() != "cpu":
        return common.attention(query, keys, values, attention_mask, causal, scale)
    shared = query.shape[2] // keys.shape[2]
    query = (query * scale).swapaxes(1, 2)
    keys, values = (jnp.repeat(x.swapaxes(1, 2), shared, axis=1) for x in (keys, values))
    mixed = []
    for number in range(_BLOCKS):
        first, last = (length * border // _BLOCKS for border in (number, number + 1))
        scores = query[:, :, first:last] @ keys[:, :, :last].swapaxes(2, 3)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        before = jnp.arange(last) <= jnp.arange(first, last)[:, None]
        weights = jax.nn.softmax(jnp.where(before, scores, -jnp.inf))
        mixed.append(weights.astype(values.dtype) @ values[:, :, :last])
    return jnp.concatenate(mixed, axis=2).swapaxes(1, 2)


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Keras makes a row of zeros and a one for each label, which takes time among many classes."""
    if logits.shape[-1] < _MANY_CLASSES:
        return keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    chosen = jnp.take_along_axis(logits, labels[..., None].astype("int32"), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def check_token_ids(ids: Tensor, size: int, layer: str) -> Tensor:
    if ids.size:
        check = partial(common.check_range, size=size, layer=layer)
        if isinstance(ids, jax.core.Tracer):
            jax.debug.callback(check, ids.min(), ids.max())
        else:
            check(ids.min(), ids.max())
    return ids
