"""Workers on TensorFlow: `tf.distribute.MultiWorkerMirroredStrategy`, one device for each process.

The variables of each worker are its own, as in a training on one device. The strategy adds
gradients, losses and metrics over the workers, within the compiled step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.backends import cluster_losses, common
from zoo.backends.cluster_parts import (
    Part,
    WorkerBatchesAdapter,
    WorkerFunctions,
    assign_from_first,
    check_local_rank,
    computing,
    is_joined,
    leave_place,
    metric_shares,
    own_part,
    place,
    take_place,
)
from zoo.backends.tensorflow_accumulation import accumulated_means, accumulated_sums

Tensor = Any

_TIMEOUT = 600.0  # seconds of an operation; workers wait while one does work of its own
_PACK = 2**25  # bytes that are added in one operation

_strategy: Any = None  # of the cluster that this process has joined
_compiled_sum: Any = None  # `sum_over_workers`, since the library warns of eager operations


def join_cluster(addresses: Sequence[str], rank: int, local_rank: int) -> None:
    global _strategy, _compiled_sum
    if gpus := tf.config.list_physical_devices("GPU"):
        check_local_rank(local_rank, len(gpus))
        tf.config.set_visible_devices(gpus[local_rank], "GPU")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=rank,
        num_accelerators={"GPU": 1} if gpus else {},
    )
    options = tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=_PACK, timeout_seconds=_TIMEOUT
    )
    with _connected():
        _strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    _compiled_sum = tf.function(sum_over_workers, autograph=False)
    cluster_losses.use_global_divisors(lambda divisor: sum_over_workers([divisor])[0])
    take_place(rank, len(addresses))


def leave_cluster(together: bool) -> None:
    global _strategy, _compiled_sum
    try:
        if together:
            broadcast(b"")  # waits for the others
    finally:
        _strategy = _compiled_sum = None
        cluster_losses.use_own_divisors()
        leave_place()


@contextmanager
def _connected() -> Iterator[None]:
    """Says in words that another worker has ended, which the library reports in many ways."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
    ) as error:
        headings = ("Graph execution error", "Detected at node", "<stack traces", "  ")
        lines = [line for line in str(error.message).splitlines() if line.strip()]
        reason = next((line for line in lines if not line.startswith(headings)), "")[:200]
        raise ConnectionResetError(
            f"The connection to another worker is lost, which may have ended: {reason}"
        ) from error


