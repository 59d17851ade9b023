"""JAX: compiled steps that give their memory back, convolutions as matrix products on a CPU."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.custom_derivatives import SymbolicZero

from zoo.backends import common
from zoo.backends.common import adam_update as adam_update

Tensor = Any


def version() -> str:
    return str(jax.__version__)


def device() -> str:
    first = jax.devices()[0]
    return "cpu" if first.platform == "cpu" else str(first.device_kind)


def on_device(array: Any) -> Tensor:
    return jnp.asarray(array)


def make_deterministic() -> None:
    """XLA reads its flags when the first device is asked for; on a CPU it needs none."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"


def use_full_precision() -> None:
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

    return lambda *arrays: compiled([v.value for v in trainable], [v.value for v in others], arrays)


def forward(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    variables = model.variables

    @jax.jit  # type: ignore[untyped-decorator]
    def compiled(values: Any, arrays: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return function(*arrays)

    return lambda *arrays: compiled([variable.value for variable in variables], arrays)


compiled = forward


def checked_ids(ids: Tensor, size: int, layer: str) -> Tensor:
    if ids.size:
        check = partial(common.check_range, size=size, layer=layer)
        if isinstance(ids, jax.core.Tracer):
            jax.debug.callback(check, ids.min(), ids.max())
        else:
            check(ids.min(), ids.max())
    return ids


# ------------------------------------------------------------------ recurrent layers
# What does not depend on the step before is left out of the loop: W·x for all steps at once, and
# the gradient of U, which is one product over all steps where JAX would add up one a step.


def recurrent(
    cell: str,
    gates: Callable[..., Any],
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    kernel, recurrent_kernel, bias = weights
    input_bias, recurrent_bias = bias if bias.ndim == 2 else (bias, 0 * bias)
    projected = jnp.swapaxes(inputs, 0, 1) @ kernel + input_bias  # (T, B, k)
    if mask is not None:
        mask = jnp.swapaxes(mask, 0, 1)[..., None]  # (T, B, 1)
    outputs, states = _compiled_loop(
        gates, projected, tuple(states), recurrent_kernel, recurrent_bias, mask
    )
    return jnp.swapaxes(outputs, 0, 1), states


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any) -> Any:
    """projected: (T, B, k); states: (B, units) each. Returns h at every step, the last states."""
    (outputs, *_), last, _ = _steps(gates, projected, states, kernel, bias, mask)
    return outputs, last


def _steps(gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any) -> Any:
    def step(before: Any, at: Any) -> Any:
        x, counts = at
        h = before[0] @ kernel + bias
        after = gates(x, h, *before)
        if counts is not None:
            after = tuple(jnp.where(counts, new, old) for new, old in zip(after, before))
        return after, (after, h)

    last, (after, h) = lax.scan(step, states, (projected, mask))
    return after, last, h


def _loop_forward(
    gates: Any, projected: Any, states: Any, kernel: Any, bias: Any, mask: Any
) -> Any:
    after, last, h = _steps(gates, projected, states, kernel, bias, mask)
    return (after[0], last), (projected, states, kernel, mask, after, h)


def _loop_backward(gates: Any, residuals: Any, gradients: Any) -> Any:
    projected, states, kernel, mask, after, h = residuals
    output_gradients, last_gradients = gradients
    before = tuple(jnp.concatenate([s[None], a[:-1]]) for s, a in zip(states, after))

    def step(coming: Any, at: Any) -> Any:
        x, h, before, output_gradient, counts = at
        coming = [coming[0] + output_gradient, *coming[1:]]
        passed = [jnp.zeros_like(c) for c in coming]
        if counts is not None:
            passed = [jnp.where(counts, 0, c) for c in coming]
            coming = [jnp.where(counts, c, 0) for c in coming]
        _, pull = jax.vjp(gates, x, h, *before)
        x_gradient, h_gradient, *going = pull(tuple(coming))
        going[0] += h_gradient @ kernel.T
        going = tuple(g + p for g, p in zip(going, passed))
        return going, (x_gradient, h_gradient)

    steps = projected, h, before, output_gradients, mask
    state_gradients, (x_gradient, h_gradient) = lax.scan(
        step, tuple(last_gradients), steps, reverse=True
    )
    kernel_gradient = jnp.einsum("tbu,tbk->uk", before[0], h_gradient)
    return x_gradient, state_gradients, kernel_gradient, h_gradient.sum((0, 1)), None


_loop.defvjp(_loop_forward, _loop_backward)
_compiled_loop = jax.jit(_loop, static_argnums=0)  # so that calls one by one compile it only once


# ------------------------------------------------------------------ convolution on a CPU
# XLA's own convolution takes twice as long there, mostly in its gradients.

_CHUNK_BYTES = 16 << 20  # patches of about this size stay in the cache


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    kernel = jnp.asarray(layer.kernel)
    rewritten = (
        jax.default_backend() == "cpu"
        and layer.data_format == "channels_last"
        and layer.padding == "same"
        and tuple(layer.strides) == (1, 1)
        and tuple(layer.dilation_rate) == (1, 1)
        and inputs.shape[-1] == kernel.shape[2]  # one group
        and kernel.shape[0] % 2 == 1
        and kernel.shape[1] % 2 == 1
    )
    if not rewritten:
        return common.conv2d(layer, inputs)
    bias = jnp.asarray(layer.bias) if layer.use_bias else jnp.zeros(kernel.shape[-1], kernel.dtype)
    relu = layer.activation is keras.activations.relu
    outputs = _matmul_conv(inputs, kernel, bias, relu)
    return outputs if relu else layer.activation(outputs)


def _chunks(x: Tensor, kernel: Tensor) -> Tensor:
    """(B, H, W, C) -> (B / n, n, H, W, C), n images' patches fitting into the cache."""
    batch, height, width, _ = x.shape
    image_bytes = height * width * math.prod(kernel.shape[:3]) * x.dtype.itemsize
    limit = max(1, _CHUNK_BYTES // image_bytes)
    size = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= limit)
    return x.reshape(batch // size, size, *x.shape[1:])


def _pad(x: Tensor, kh: int, kw: int) -> Tensor:
    return jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))


def _patches(x: Tensor, kh: int, kw: int) -> Tensor:
    """Each pixel's neighbourhood as a row: (B, H, W, C) -> (B·H·W, kh·kw·C)."""
    _, height, width, channels = x.shape
    x = _pad(x, kh, kw)
    parts = [x[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(parts, axis=-1).reshape(-1, kh * kw * channels)


def _forward(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    kh, kw, channels, filters = kernel.shape
    _, height, width, _ = x.shape

    def narrow(images: Tensor) -> Tensor:
        return _patches(images, kh, kw) @ kernel.reshape(-1, filters)

    def wide(images: Tensor) -> Tensor:
        # A product for each row of the kernel copies a third of what whole patches would.
        images = _pad(images, kh, kw)
        rows = jnp.concatenate([images[:, :, j : j + width] for j in range(kw)], axis=-1)
        matrices = kernel.reshape(kh, kw * channels, filters)
        parts = [rows[:, i : i + height].reshape(-1, kw * channels) for i in range(kh)]
        return sum(part @ matrix for part, matrix in zip(parts, matrices))

    def one_chunk(images: Tensor) -> Tensor:
        outputs = (wide if channels >= 16 else narrow)(images) + bias
        return jnp.maximum(outputs, 0) if relu else outputs

    return lax.map(one_chunk, _chunks(x, kernel)).reshape(*x.shape[:3], filters)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul_conv(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Stride 1, `same`: patches times the kernel as a matrix, a few images at a time."""
    return _forward(x, kernel, bias, relu)


def _matmul_conv_forward(x: Any, kernel: Any, bias: Any, relu: bool) -> Any:
    outputs = _forward(x.value, kernel.value, bias.value, relu)
    # A first layer's input gradient is not wanted. (Residuals are arrays; a key is structure.)
    wanted = {"input gradient": None} if x.perturbed else {}
    return outputs, (x.value, kernel.value, outputs, wanted)


def _matmul_conv_backward(relu: bool, residuals: Any, gradient: Any) -> Any:
    x, kernel, outputs, wanted = residuals
    kh, kw, channels, filters = kernel.shape
    _, height, width, _ = x.shape
    if isinstance(gradient, SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)

    def kernel_gradient(images: Tensor, gradients: Tensor) -> Tensor:
        return gradients.T @ _patches(images, kh, kw)

    def input_gradient(gradients: Tensor) -> Tensor:
        patches = gradients @ kernel.reshape(-1, filters).T
        patches = patches.reshape(-1, height, width, kh, kw, channels)
        # Each of a patch's pixels goes back to the place it came from.
        return sum(
            lax.pad(
                patches[:, :, :, i, j],
                jnp.zeros((), x.dtype),
                ((0, 0, 0), _shift(i - kh // 2), _shift(j - kw // 2), (0, 0, 0)),
            )
            for i in range(kh)
            for j in range(kw)
        )

    def one_chunk(totals: Any, chunk: Any) -> Any:
        images, results, gradients = chunk
        if relu:
            gradients = jnp.where(results > 0, gradients, 0)
        gradients = gradients.reshape(-1, filters)
        kernel_total, bias_total = totals
        totals = kernel_total + kernel_gradient(images, gradients), bias_total + gradients.sum(0)
        return totals, input_gradient(gradients) if "input gradient" in wanted else None

    zeros = jnp.zeros((filters, kh * kw * channels), kernel.dtype), jnp.zeros(filters, kernel.dtype)
    chunks = _chunks(x, kernel), _chunks(outputs, kernel), _chunks(gradient, kernel)
    (kernel_total, bias_total), inputs = lax.scan(one_chunk, zeros, chunks)
    inputs = jnp.zeros_like(x) if inputs is None else inputs.reshape(x.shape)
    return inputs, kernel_total.T.reshape(kernel.shape), bias_total


def _shift(count: int) -> tuple[int, int, int]:
    """`lax.pad`'s argument that moves an axis by `count`, with zeros behind it."""
    return count, -count, 0


_matmul_conv.defvjp(_matmul_conv_forward, _matmul_conv_backward, symbolic_zeros=True)


# ------------------------------------------------------------------ pooling on a CPU
# The gradient of XLA's window reduction takes fifty times as long as the pooling itself.


def max_pool2d(layer: Any, inputs: Tensor) -> Tensor:
    rewritten = (
        jax.default_backend() == "cpu"
        and layer.data_format == "channels_last"
        and tuple(layer.pool_size) == tuple(layer.strides) == (2, 2)
        and inputs.shape[1] % 2 == 0
        and inputs.shape[2] % 2 == 0
    )
    if rewritten:
        return _max_of_four(inputs)
    return common.max_pool2d(layer, inputs)


def _quarters(x: Tensor) -> list[Tensor]:
    return [x[:, i::2, j::2] for i in range(2) for j in range(2)]


@jax.custom_vjp  # type: ignore[untyped-decorator]
def _max_of_four(x: Tensor) -> Tensor:
    a, b, c, d = _quarters(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_of_four_forward(x: Tensor) -> Any:
    maximum = _max_of_four(x)
    return maximum, (x, maximum)


def _max_of_four_backward(residuals: Any, gradient: Tensor) -> Any:
    """The first maximum of a window takes the whole gradient, as in the other backends."""
    x, maximum = residuals
    left = jnp.ones(maximum.shape, bool)
    parts = []
    for quarter in _quarters(x):
        hit = (quarter == maximum) & left
        left &= ~hit
        parts.append(jnp.where(hit, gradient, 0))
    a, b, c, d = parts
    # (B, H/2, W/2, C) four times -> (B, H/2, 2, W/2, 2, C)
    windows = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2)
    return (windows.reshape(x.shape),)


_max_of_four.defvjp(_max_of_four_forward, _max_of_four_backward)
