"""The only folder that may import a backend: fast paths and switches.

`backend` is the module for the backend that Keras runs on. What a backend has to supply, and what
the rest of the package may rely on, is the protocol `Backend`.
"""

import importlib
import importlib.util
import os
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np

NAMES = ("tensorflow", "torch", "jax")

Tensor = Any
Objective = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
Gates = Callable[..., tuple[Tensor, ...]]


class TrainStep(Protocol):
    """One optimizer step as one call, compiled where that is faster."""

    def __call__(self, *arrays: Any) -> Mapping[str, Tensor]:
        """Takes one step; returns the objective's metrics and its `loss`, on the device."""
        ...

    def sync(self) -> None:
        """Brings the model's and the optimizer's variables up to date before they are read."""
        ...


class Backend(Protocol):
    """What each module of this folder supplies."""

    def version(self) -> str:
        """The version of the library, such as "2.13.0"."""
        ...

    def device(self) -> str:
        """What computes, "cpu" or the GPU's name."""
        ...

    def on_device(self, array: Any) -> Tensor:
        """The array as a tensor that stays on the device."""
        ...

    def keep_malloc_pages(self) -> None:
        """Keeps large freed blocks for the next step, as `zoo.backends.common` explains."""
        ...

    def make_deterministic(self) -> None:
        """Asks the library for the same bits each time a run is repeated on one machine."""
        ...

    def disable_tf32(self) -> None:
        """Turns TF32 off, which GPUs use for float32 products by default; for comparisons."""
        ...

    def keep_float64(self) -> None:
        """Stops Keras from dropping digits of float64 numbers; for comparisons."""
        ...

    def float64(self) -> AbstractContextManager[None]:
        """Within it Keras makes float64 numbers by default and results of them stay float64.

        For models that are built and used there. Constants of Keras' own that pass through float32
        on TensorFlow stay as they are: `keep_float64`.
        """
        ...

    def train_step(self, model: Any, optimizer: Any, objective: Objective) -> TrainStep:
        """Makes the step that lowers `objective(*arrays) -> (loss, metrics)`."""
        ...

    def gradients(
        self, model: Any, function: Callable[..., Tensor]
    ) -> Callable[..., tuple[Tensor, list[Tensor | None]]]:
        """Makes `function(*arrays) -> loss` give the loss and its gradient by each weight.

        In the order of `model.trainable_variables`; None or zeros where the loss does not depend on
        a weight. The model's other variables are not to be relied on afterwards.
        """
        ...

    def inference_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Makes `function(*arrays)`, which calls `model`, run without gradients and compiled."""
        ...

    def sampling_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `forward`, for many calls with arrays of few shapes.

        What the function does must not depend on their numbers; ids are not checked.
        """
        ...

    def compiled_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same by the library's compiler, also where that is not faster; for comparisons."""
        ...

    def decode_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `forward`, of `function(arrays, caches) -> (outputs, caches)`.

        The caches are written to where they are; those that were given are not to be used again.
        """
        ...

    def cache(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Zeros that `write` can write to within a `decoder`."""
        ...

    def write(self, cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
        """The cache, (B, heads, capacity, head_dim), with `new`, of T rows, from `start` on."""
        ...

    def reorder(self, caches: Any, rows: np.ndarray) -> Any:
        """The caches, nested as `decoder` takes them, of these rows in place of those there are."""
        ...

    def dense(self, layer: Any, inputs: Tensor) -> Tensor:
        """What a `keras.layers.Dense` computes: product, bias, activation."""
        ...

    def conv2d(self, layer: Any, inputs: Tensor) -> Tensor:
        """What a `zoo.layers.core.Conv2D` computes: convolution, bias, activation."""
        ...

    def max_pool2d(self, layer: Any, inputs: Tensor) -> Tensor:
        """What a `zoo.layers.core.MaxPooling2D` computes."""
        ...

    def group_norm(self, layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
        """What a `zoo.layers.core.GroupNormalization` computes before its activation."""
        ...

    def attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        """softmax(scale·q·kᵀ + mask)·v, by a fused kernel where there is one.

        Args:
            query: (B, T, heads, head_dim).
            keys: (B, S, kv_heads, head_dim); kv_heads divides heads.
            values: likewise.
            attention_mask: bool, broadcast to (B, heads, T, S); each query is to see a key at least.
            causal: whether query t sees no key beyond t.
            scale: of the scores.

        Returns:
            (B, T, heads, head_dim).
        """
        ...

    def cached_attention(
        self, query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor, scale: float
    ) -> Tensor:
        """The same with keys and values as caches hold them, (B, kv_heads, S, head_dim)."""
        ...

    def cross_entropy(self, labels: Tensor, logits: Tensor) -> Tensor:
        """-log softmax(logits) at the label: (...) and (..., classes) to (...)."""
        ...

    def check_token_ids(self, ids: Tensor, size: int, layer: str) -> Tensor:
        """The ids, if all lie in [0, size); else an error that names the layer."""
        ...

    def recurrent(
        self,
        cell: str,
        gates: Gates,
        inputs: Tensor,
        states: Sequence[Tensor],
        weights: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Runs a recurrent layer over time.

        Args:
            cell: "simple_rnn", "lstm" or "gru", as `gates` defines it.
            gates: one step: (W·x + b, U·h + b, *states) to the new states, h first.
            inputs: (B, T, features).
            states: to begin with, each (B, units).
            weights: kernel W (features, k), recurrent kernel U (units, k), bias (k,), or (2, k) if
                U·h has one, too.
            mask: (B, T) bool; where it is false a step leaves the states as they are.

        Returns:
            h at every step, (B, T, units), and the last states.
        """
        ...

    @property
    def ForeachMixin(self) -> type:
        """A base class of optimizers: what is done for all weights in one call, if that pays."""
        ...

    def adam_update(
        self,
        optimizer: Any,
        gradient: Tensor,
        variable: Any,
        momentum: Any,
        velocity: Any,
        learning_rate: Tensor,
    ) -> None:
        """Updates one variable and its two moments as `zoo.training.optimizers.Adam` defines it."""
        ...


def installed() -> list[str]:
    """The backends that can be imported here."""
    return [name for name in NAMES if importlib.util.find_spec(name)]


def _check_choice(name: str) -> None:
    """Stops early, and in words, where Keras would fail deep inside an import."""
    if name not in NAMES:
        raise ValueError(
            f"`KERAS_BACKEND` must be one of {', '.join(NAMES)}. Received: KERAS_BACKEND={name}. "
            f"Installed here: {', '.join(installed()) or 'none'}"
        )
    if name not in installed():
        raise ImportError(
            f"The backend {name} is not installed. Installed here: "
            f"{', '.join(installed()) or 'none'}. Install it with "
            f'`pip install "keras-zoo[{name}]"`, or set `KERAS_BACKEND` to one that is installed'
        )


if os.environ.get("KERAS_BACKEND"):
    _check_choice(os.environ["KERAS_BACKEND"])

try:
    import keras
except ModuleNotFoundError as error:  # Keras' own configuration chose what is not there
    if error.name in NAMES:
        _check_choice(str(error.name))
    raise

name: str = keras.config.backend()
_check_choice(name)
backend = cast(Backend, importlib.import_module(f"zoo.backends.{name}"))


def gradients(
    model: Any, x: Any, y: Any, loss: Callable[[Tensor, Tensor], Tensor], training: bool = True
) -> dict[str, np.ndarray]:
    """Every parameter's gradient, by backpropagation, on whatever backend Keras runs.

    Args:
        model: a built Keras model with one input.
        x: a batch of inputs.
        y: the targets.
        loss: a function of (targets, outputs) such as those of `keras.losses`; the mean of what it
            gives is taken, and the model's own losses (regularizers) are added.
        training: whether dropout and the like are at work.

    Returns:
        For the path of each trainable variable, such as "hidden1/kernel", an array of its shape;
        zeros where the loss does not depend on it.
    """

    def objective(x: Tensor, y: Tensor) -> Tensor:
        return keras.ops.mean(loss(y, model(x, training=training))) + sum(model.losses)

    _, found = loss_and_gradients(model, objective, x, y)
    return found


def loss_and_gradients(
    model: Any, objective: Callable[..., Tensor], *arrays: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same for any `objective(*arrays)` that calls the model and gives a number.

    Returns:
        The number, and its gradient by the path of each trainable variable.
    """
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    loss, found = backend.gradients(model, objective)(*tensors)
    named: dict[str, np.ndarray] = {}
    for variable, gradient in zip(model.trainable_variables, found):
        path = variable.path
        while path in named:  # layers of a model that is no graph may share a name
            path += "'"
        if gradient is None:
            gradient = keras.ops.zeros(variable.shape, variable.dtype)
        named[path] = keras.ops.convert_to_numpy(gradient)
    return keras.ops.convert_to_numpy(loss), named


def input_gradients(
    model: Any, x: np.ndarray, y: Any, loss: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    """The gradient of each example's own loss by its inputs, in inference mode.

    Args:
        model: a built Keras model with one input.
        x: a batch of floating-point inputs.
        y: the targets.
        loss: a function of (targets, outputs) that gives a loss for each example.

    Returns:
        An array of the shape of `x`.
    """
    # Nothing is added to the inputs, and what is added is the one weight that is asked about.
    nothing = keras.Variable(np.zeros_like(x), name="nothing")
    asked = types.SimpleNamespace(
        trainable_variables=[nothing], non_trainable_variables=model.variables
    )

    def objective(x: Tensor, y: Tensor) -> Tensor:
        return keras.ops.sum(loss(y, model(x + nothing, training=False)))

    _, found = loss_and_gradients(asked, objective, x, y)
    return found[nothing.path]
