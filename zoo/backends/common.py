"""Implementations that the backend modules share."""

import ctypes
import math
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
from keras import ops
from keras.src.backend.common import dtypes
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

Tensor = Any


def keep_malloc_pages(one_arena: bool = True) -> None:
    """Makes the C library keep large freed blocks instead of returning them to the system.

    A training step frees and allocates some hundred MB of activations. By default glibc maps each
    large block anew and the kernel clears the block page by page. Clearing takes up to a third of a
    step's time on a CPU. The function does nothing where the C library is not glibc.

    Args:
        one_arena: Whether all threads share one arena, so that a thread reuses the blocks that
            another thread has freed.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(m_mmap_threshold, 2**31 - 1)
    mallopt(m_trim_threshold, 2**31 - 1)
    if one_arena:
        mallopt(m_arena_max, 1)


@contextmanager
def float64_results() -> Iterator[None]:
    """Context manager in which operations on float64 return float64.

    Keras returns float32 on PyTorch and JAX: https://github.com/keras-team/keras/issues/23704.
    """
    result_dtype = dtypes.BIT64_TO_BIT32_DTYPE["float64"]
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = result_dtype


@contextmanager
def float64() -> Iterator[None]:
    """Context manager with float64 as the default; operations on float64 return float64."""
    default, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with float64_results():
            yield
    finally:
        keras.config.set_floatx(default)
        keras.config.set_dtype_policy(policy)


@contextmanager
def replaced(module: Any, **functions: Any) -> Iterator[None]:
    """Context manager in which functions of a module, by their names, are replaced by others."""
    originals = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


def check_limits(low: Any, high: Any, size: int, rule: str) -> None:
    """Raises ValueError with the rule if the lowest or the highest number is not in [0, size).

    Args:
        low: Lowest number, a scalar or tensor of integers or, as labels may be, floats.
        high: Highest number; NaN if one of the numbers is.
        size: Limit of the numbers.
        rule: Text of the error, which the number follows.
    """
    low, high = float(low), float(high)
    if not (low >= 0 and high < size):
        number = high if low >= 0 else low
        raise ValueError(f"{rule} {int(number) if number.is_integer() else number}")


def look_up(table: Any, indices: Tensor) -> Tensor:
    return keras.ops.take(table, indices, axis=0)


def dense(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.Dense.call(layer, inputs)


def conv2d(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.Conv2D.call(layer, inputs)


def max_pool2d(layer: Any, inputs: Tensor) -> Tensor:
    return keras.layers.MaxPooling2D.call(layer, inputs)


def _repeat(group_values: Tensor, size: int) -> Tensor:
    return ops.repeat(group_values, size, axis=1)


def group_norm(layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
    return normalize_groups(
        inputs, layer.gamma, layer.beta, scale_shift, layer.groups, layer.epsilon
    )


def normalize_groups(
    inputs: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale_shift: Tensor | None,
    groups: int,
    epsilon: float,
    repeat: Callable[[Tensor, int], Tensor] = _repeat,
) -> Tensor:
    """Group normalization from the moments of single channels, whose sums are vectorized.

    A group's variance is the mean of its channels' variances plus the variance of their means.

    Args:
        inputs: Images, (B, H, W, C).
        gamma: Scale of each channel, (C,).
        beta: Shift of each channel, (C,).
        scale_shift: Scale and shift of each image's channels, (B, 2·C). The normalized channels are
            multiplied by 1 + scale, then the shift is added.
        groups: Number of groups.
        epsilon: Number added to the variances.
        repeat: Function of (group_values, size) that repeats each group's value for its channels,
            (B, groups) -> (B, groups·size).

    Returns:
        Normalized images, (B, H, W, C).
    """
    dtype = keras.backend.result_type(inputs.dtype, "float32")  # 16 bits are too few for sums
    x, scale, shift = (ops.cast(array, dtype) for array in (inputs, gamma, beta))
    size = x.shape[-1] // groups

    def group_mean(channel_values: Tensor) -> Tensor:
        return ops.mean(ops.reshape(channel_values, (-1, groups, size)), axis=-1)

    means, variances = ops.moments(x, axes=(1, 2))
    mean = repeat(group_mean(means), size)
    variance = group_mean(variances + ops.square(means - mean))
    scale = repeat(ops.rsqrt(variance + epsilon), size) * scale
    shift = shift - mean * scale
    if scale_shift is not None:
        extra_scale, extra_shift = ops.split(ops.cast(scale_shift, dtype), 2, axis=-1)
        scale, shift = scale * (1 + extra_scale), shift * (1 + extra_scale) + extra_shift
    return ops.cast(x * scale[:, None, None] + shift[:, None, None], inputs.dtype)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    if keys.shape[2] == 1:  # Keras does not share a single key head among several query heads
        keys, values = (ops.repeat(x, query.shape[2], axis=2) for x in (keys, values))
    return ops.dot_product_attention(
        query, keys, values, mask=attention_mask, scale=scale, is_causal=causal
    )


def cached_attention(
    query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor, scale: float
) -> Tensor:
    batch, length, heads, head_dim = ops.shape(query)
    _, kv_heads, capacity, _ = ops.shape(keys)
    group = heads // kv_heads
    query = ops.reshape(query * scale, (batch, length, kv_heads, group, head_dim))
    # The queries that share keys are rows of one product: (B, kv_heads, group·T, head_dim).
    query = ops.reshape(ops.transpose(query, (0, 2, 3, 1, 4)), (batch, kv_heads, -1, head_dim))
    scores = ops.matmul(query, ops.swapaxes(keys, 2, 3))
    scores = ops.reshape(scores, (batch, kv_heads, group, length, capacity))
    if "16" in str(scores.dtype):
        scores = ops.cast(scores, "float32")
    weights = ops.softmax(ops.where(attention_mask[:, :, None], scores, -1e30), axis=-1)
    weights = ops.reshape(weights, (batch, kv_heads, group * length, capacity))
    outputs = ops.matmul(ops.cast(weights, values.dtype), values)
    outputs = ops.reshape(outputs, (batch, kv_heads, group, length, head_dim))
    return ops.reshape(ops.transpose(outputs, (0, 3, 1, 2, 4)), (batch, length, heads, head_dim))


class ForeachMixin:
    """Empty base class of optimizers: compiled updates are fast one variable at a time."""


def bias_corrected_step(optimizer: Any, learning_rate: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Adam's step size and epsilon for the next step, with bias-corrected moments."""
    if dtype not in optimizer.bias_corrections:
        # Sixteen bits are too few for the corrections.
        precise = "float64" if dtype == "float64" else "float32"
        step = ops.cast(optimizer.iterations + 1, precise)
        # 1 - beta**step; a float32 subtraction would leave four digits of 1 - 0.999.
        correction_1 = -ops.expm1(math.log(optimizer.beta_1) * step)
        correction_2 = ops.sqrt(-ops.expm1(math.log(optimizer.beta_2) * step))
        alpha = ops.cast(learning_rate, precise) * correction_2 / correction_1
        epsilon = optimizer.epsilon * correction_2
        optimizer.bias_corrections[dtype] = ops.cast(alpha, dtype), ops.cast(epsilon, dtype)
    return optimizer.bias_corrections[dtype]  # type: ignore[no-any-return]


