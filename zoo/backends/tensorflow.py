"""TensorFlow: steps as graphs, XLA on an accelerator only, the fused Adam kernel."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import math_ops

from zoo.backends import common
from zoo.backends.common import conv2d as conv2d
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


def use_full_precision() -> None:
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


def forward(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = tf.function(function, jit_compile=_jit_compile())
    return lambda *arrays: compiled(*map(tf.convert_to_tensor, arrays))


def compiled(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    by_xla = tf.function(function, jit_compile=True)
    return lambda *arrays: by_xla(*map(tf.convert_to_tensor, arrays))


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
