"""TensorFlow backend: functions as graphs, XLA on GPUs only, the fused Adam kernel."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import math_ops

from zoo.backends import common
from zoo.backends.common import ForeachMixin as ForeachMixin
from zoo.backends.common import assigning_alone as assigning_alone
from zoo.backends.common import cached_attention as cached_attention
from zoo.backends.common import conv2d as conv2d
from zoo.backends.common import dense as dense
from zoo.backends.common import group_norm as group_norm
from zoo.backends.common import host_integer as host_integer
from zoo.backends.common import is_sharding as is_sharding
from zoo.backends.common import keep_malloc_pages as keep_malloc_pages
from zoo.backends.common import look_up as look_up
from zoo.backends.common import max_pool2d as max_pool2d
from zoo.backends.common import preprocessing_function as preprocessing_function
from zoo.backends.common import shards_among_workers as shards_among_workers
from zoo.backends.common import update_loss_metric
from zoo.backends.exporting import is_exporting
from zoo.backends.tensorflow_accumulation import accumulated_step
from zoo.backends.tensorflow_cluster import WorkerTrainer
from zoo.backends.tensorflow_cluster import as_dataset as as_dataset
from zoo.backends.tensorflow_cluster import broadcast as broadcast
from zoo.backends.tensorflow_cluster import broadcast_variables as broadcast_variables
from zoo.backends.tensorflow_cluster import join_cluster as join_cluster
from zoo.backends.tensorflow_cluster import leave_cluster as leave_cluster
from zoo.backends.tensorflow_generation import decode_loop as decode_loop
from zoo.backends.tensorflow_loop import recurrent_loop

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


@contextmanager
def float64() -> Iterator[None]:
    """Context manager of `common.float64`; keeps numbers of Python exact, such as 0.9.

    TensorFlow rounds such numbers in optimizers, GELU, leaky ReLU and constants to float32 first.
    """
    cast, convert = tf.cast, tf.convert_to_tensor

    def exact_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        if isinstance(x, float):
            return tf.constant(x, dtype, name=name)
        return cast(x, dtype, name)

    def exact_convert(value: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None and isinstance(value, float | list | tuple):
            kinds = {type(number) for number in tf.nest.flatten(value)}
            dtype = tf.float64 if float in kinds and kinds <= {float, int} else None
        return convert(value, dtype, *args, **kwargs)

    def exact_leaky_relu(features: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        scaled = tf.constant(alpha, features.dtype) * features
        return tf.where(features > 0, features, scaled, name=name)

    with (
        common.float64(),
        common.replaced(tf, cast=exact_cast, convert_to_tensor=exact_convert),
        common.replaced(math_ops, cast=exact_cast),
        common.replaced(tf.nn, leaky_relu=exact_leaky_relu),
    ):
        yield


def _jit_compile() -> bool:
    """Whether functions are compiled with XLA, which makes training three times slower on a CPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def create_variables(trainer: Any, batch: Any) -> None:
    # A step that creates variables while it is traced would be traced a second time.
    with trainer.distribute_strategy.scope():
        common.create_variables(trainer, batch)


def sharded_model(devices: int) -> AbstractContextManager[None]:
    """Refuses to divide a model's weights."""
    raise ValueError(
        "`devices` can divide a model's weights on JAX and PyTorch. Received: the backend "
        "tensorflow. Use `KERAS_BACKEND=jax` or `torch`, or let each device have all weights with "
        "`--devices`"
    )