def adam_update(
    optimizer: Any,
    gradient: Tensor,
    variable: Any,
    momentum: Any,
    velocity: Any,
    learning_rate: Tensor,
) -> None:
    """Adam of Kingma and Ba with an L2 penalty in the gradient, in plain Keras operations."""
    alpha, epsilon = bias_corrected_step(optimizer, learning_rate, variable.dtype)
    gradient = gradient + optimizer.l2 * variable
    m = momentum + (1 - optimizer.beta_1) * (gradient - momentum)
    v = velocity + (1 - optimizer.beta_2) * (gradient * gradient - velocity)
    optimizer.assign(momentum, m)
    optimizer.assign(velocity, v)
    optimizer.assign_sub(variable, alpha * m / (ops.sqrt(v) + epsilon))


shards_among_workers = False


def is_sharding() -> bool:
    return False


def assigning_alone() -> AbstractContextManager[None]:
    return nullcontext()


def create_variables(trainer: Any, batch: Any) -> None:
    """Creates the variables of model, optimizer and metrics before a checkpoint restores them."""
    trainer._symbolic_build(data_batch=batch)


class BatchesAdapter(PyDatasetAdapter):  # type: ignore[misc]
    """Batches as tensors, in place of a `tf.data.Dataset` or a PyTorch `DataLoader` for `fit`.

    Keras would make a `tf.data.Dataset` from a Python generator: while such a dataset exists, every
    step of a recurrent network takes 6 % longer, `fit` can wait for seconds at the beginning, and
    batches must not differ in more than their first axis. A `DataLoader` only takes longer.
    """

    def get_tf_dataset(self) -> "_TensorBatches":
        return _TensorBatches(self.get_numpy_iterator)

    get_torch_dataloader = get_tf_dataset


class _TensorBatches:
    """Batches of tensors that can be read several times, from a function that returns arrays."""

    def __init__(self, read: Callable[[], Iterable[Any]]):
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        for batch in self._read():
            yield keras.tree.map_structure(ops.convert_to_tensor, batch)


def update_loss_metric(model: Any, loss: Tensor, batch_size: Tensor) -> None:
    """Updates the mean loss of the epoch, which `fit` reports."""
    for metric in model.metrics:
        if metric.name == "loss":
            # `update_state` would first inspect its arguments, which takes longer than the sums.
            count = ops.cast(batch_size, metric.dtype)
            metric.total.assign_add(ops.cast(loss, metric.dtype) * count)
            metric.count.assign_add(count)


def host_integer(number: Tensor) -> Any:
    """Integer value of a scalar tensor if reading it needs no synchronization, else the tensor."""
    return number


def preprocessing_function(layer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, which the training step compiles."""
    return function
