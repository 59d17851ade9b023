"""TensorFlow: steps as graphs, XLA on an accelerator only, the fused Adam kernel."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import math_ops

from zoo.backends import common
from zoo.backends.common import ForeachMixin as ForeachMixin
from zoo.backends.common import attention as attention
from zoo.backends.common import cached_attention as cached_attention
from zoo.backends.common import conv2d as conv2d
from zoo.backends.common import dense as dense
from zoo.backends.common import float64 as float64
from zoo.backends.common import group_norm as group_norm
from zoo.backends.common import keep_malloc_pages as keep_malloc_pages
from zoo.backends.common import max_pool2d as max_pool2d

Tensor = Any


def version() -> str:
    return str(tf.__version__)


def device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu"))


def on_device(array: Any) -> Tensor:
    return tf.convert_to_tensor(array)


def make_deterministic() -> None:
    tf.config.experimental.enable_op_determinism()


def disable_tf32() -> None:
    tf.config.experimental.enable_tensor_float_32_execution(False)


def keep_float64() -> None:
    """Lets the cast of 0.9 to float64, as in optimizers and GELU, be 0.9 and not its float32."""
    cast = tf.cast

    def exact_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        if isinstance(x, float):
            return tf.constant(x, dtype, name=name)
        return cast(x, dtype, name)

    tf.cast = math_ops.cast = exact_cast


def _jit_compile() -> bool:
    """XLA makes the step three times slower on a CPU."""
    return bool(tf.config.list_physical_devices("GPU"))


class TrainStep:
    """Forward, backward and update as one graph for each batch shape."""

    def __init__(self, model: Any, optimizer: Any, objective: Callable[..., Any]):
        @tf.function(jit_compile=_jit_compile())  # type: ignore[untyped-decorator]
        def step(*arrays: Any) -> Any:
            variables = model.trainable_variables
            with tf.GradientTape() as tape:
                loss, metrics = objective(*arrays)
            weights = [variable.value for variable in variables]
            # A weight that the loss does not depend on has the gradient 0, as under JAX.
            gradients = tape.gradient(
                loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            optimizer.apply(gradients, variables)
            return {"loss": loss, **metrics}

        self._step = step

    def __call__(self, *arrays: Any) -> Mapping[str, Tensor]:
        return self._step(*map(tf.convert_to_tensor, arrays))  # type: ignore[no-any-return]

    def sync(self) -> None:
        """The variables are always up to date."""


def train_step(model: Any, optimizer: Any, objective: Callable[..., Any]) -> TrainStep:
    return TrainStep(model, optimizer, objective)


def gradients(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    @tf.function(jit_compile=_jit_compile())  # type: ignore[untyped-decorator]
    def compiled(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = function(*arrays)
        found = tape.gradient(loss, [v.value for v in model.trainable_variables])
        # An embedding's gradient names the rows it has.
        return loss, [None if g is None else tf.convert_to_tensor(g) for g in found]

    return lambda *arrays: compiled(*map(tf.convert_to_tensor, arrays))


def inference_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = tf.function(function, jit_compile=_jit_compile())
    return lambda *arrays: compiled(*map(tf.convert_to_tensor, arrays))


sampling_function = inference_function


def compiled_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    by_xla = tf.function(function, jit_compile=True)
    return lambda *arrays: by_xla(*map(tf.convert_to_tensor, arrays))


def decode_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A step is many small operations, which XLA joins: on a CPU, too, that takes half the time.

    Looking up what was compiled takes `tf.function` a fifth of it: it asks for more than shapes.
    """

    def without_caches(arrays: Any, caches: Any) -> Any:
        return function(arrays, caches)[0]

    compiled = tf.function(without_caches, jit_compile=True)
    steps: dict[Any, Any] = {}

    def run(arrays: Any, caches: Any) -> tuple[Any, Any]:
        # The caches are of a kind.
        shapes = tuple(leaf.shape for leaf in tf.nest.flatten((arrays, caches[:1])))
        if shapes not in steps:
            steps[shapes] = compiled.get_concrete_function(
                tf.nest.map_structure(tf.convert_to_tensor, arrays), caches
            )
        return steps[shapes](arrays, caches), caches

    return run


def cache(shape: tuple[int, ...], dtype: str) -> Tensor:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)


