"""JAX: compiled steps that give their memory back, convolutions as matrix products on a CPU."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax

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
    """On a CPU nothing is to be done; on a GPU XLA reads this when it compiles."""
    jax.config.update("jax_default_matmul_precision", "highest")


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
        if jax.default_backend() == "cpu":
            common.keep_freed_memory()

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


def forward(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    variables = model.variables

    @jax.jit
    def compiled(values: Any, arrays: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return function(*arrays)

    return lambda *arrays: compiled([variable.value for variable in variables], arrays)


# ------------------------------------------------------------------ convolution on a CPU
# XLA's own convolution takes twice as long there, mostly in its gradients.

_CHUNK_BYTES = 5 << 20  # patches of about this size stay in the cache


def conv2d(layer: Any, inputs: Tensor, kernel: Tensor) -> Tensor:
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
    if rewritten:
        return _matmul_conv(inputs, kernel)
    return common.conv2d(layer, inputs, kernel)


def _chunks(x: Tensor, size: int) -> Tensor:
    return x.reshape(x.shape[0] // size, size, *x.shape[1:])


def _chunk_size(batch: int, image_bytes: int) -> int:
    """The largest divisor of the batch whose patches fit into the cache."""
    limit = max(1, _CHUNK_BYTES // image_bytes)
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= limit)


def _pad(x: Tensor, kh: int, kw: int) -> Tensor:
    return jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))


def _row_patches(x: Tensor, kh: int, kw: int) -> Tensor:
    """Each pixel's row of `kw` neighbours: (B, H, W, C) -> (B, H + kh - 1, W, kw * C)."""
    width = x.shape[2]
    x = _pad(x, kh, kw)
    return jnp.concatenate([x[:, :, j : j + width] for j in range(kw)], axis=-1)


def _forward(x: Tensor, kernel: Tensor) -> Tensor:
    kh, kw, channels, filters = kernel.shape
    batch, height, width, _ = x.shape
    rows = kernel.reshape(kh, kw * channels, filters)

    def one_chunk(images: Tensor) -> Tensor:
        patches = _row_patches(images, kh, kw)
        parts = [
            patches[:, i : i + height].reshape(-1, kw * channels) @ rows[i] for i in range(kh)
        ]
        return sum(parts)

    size = _chunk_size(batch, kh * kw * channels * height * width * x.dtype.itemsize)
    return lax.map(one_chunk, _chunks(x, size)).reshape(batch, height, width, filters)


@jax.custom_vjp
def _matmul_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """Stride 1, `same`: patches times the kernel as a matrix, a few images at a time."""
    return _forward(x, kernel)


def _matmul_conv_forward(x: Tensor, kernel: Tensor) -> Any:
    return _forward(x, kernel), (x, kernel)


def _matmul_conv_backward(residuals: Any, gradient: Tensor) -> Any:
    x, kernel = residuals
    kh, kw, channels, filters = kernel.shape
    batch, height, width, _ = x.shape
    columns = kh * kw * channels

    def kernel_gradient(images: Tensor, gradients: Tensor) -> Tensor:
        rows = _row_patches(images, kh, kw)
        patches = jnp.concatenate([rows[:, i : i + height] for i in range(kh)], axis=-1)
        return gradients.reshape(-1, filters).T @ patches.reshape(-1, columns)

    def input_gradient(gradients: Tensor) -> Tensor:
        patches = gradients.reshape(-1, filters) @ kernel.reshape(columns, filters).T
        patches = patches.reshape(-1, height, width, kh, kw, channels)
        # Each of a patch's pixels goes back to the place it came from.
        parts = [
            lax.pad(
                patches[:, :, :, i, j],
                jnp.zeros((), x.dtype),
                (
                    (0, 0, 0),
                    (i - kh // 2, kh // 2 - i, 0),
                    (j - kw // 2, kw // 2 - j, 0),
                    (0, 0, 0),
                ),
            )
            for i in range(kh)
            for j in range(kw)
        ]
        return sum(parts)

    def one_chunk(total: Tensor, chunk: Any) -> Any:
        images, gradients = chunk
        return total + kernel_gradient(images, gradients), input_gradient(gradients)

    size = _chunk_size(batch, columns * height * width * x.dtype.itemsize)
    zeros = jnp.zeros((filters, columns), kernel.dtype)
    total, inputs = lax.scan(one_chunk, zeros, (_chunks(x, size), _chunks(gradient, size)))
    return inputs.reshape(x.shape), total.T.reshape(kernel.shape)


_matmul_conv.defvjp(_matmul_conv_forward, _matmul_conv_backward)


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


@jax.custom_vjp
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