class TrainerMixin(WorkerTrainer):
    """Base class of `zoo.Trainer`: a weight that the loss does not depend on has the gradient 0."""

    def train_step(self: Any, data: Any) -> Any:
        if self.gradient_accumulation > 1:
            return accumulated_step(self, data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predictions = self(x, training=True)
            loss = self.compute_loss(x, y, predictions, sample_weight, training=True)
            update_loss_metric(self, loss, tf.shape(tf.nest.flatten(x)[0])[0])
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        weights = [variable.value for variable in variables]
        gradients = tape.gradient(
            scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        self.optimizer.apply(gradients, variables)
        return self.compute_metrics(x, y, predictions, sample_weight)


def gradients(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    @tf.function(jit_compile=_jit_compile())  # type: ignore[untyped-decorator]
    def compiled(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = function(*arrays)
        weight_gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        # The gradient of an embedding is sparse, a `tf.IndexedSlices`.
        return loss, [None if g is None else tf.convert_to_tensor(g) for g in weight_gradients]

    return lambda *arrays: compiled(*map(tf.convert_to_tensor, arrays))


def inference_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = tf.function(function, jit_compile=_jit_compile())
    return lambda *arrays: compiled(*map(tf.convert_to_tensor, arrays))


sampling_function = inference_function


def compiled_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = tf.function(function, jit_compile=True)
    return lambda *arrays: compiled(*map(tf.convert_to_tensor, arrays))


def decode_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles the step with XLA, which halves its time, on a CPU as well.

    A step consists of many small operations, which XLA fuses. Compiled functions are looked up by
    shapes alone: the lookup of `tf.function` takes a fifth of a step.
    """

    def outputs_only(arrays: Any, caches: Any) -> Any:
        return function(arrays, caches)[0]

    compiled = tf.function(outputs_only, jit_compile=True)
    concrete_functions: dict[Any, Any] = {}

    def decode(arrays: Any, caches: Any) -> tuple[Any, Any]:
        # The caches of all blocks have the same shapes.
        shapes = tuple(leaf.shape for leaf in tf.nest.flatten((arrays, caches[:1])))
        if shapes not in concrete_functions:
            concrete_functions[shapes] = compiled.get_concrete_function(
                tf.nest.map_structure(tf.convert_to_tensor, arrays), caches
            )
        return concrete_functions[shapes](arrays, caches), caches

    return decode


def create_cache(shape: tuple[int, ...], dtype: str) -> Tensor:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)


def update_cache(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    # XLA would compile an assignment to a slice again for each `start`.
    updated = keras.ops.slice_update(tf.convert_to_tensor(cache), (0, 0, start, 0), new)
    cache.assign(updated)
    return updated


def reorder_caches(caches: Any, rows: Any) -> Any:
    for cache in tf.nest.flatten(caches):
        cache.assign(tf.gather(cache, rows))
    return caches


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    if causal and is_exporting():
        # Keras indexes its causal mask with new axes, for which LiteRT has no operation.
        rows, columns = (tf.range(tf.shape(x)[1]) for x in (query, keys))
        allowed = tf.reshape(rows, [1, 1, -1, 1]) >= tf.reshape(columns, [1, 1, 1, -1])
        attention_mask, causal = allowed, False
    return common.attention(query, keys, values, attention_mask, causal, scale)


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def check_range(integers: Tensor, size: int, rule: str) -> Tensor:
    if is_exporting():
        return integers
    low, high = tf.reduce_min(integers), tf.reduce_max(integers)
    if tf.executing_eagerly():
        if tf.size(integers):
            common.check_limits(low, high, size, rule)
        return integers
    valid = tf.logical_or(tf.equal(tf.size(integers), 0), tf.logical_and(low >= 0, high < size))
    with tf.control_dependencies(
        [tf.debugging.Assert(valid, [rule, tf.where(low < 0, low, high)])]
    ):
        return tf.identity(integers)


# ------------------------------------------------------------------ recurrent layers
# Computations that do not depend on the previous step are moved out of the loop: the products W·x
# of all steps, and the gradient of U, which is one product over all steps.


def recurrent(
    cell: str,
    cell_step: Callable[..., Any],
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Sequence[Tensor]]:
    # `tf.custom_gradient` accepts tensors, but no variables.
    kernel, recurrent_kernel, bias = map(tf.convert_to_tensor, weights)
    input_bias, recurrent_bias = tf.unstack(bias) if len(bias.shape) == 2 else (bias, 0 * bias)
    projected = tf.transpose(tf.tensordot(inputs, kernel, 1) + input_bias, [1, 0, 2])  # (T, B, k)
    masks = () if mask is None else (tf.expand_dims(tf.transpose(mask), -1),)  # (T, B, 1)
    if is_exporting():
        return recurrent_loop(cell_step, projected, states, recurrent_kernel, recurrent_bias, masks)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def loop(projected: Tensor, kernel: Tensor, bias: Tensor, *states: Tensor) -> Any:
        def forward_step(carry: Any, step_inputs: Any) -> Any:
            old_states = carry[:-1]
            h_part = tf.matmul(old_states[0], kernel) + bias
            x, *step_masks = step_inputs
            new_states = cell_step(x, h_part, *old_states)
            for m in step_masks:
                new_states = [tf.where(m, new, old) for new, old in zip(new_states, old_states)]
            return (*new_states, h_part)

        *all_states, h_parts = tf.scan(forward_step, (projected, *masks), (*states, projected[0]))

        def gradient(output_gradients: Tensor, *final_gradients: Tensor) -> Any:
            previous = [tf.concat([s[None], a[:-1]], 0) for s, a in zip(states, all_states)]

            def backward_step(carry: Any, step_inputs: Any) -> Any:
                x, h_part, output_gradient, *rest = step_inputs
                old_states, step_masks = rest[: len(states)], rest[len(states) :]
                new_gradients = [carry[0] + output_gradient, *carry[1 : len(states)]]
                skipped = [tf.zeros_like(g) for g in new_gradients]
                for m in step_masks:
                    skipped = [tf.where(m, tf.zeros_like(g), g) for g in new_gradients]
                    new_gradients = [tf.where(m, g, tf.zeros_like(g)) for g in new_gradients]
                arguments = [x, h_part, *old_states]
                with tf.GradientTape() as tape:
                    tape.watch(arguments)
                    new_states = cell_step(*arguments)
                x_gradient, h_gradient, *old_gradients = tape.gradient(
                    new_states, arguments, new_gradients, tf.UnconnectedGradients.ZERO
                )
                old_gradients[0] += tf.matmul(h_gradient, kernel, transpose_b=True)
                old_gradients = [g + s for g, s in zip(old_gradients, skipped)]
                return (*old_gradients, x_gradient, h_gradient)

            zeros = tf.zeros_like(projected[0])
            *state_gradients, x_gradient, h_gradient = tf.scan(
                backward_step,
                (projected, h_parts, output_gradients, *previous, *masks),
                (*final_gradients, zeros, zeros),
                reverse=True,
            )
            kernel_gradient = tf.tensordot(previous[0], h_gradient, [[0, 1], [0, 1]])
            bias_gradient = tf.reduce_sum(h_gradient, [0, 1])
            return x_gradient, kernel_gradient, bias_gradient, *(g[0] for g in state_gradients)

        return (all_states[0], *(a[-1] for a in all_states)), gradient

    outputs, *final_states = loop(projected, recurrent_kernel, recurrent_bias, *states)
    return tf.transpose(outputs, [1, 0, 2]), final_states


def adam_update(
    optimizer: Any,
    gradient: Tensor,
    variable: Any,
    momentum: Any,
    velocity: Any,
    learning_rate: Tensor,
) -> None:
    # The kernel would update a single copy of a variable of which a strategy holds several. In 16
    # bits the kernel would round beta_2 to 1.
    if tf.distribute.has_strategy() or gradient.dtype.size < 4:
        common.adam_update(optimizer, gradient, variable, momentum, velocity, learning_rate)
        return
    # Keras passes the TensorFlow variable to its optimizers, not its own wrapper.
    weight = variable if isinstance(variable, tf.Variable) else variable.value
    dtype = weight.dtype
    alpha, epsilon = common.bias_corrected_step(optimizer, learning_rate, dtype.name)
    # The kernel computes 1 - beta in the variable's precision: for 0.999 in float32 the relative
    # error is 1e-5. The moments have the same relative error, which these ratios correct.
    rounded = dtype.as_numpy_dtype
    ratio_1 = (1 - rounded(optimizer.beta_1)) / (1 - optimizer.beta_1)
    ratio_2 = math.sqrt((1 - rounded(optimizer.beta_2)) / (1 - optimizer.beta_2))
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=momentum.value.handle,
        v=velocity.value.handle,
        beta1_power=tf.zeros((), dtype),  # `alpha` and `epsilon` hold the bias correction
        beta2_power=tf.zeros((), dtype),
        lr=alpha * (ratio_2 / ratio_1),
        beta1=tf.constant(optimizer.beta_1, dtype),
        beta2=tf.constant(optimizer.beta_2, dtype),
        epsilon=epsilon * ratio_2,
        grad=tf.cast(gradient, dtype) + optimizer.l2 * weight,
        use_locking=False,
    )