def sum_over_workers(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Adds tensors over the workers."""

    def add(*tensors: Tensor) -> Any:
        # The strategy asks the tensors for their device, which those of a graph lack.
        own = [tf.identity(tensor) for tensor in tensors]
        return tf.distribute.get_replica_context().all_reduce("SUM", own)

    return list(_strategy.run(add, args=tuple(tensors)))


def gather_rows(outputs: Any, part: Part) -> Any:
    """The rows of all workers, in the order of the batch; nested outputs of one part each."""
    with _connected():
        return keras.tree.map_structure(
            lambda rows: _strategy.gather(rows[: part.count], axis=0), outputs
        )


def broadcast(content: bytes) -> bytes:
    is_first = place().rank == 0

    def from_first(array: np.ndarray) -> np.ndarray:
        array = array if is_first else np.zeros_like(array)
        with _connected():
            return _compiled_sum([tf.constant(array)])[0].numpy()  # type: ignore[no-any-return]

    length = int(from_first(np.array(len(content), np.int32)))
    if not length:  # the library crashes at sums of no elements
        return b""
    padded = content.ljust(-(-length // 4) * 4, b"\0")[: -(-length // 4) * 4]
    return from_first(np.frombuffer(padded, np.int32)).tobytes()[:length]


def broadcast_variables(variables: Sequence[Any]) -> None:
    assign_from_first(variables, broadcast)


def as_dataset(trainer: Any, batches: Any, class_weight: Any = None) -> Any:
    if is_joined():
        return WorkerBatchesAdapter(batches, class_weight)
    with trainer.distribute_strategy.scope():
        distributed = tf.distribute.has_strategy()
    # Several steps in one call read a `tf.data.Dataset`, which Keras makes of the batches.
    if distributed or trainer.steps_per_execution > 1:
        return batches
    return common.BatchesAdapter(batches, class_weight)


# ------------------------------------------------------------------ steps


class _WorkerStep:
    """A compiled step of a worker.

    Workers must trace their steps equally often, since each trace numbers the operations that add
    over the workers. So a step is traced for any number of rows, in which workers differ.

    Args:
        step: Function of a part.
    """

    def __init__(self, step: Callable[[Part], Any]):
        self._step = step
        self._traces: dict[str, Any] = {}

    def __call__(self, part: Part) -> Any:
        data = tf.nest.map_structure(tf.convert_to_tensor, part.data)
        specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), data)
        if str(specs) not in self._traces:
            number = tf.TensorSpec([], tf.int32)
            self._traces[str(specs)] = tf.function(
                self._traced, autograph=False
            ).get_concrete_function(specs, number, number, number)
        numbers = (tf.constant(n, tf.int32) for n in (part.start, part.count, part.total))
        with _connected():
            return self._traces[str(specs)](data, *numbers)

    def _traced(self, data: Any, start: Tensor, count: Tensor, total: Tensor) -> Any:
        return self._step(Part(data, start, count, total))


def _predict_function(step: _WorkerStep) -> Callable[[Sequence[Any]], Any]:
    def predict(batches: Sequence[Any]) -> Any:
        parts = [own_part(batch) for batch in batches]
        outputs = [gather_rows(step(part), part) for part in parts]
        return keras.tree.map_structure(lambda *rows: tf.concat(rows, 0), *outputs)

    return predict


class WorkerTrainer(WorkerFunctions):
    """Base class of trainers: Keras' own steps or, in a cluster, those of a worker."""

    def _worker_function(self: Any, task: str) -> Callable[..., Any]:
        if task == "predict":
            return _predict_function(_WorkerStep(lambda part: self.predict_step(part.data)))
        steps = {"train": self._train_as_worker, "test": self._test_as_worker}
        return self._function_of_iterator(steps[task])  # type: ignore[no-any-return]

    def _function_of_iterator(self: Any, step: Callable[[Part], Any]) -> Callable[[Any], Any]:
        compiled = _WorkerStep(step)

        def function(iterator: Any) -> Any:
            for _, data in zip(range(self.steps_per_execution), iterator):
                logs = compiled(own_part(data))
            return logs

        return function

    def _train_as_worker(self: Any, part: Part) -> Any:
        earlier = self._reset_metrics_variables()
        if self.gradient_accumulation > 1:
            return self._accumulate_as_worker(part, earlier)
        with tf.GradientTape() as tape:
            predictions, loss = self._share_of_loss(part, training=True)
            scaled = self.optimizer.scale_loss(loss)
        gradients = sum_over_workers(self._gradients_of(scaled, tape))
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._update_global_metrics(part, earlier, predictions, loss)

    def _accumulate_as_worker(self: Any, part: Part, earlier: list[Tensor]) -> Any:
        sums = accumulated_sums(self, part)
        values = [tf.identity(variable.value) for variable in self.metrics_variables]
        added = sum_over_workers([part.counted(x) for x in (*values, *sums)])
        loss, gradients = accumulated_means(added[len(values) :])
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._add_to_metrics(part, earlier, added[: len(values)], loss)

    def _test_as_worker(self: Any, part: Part) -> Any:
        earlier = self._reset_metrics_variables()
        return self._update_global_metrics(
            part, earlier, *self._share_of_loss(part, training=False)
        )

    def _gradients_of(self: Any, loss: Tensor, tape: tf.GradientTape) -> list[Tensor]:
        """Gradients of the loss with respect to all trainable variables."""
        weights = [variable.value for variable in self.trainable_variables]
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return list(map(tf.convert_to_tensor, gradients))  # those of embeddings are sparse

    def _share_of_loss(self: Any, part: Part, training: bool) -> tuple[Any, Tensor]:
        """Predictions for the worker's rows, and its share of the loss of the whole batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part.data)
        with computing(part), self.part_of_batch(part.start, part.rows, part.total):
            predictions = self(x, training=training)
            loss = self.compute_loss(x, y, predictions, sample_weight, training=training)
        return predictions, loss

    def _reset_metrics_variables(self: Any) -> list[Tensor]:
        """Values of the metrics' variables, which become 0. Several losses update metrics, too."""
        earlier = [tf.identity(variable.value) for variable in self.metrics_variables]
        for variable in self.metrics_variables:
            variable.assign(tf.zeros_like(variable.value))
        return earlier

    def _update_global_metrics(
        self: Any, part: Part, earlier: list[Tensor], predictions: Any, loss: Tensor
    ) -> Any:
        """Logs of the metrics after an update with the rows of all workers."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part.data)
        self.compute_metrics(x, y, predictions, sample_weight)
        values = [tf.identity(variable.value) for variable in self.metrics_variables]
        loss, *sums = sum_over_workers([loss, *metric_shares(self, part, values)])
        return self._add_to_metrics(part, earlier, sums, loss)

    def _add_to_metrics(
        self: Any, part: Part, earlier: list[Tensor], sums: list[Tensor], loss: Tensor
    ) -> Any:
        for variable, before, added in zip(self.metrics_variables, earlier, sums):
            variable.assign(before + added)
        common.update_loss_metric(self, loss, part.total)
        return self.get_metrics_result()
