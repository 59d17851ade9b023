"""Backend modules: fast paths and switches. No other folder may import a backend.

`backend` is the module of the backend on which Keras runs. The protocol `Backend` defines what each
module provides and what the rest of the package may rely on.
"""

import importlib
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np

import zoo_command
from zoo.backends.selection import NAMES as NAMES
from zoo.backends.selection import check_backend, hidden_startup_lines, select, selected
from zoo.backends.selection import installed as installed

Tensor = Any
CellStep = Callable[..., tuple[Tensor, ...]]


class Backend(Protocol):
    """Interface of the backend modules in this folder."""

    def version(self) -> str:
        """Returns the version of the library, such as "2.13.0"."""
        ...

    def device(self) -> str:
        """Returns the compute device: "cpu" or the name of the GPU."""
        ...

    def on_device(self, array: Any) -> Tensor:
        """Converts an array to a tensor on the device."""
        ...

    def keep_malloc_pages(self) -> None:
        """Makes the C library keep large freed blocks; see `zoo.backends.common`."""
        ...

    def make_deterministic(self) -> None:
        """Enables deterministic operations: repeated runs on one machine give the same bits."""
        ...

    def disable_tf32(self) -> None:
        """Disables TF32, the default for float32 products on GPUs. For comparisons."""
        ...

    def float64(self) -> AbstractContextManager[None]:
        """Context manager with float64 as Keras' default; float64 results keep their precision.

        For models that are built and called within the context. Functions of the backend that
        round float64 to float32 are replaced meanwhile.
        """
        ...

    def gradients(
        self, model: Any, function: Callable[..., Tensor]
    ) -> Callable[..., tuple[Tensor, list[Tensor | None]]]:
        """Transforms `function(*arrays) -> loss` into a function of the loss and its gradients.

        The gradients are in the order of `model.trainable_variables`. A gradient is None or zero if
        the loss does not depend on the weight. Whether a call updates the model's non-trainable
        variables depends on the backend.
        """
        ...

    def inference_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `function(*arrays)`, which calls `model`, for inference.

        The wrapper computes no gradients and is compiled on TensorFlow and JAX.
        """
        ...

    def sampling_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `function(*arrays)`, which calls `model`, for many calls with few shapes.

        The wrapper computes no gradients. The operations of `function` must not depend on the
        values of its arrays. Token ids are not checked.
        """
        ...

    def compiled_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles `function(*arrays)`, which calls `model`, with the library's compiler.

        For comparisons: the compiler is used even where compiled code is not faster. The wrapper
        computes no gradients.
        """
        ...

    def decode_function(self, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a step of incremental decoding, `function(arrays, caches) -> (outputs, caches)`.

        The wrapper computes no gradients and updates the caches in place. Caches that were passed
        in must not be used again; use the returned ones.
        """
        ...

    decode_loop: Callable[..., Callable[..., Any]] | None
    """Compiles a loop of choosing and decoding tokens: see `zoo.backends.tensorflow_generation`."""

    def create_cache(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Creates a cache of zeros that `update_cache` may update within a `decode_function`."""
        ...

    def update_cache(self, cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
        """Writes the keys or values of new tokens to a cache.

        Args:
            cache: Cached keys or values, (B, heads, capacity, head_dim).
            new: Keys or values of T new tokens, (B, heads, T, head_dim).
            start: Position of the first new token in the cache, an integer scalar.

        Returns:
            The updated cache.
        """
        ...

    def reorder_caches(self, caches: Any, rows: np.ndarray) -> Any:
        """Selects rows of the batch in every cache, as beam search does.

        Args:
            caches: Caches, nested as `decode_function` takes them.
            rows: Indices of the rows to select, (B,).

        Returns:
            The caches of the selected rows.
        """
        ...

    def dense(self, layer: Any, inputs: Tensor) -> Tensor:
        """Computes a `keras.layers.Dense`: product, bias, activation."""
        ...

    def conv2d(self, layer: Any, inputs: Tensor) -> Tensor:
        """Computes a `zoo.layers.core.Conv2D`: convolution, bias, activation."""
        ...

    def max_pool2d(self, layer: Any, inputs: Tensor) -> Tensor:
        """Computes a `zoo.layers.core.MaxPooling2D`."""
        ...

    def group_norm(self, layer: Any, inputs: Tensor, scale_shift: Tensor | None) -> Tensor:
        """Computes a `zoo.layers.core.GroupNormalization` without its activation."""
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
        """Scaled dot-product attention, softmax(scale·q·kᵀ + mask)·v, fused where possible.

        Args:
            query: Queries, (B, T, heads, head_dim).
            keys: Keys, (B, S, kv_heads, head_dim), where kv_heads divides heads.
            values: Values, (B, S, kv_heads, head_dim).
            attention_mask: Boolean mask that broadcasts to (B, heads, T, S), true where a query
                attends to a key. Each query must attend to at least one key.
            causal: Whether query t attends to no key beyond t; not together with a mask.
            scale: Factor of the dot products.

        Returns:
            Outputs of the heads, (B, T, heads, head_dim).
        """
        ...

    def cached_attention(
        self, query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor, scale: float
    ) -> Tensor:
        """Scaled dot-product attention to cached keys and values, (B, kv_heads, S, head_dim)."""
        ...

    def cross_entropy(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy of integer labels (...) and logits (..., classes), of shape (...)."""
        ...

    def check_range(self, integers: Tensor, size: int, rule: str) -> Tensor:
        """Returns the integers, or raises an error if one is not in [0, size).

        The error's text is the rule with this integer behind it. The integers may have a floating
        dtype, as Keras' losses convert labels to; then NaN is refused.
        """
        ...

    def look_up(self, table: Tensor, indices: Tensor) -> Tensor:
        """Rows of a table at indices that must lie in [0, rows), which nothing checks."""
        ...

    def recurrent(
        self,
        cell: str,
        cell_step: CellStep,
        inputs: Tensor,
        states: Sequence[Tensor],
        weights: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Computes a recurrent layer over all time steps.

        Args:
            cell: Kind of the cell that `cell_step` defines: "simple_rnn", "lstm" or "gru".
            cell_step: Function of one time step, from (W·x + b, U·h + b, *states) to the new
                states, h first.
            inputs: Input sequences, (B, T, features).
            states: Initial states, each (B, units).
            weights: Kernel W (features, k), recurrent kernel U (units, k) and bias. The bias is
                (k,), or (2, k) if U·h has a bias of its own.
            mask: Boolean mask, (B, T). A step where the mask is false does not change the states.

        Returns:
            The hidden states h of all steps, (B, T, units), and the final states.
        """
        ...

    def host_integer(self, number: Tensor) -> Any:
        """Integer of a scalar tensor if reading needs no synchronization, else the tensor."""
        ...

    def preprocessing_function(
        self, layer: Any, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Makes a layer's function of many small operations fast within an eager training step.

        Args:
            layer: Layer whose weights the function may use.
            function: Function of tensors, without gradients. Its operations must not depend on the
                tensors' values.
        """
        ...

    @property
    def TrainerMixin(self) -> type:
        """Base class of `zoo.Trainer`, with a training step where Keras' own is not enough."""
        ...

    def create_variables(self, trainer: Any, batch: Any) -> None:
        """Creates all variables that the training of a `zoo.Trainer` on such batches needs."""
        ...

    def as_dataset(self, trainer: Any, batches: Any, class_weight: Any = None) -> Any:
        """The form of `zoo.training.Batches` that `fit`, `evaluate` and `predict` read.

        `class_weight` are the weights of the classes, as for `keras.Model.fit`.
        """
        ...

    def join_cluster(self, addresses: Sequence[str], rank: int, local_rank: int) -> None:
        """Makes this process a worker of a cluster, before the backend computes anything.

        From then on `as_dataset` reads this worker's rows of each batch, which may be none. Losses,
        gradients, metrics and predictions are those of the whole batch, on every worker. Raises
        ConnectionError if the workers do not connect in time.

        Args:
            addresses: An address HOST:PORT of each worker, by rank. Nobody listens there yet.
            rank: Number of this worker.
            local_rank: Number of the device of its machine that this worker uses.
        """
        ...

    def leave_cluster(self, together: bool) -> None:
        """Ends this worker's connections: when all workers do, or at once if one may have died."""
        ...

    def broadcast(self, content: bytes) -> bytes:
        """Returns what worker 0 gives, on every worker, which must all call it.

        Raises ConnectionResetError if another worker has ended, as each step of a cluster does.
        """
        ...

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Assigns the values that worker 0 has to the Keras variables of every worker."""
        ...

    shards_among_workers: bool  # or among the devices of one process

    def sharded_model(self, devices: int) -> AbstractContextManager[None]:
        """Context manager of models with divided weights: `zoo.training.sharded_model`."""
        ...

    def is_sharding(self) -> bool:
        """Whether weights are divided among workers, which must read and assign them together."""
        ...

    def assigning_alone(self) -> AbstractContextManager[None]:
        """Context manager in which worker 0 alone assigns values, before `broadcast_variables`."""
        ...

    @property
    def ForeachMixin(self) -> type:
        """Base class of optimizers that updates all weights in a few calls, where faster."""
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
        """Updates a variable and its two moments by the rule of `zoo.training.optimizers.Adam`."""
        ...


select()

with hidden_startup_lines(), zoo_command.extras_skipped(selected()):
    import keras  # Keras reads the selection when it is imported

name: str = keras.config.backend()
check_backend(name)
backend = cast(Backend, importlib.import_module(f"zoo.backends.{name}"))


def gradients(
    model: Any, x: Any, y: Any, loss: Callable[[Tensor, Tensor], Tensor], training: bool = True
) -> dict[str, np.ndarray]:
    """Gradients of the loss with respect to all parameters, by backpropagation.

    Args:
        model: Built Keras model with one input.
        x: Batch of inputs.
        y: Targets of the batch.
        loss: Function of (targets, outputs), such as those of `keras.losses`. Its values are
            averaged, and the model's own losses (regularizers) are added.
        training: Whether the model is called in training mode, with dropout.

    Returns:
        Gradients by the paths of the trainable variables, such as "hidden1/kernel", each an array
        of the variable's shape. A gradient is zero if the loss does not depend on the variable.
    """

    def mean_loss(x: Tensor, y: Tensor) -> Tensor:
        return keras.ops.mean(loss(y, model(x, training=training))) + sum(model.losses)

    return loss_and_gradients(model, mean_loss, x, y)[1]


def loss_and_gradients(
    model: Any, loss_function: Callable[..., Tensor], *arrays: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Value of a scalar loss and its gradients with respect to all parameters.

    Args:
        model: Built Keras model.
        loss_function: Function of the arrays that calls the model and returns a scalar.
        *arrays: Arguments of `loss_function`.

    Returns:
        The loss, and its gradients by the paths of the trainable variables.
    """
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    loss, weight_gradients = backend.gradients(model, loss_function)(*tensors)
    by_path: dict[str, np.ndarray] = {}
    for variable, gradient in zip(model.trainable_variables, weight_gradients):
        path = variable.path
        while path in by_path:  # layers of a subclassed model may share a name
            path += "'"
        if gradient is None:
            gradient = keras.ops.zeros(variable.shape, variable.dtype)
        by_path[path] = keras.ops.convert_to_numpy(gradient)
    return keras.ops.convert_to_numpy(loss), by_path


def input_gradients(
    model: Any, x: np.ndarray, y: Any, loss: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    """Gradients of each example's loss with respect to its inputs, in inference mode.

    Args:
        model: Built Keras model with one input.
        x: Batch of floating-point inputs.
        y: Targets of the batch.
        loss: Function of (targets, outputs) that returns one loss an example.

    Returns:
        Gradients, an array of the shape of `x`.
    """
    # A zero variable is added to the inputs; its gradient is the gradient with respect to them.
    offset = keras.Variable(np.zeros_like(x), name="input_offset")
    offset_model = types.SimpleNamespace(
        trainable_variables=[offset], non_trainable_variables=model.variables
    )

    def total_loss(x: Tensor, y: Tensor) -> Tensor:
        return keras.ops.sum(loss(y, model(x + offset, training=False)))

    return loss_and_gradients(offset_model, total_loss, x, y)[1][offset.path]