def write(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    # XLA compiles the assignment to a slice anew for each `start`.
    after = keras.ops.slice_update(tf.convert_to_tensor(cache), (0, 0, start, 0), new)
    cache.assign(after)
    return after


def reorder(caches: Any, rows: Any) -> Any:
    for cache in tf.nest.flatten(caches):
        cache.assign(tf.gather(cache, rows))
    return caches


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def check_token_ids(ids: Tensor, size: int, layer: str) -> Tensor:
    low, high = tf.reduce_min(ids), tf.reduce_max(ids)
    if tf.executing_eagerly():
        if tf.size(ids):
            common.check_range(low, high, size, layer)
        return ids
    good = tf.logical_or(tf.equal(tf.size(ids), 0), tf.logical_and(low >= 0, high < size))
    text = f"Ids must lie in [0, {size}), the vocabulary of the layer {layer}. Received: id"
    with tf.control_dependencies([tf.debugging.Assert(good, [text, tf.where(low < 0, low, high)])]):
        return tf.identity(ids)


# ------------------------------------------------------------------ recurrent layers
# What does not depend on the step before is left out of the loop: W·x for all steps at once, and
# the gradient of U, which is one product over all steps.


def recurrent(
    cell: str,
    gates: Callable[..., Any],
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    # A custom gradient takes tensors only, not variables.
    kernel, recurrent_kernel, bias = map(tf.convert_to_tensor, weights)
    input_bias, recurrent_bias = tf.unstack(bias) if len(bias.shape) == 2 else (bias, 0 * bias)
    projected = tf.transpose(tf.tensordot(inputs, kernel, 1) + input_bias, [1, 0, 2])  # (T, B, k)
    counts = () if mask is None else (tf.transpose(mask)[..., None],)  # (T, B, 1)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def loop(projected: Tensor, kernel: Tensor, bias: Tensor, *states: Tensor) -> Any:
        def forward(carried: Any, at: Any) -> Any:
            before = carried[:-1]
            h = tf.matmul(before[0], kernel) + bias
            x, *counted = at
            after = gates(x, h, *before)
            for c in counted:
                after = [tf.where(c, new, old) for new, old in zip(after, before)]
            return (*after, h)

        *after, h = tf.scan(forward, (projected, *counts), (*states, projected[0]))

        def gradient(output_gradients: Tensor, *last_gradients: Tensor) -> Any:
            before = [tf.concat([s[None], a[:-1]], 0) for s, a in zip(states, after)]

            def backward(carried: Any, at: Any) -> Any:
                x, h, output_gradient, *rest = at
                before, counted = rest[: len(states)], rest[len(states) :]
                coming = [carried[0] + output_gradient, *carried[1 : len(states)]]
                passed = [tf.zeros_like(g) for g in coming]
                for c in counted:
                    passed = [tf.where(c, tf.zeros_like(g), g) for g in coming]
                    coming = [tf.where(c, g, tf.zeros_like(g)) for g in coming]
                with tf.GradientTape() as tape:
                    tape.watch([x, h, *before])
                    outputs = gates(x, h, *before)
                x_gradient, h_gradient, *going = tape.gradient(
                    outputs, [x, h, *before], coming, tf.UnconnectedGradients.ZERO
                )
                going[0] += tf.matmul(h_gradient, kernel, transpose_b=True)
                return (*(g + p for g, p in zip(going, passed)), x_gradient, h_gradient)

            blank = tf.zeros_like(projected[0])
            *state_gradients, x_gradient, h_gradient = tf.scan(
                backward,
                (projected, h, output_gradients, *before, *counts),
                (*last_gradients, blank, blank),
                reverse=True,
            )
            kernel_gradient = tf.tensordot(before[0], h_gradient, [[0, 1], [0, 1]])
            bias_gradient = tf.reduce_sum(h_gradient, [0, 1])
            return x_gradient, kernel_gradient, bias_gradient, *(g[0] for g in state_gradients)

        return (after[0], *(a[-1] for a in after)), gradient

    outputs, *last = loop(projected, recurrent_kernel, recurrent_bias, *states)
    return tf.transpose(outputs, [1, 0, 2]), last


def adam_update(
    optimizer: Any,
    gradient: Tensor,
    variable: Any,
    momentum: Any,
    velocity: Any,
    learning_rate: Tensor,
) -> None:
    # The kernel updates one copy of a variable, where a strategy holds several; and in 16 bits it
    # would round beta_2 to 1.
    if tf.distribute.has_strategy() or gradient.dtype.size < 4:
        common.adam_update(optimizer, gradient, variable, momentum, velocity, learning_rate)
        return
    # Keras hands its optimizers TensorFlow's variable, not its own wrapper.
    weight = variable if isinstance(variable, tf.Variable) else variable.value
    dtype = weight.dtype
    alpha, epsilon = common.corrected(optimizer, learning_rate, dtype.name)
    # The kernel forms 1 - beta in the variable's precision, 1e-5 off for 0.999 in float32, and its
    # moments are off by as much.
    numbers = dtype.as_numpy_dtype
    off_1 = (1 - numbers(optimizer.beta_1)) / (1 - optimizer.beta_1)
    off_2 = math.sqrt((1 - numbers(optimizer.beta_2)) / (1 - optimizer.beta_2))
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=momentum.value.handle,
        v=velocity.value.handle,
        beta1_power=tf.zeros((), dtype),  # the bias is corrected above
        beta2_power=tf.zeros((), dtype),
        lr=alpha * (off_2 / off_1),
        beta1=tf.constant(optimizer.beta_1, dtype),
        beta2=tf.constant(optimizer.beta_2, dtype),
        epsilon=epsilon * off_2,
        grad=tf.cast(gradient, dtype) + optimizer.l2 * weight,
        use_locking=False,
    )
