"""Workers on JAX: `jax.distributed`, and sums over a mesh of one device of each worker.

The weights of each worker are arrays of its own. A step computes the worker's rows on its device;
then one operation on the mesh adds gradients, loss and metrics over the workers, and each applies
the sums. So parts of a batch need not be of one size, and a checkpoint or a callback finds the same
arrays as in a training on one device.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.backends import cluster_losses, common
from zoo.backends.cluster_parts import (
    Part,
    WorkerBatchesAdapter,
    WorkerFunctions,
    assign_from_first,
    computing,
    is_joined,
    leave_place,
    metric_shares,
    own_part,
    place,
    spans,
    take_place,
)
from zoo.backends.jax_accumulation import accumulated_means, accumulated_step, accumulated_sums
from zoo.backends.jax_packing import Packed
from zoo.backends.jax_training import CheckedStep, State

Tensor = Any

_CONNECT = 30  # seconds until all workers must be connected
_HEARTBEAT = 20  # seconds after which a silent worker counts as dead, which ends the others
_SHUTDOWN = 600  # seconds that a worker waits for others that still write files

jax.tree_util.register_dataclass(Part, ["data"], ["start", "count", "total"])


@dataclass(frozen=True)
class _Workers:
    """Compiled operations on the mesh of all workers."""

    sharded: NamedSharding
    add: Callable[[Any], Any]
    gather: Callable[[Any], Any]


_workers: _Workers | None = None


def join_cluster(addresses: Sequence[str], rank: int, local_rank: int) -> None:
    global _workers
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _connected():
        jax.distributed.initialize(
            addresses[0],
            len(addresses),
            rank,
            local_device_ids=local_rank,
            coordinator_bind_address=addresses[0],
            initialization_timeout=_CONNECT,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
        devices = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([devices[number] for number in range(len(addresses))]), "workers")
    replicated = NamedSharding(mesh, PartitionSpec())
    _workers = _Workers(
        NamedSharding(mesh, PartitionSpec("workers")),
        jax.jit(partial(jax.tree.map, lambda x: x.sum(0, dtype=x.dtype)), out_shardings=replicated),
        jax.jit(lambda x: x, out_shardings=replicated),
    )
    cluster_losses.use_global_divisors(lambda own: _divisors.total(own))
    take_place(rank, len(addresses))
    with _hidden_output():  # gloo's lines when it connects
        sum_over_workers(jnp.zeros((1, 1)))


def leave_cluster(together: bool) -> None:
    global _workers
    _workers = None
    cluster_losses.use_own_divisors()
    leave_place()
    if together:
        jax.distributed.shutdown()  # waits for the others
    else:
        _abandon_connections()


def _abandon_connections() -> None:
    """Keeps the connections open until the process ends.

    The library waits for the other workers where it closes them, and aborts the process if one of
    them has died, before Python has written its traceback and returned its exit status.
    """
    state = distributed.global_state
    for name in ("preemption_sync_manager", "client", "service"):
        if (connection := getattr(state, name)) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # it is never deleted
            setattr(state, name, None)


@contextmanager
def _hidden_output() -> Iterator[None]:
    """Hides what libraries write on standard output without Python."""
    sys.stdout.flush()
    output = os.dup(1)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(output, 1)
        os.close(output)


@contextmanager
def _connected() -> Iterator[None]:
    """Says in words that another worker has ended, which the library reports in many ways."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # gloo raises the latter
        reason = str(error).partition("\n")[0][:200]
        raise ConnectionResetError(
            f"The connection to another worker is lost, which may have ended: {reason}"
        ) from error


def _on_mesh(operation: Callable[[Any], Any], tensors: Any) -> Any:
    """Applies an operation to arrays (workers, ...), of which each worker has one row."""
    assert _workers is not None
    count = place().num_workers

    def global_array(x: Tensor) -> Tensor:
        shape = (count, *x.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, _workers.sharded, [x])

    with _connected():
        results = operation(jax.tree.map(global_array, tensors))
        return jax.tree.map(lambda x: x.addressable_data(0), results)


def sum_over_workers(tensors: Any) -> Any:
    """Adds nested arrays (1, ...) over the workers; the results lack the first axis."""
    assert _workers is not None
    return _on_mesh(_workers.add, tensors)


def gather_rows(outputs: Any, part: Part) -> Any:
    """The rows of all workers, in the order of the batch; nested outputs of one part each."""
    assert _workers is not None
    most = -(-part.total // place().num_workers)

    def padded(rows: Tensor) -> Tensor:
        rows = rows[: part.count]
        return jnp.pad(rows, ((0, most - part.count), *[(0, 0)] * (rows.ndim - 1)))[None]

    def joined(rows: Tensor) -> np.ndarray:
        parts = zip(np.asarray(rows), spans(part.total))
        return np.concatenate([x[: stop - start] for x, (start, stop) in parts])

    return jax.tree.map(joined, _on_mesh(_workers.gather, jax.tree.map(padded, outputs)))


def broadcast(content: bytes) -> bytes:
    is_first = place().rank == 0

    def from_first(array: np.ndarray) -> np.ndarray:
        array = array if is_first else np.zeros_like(array)
        return np.asarray(sum_over_workers(jnp.asarray(array)[None]))

    length = int(from_first(np.array(len(content), np.int32)))
    return from_first(np.frombuffer(content.ljust(length)[:length], np.uint8)).tobytes()


# ------------------------------------------------------------------ steps


def broadcast_variables(variables: Sequence[Any]) -> None:
    assign_from_first(variables, broadcast)


def as_dataset(trainer: Any, batches: Any, class_weight: Any = None) -> Any:
    if not is_joined():
        return batches
    common.create_variables(trainer, batches[0])  # Keras cannot do so from the part of a batch
    return WorkerBatchesAdapter(batches, class_weight)


class _UnknownDivisor(Exception):
    """A loss divides by a sum of weights, which the workers have not added yet."""


class _Divisors:
    """Sums of weights by which the losses of a step divide.

    A compiled step cannot wait for other workers. So a step whose losses are weighted is preceded
    by another, which computes only the sums of the worker's weights.

    Attributes:
        own: Sums of this worker's weights, if they are being collected.
        given: Sums over all workers, if they are known.
    """

    def __init__(self, given: Sequence[Tensor] | None = None, collect: bool = False):
        self._given = iter(given or ())
        self.own: list[Tensor] | None = [] if collect else None

    def total(self, own: Tensor) -> Tensor:
        """The sum over all workers of the next divisor, of which this worker has its own."""
        if self.own is not None:
            self.own.append(own.reshape(1))
            return own
        try:
            return next(self._given)
        except StopIteration:
            raise _UnknownDivisor from None


_divisors = _Divisors()


@contextmanager
def _dividing_by(divisors: _Divisors) -> Iterator[_Divisors]:
    global _divisors
    _divisors = divisors
    try:
        yield divisors
    finally:
        _divisors = _Divisors()


class _WorkerStep(CheckedStep):
    """A step of a worker: it computes its rows, then all workers' results are added and applied.

    Args:
        compute: Function of (state, part) that returns nested arrays to add over the workers, and
            the variables that all workers change alike.
        apply: Function of (state, sums, number of rows) that returns logs and new values, and may
            reuse the memory of the state.
    """

    def __init__(self, compute: Callable[..., Any], apply: Callable[..., Any]):
        super().__init__(self._share)
        self._compute = compute
        self._own_divisors = jax.jit(self._collect_divisors)
        self._apply = jax.jit(apply, donate_argnums=0)
        self._is_weighted = False

    def __call__(self, state: State, data: Any) -> Any:
        part = own_part(data)
        try:
            shares, non_trainable = self._share_of(state, part)
        except _UnknownDivisor:
            self._is_weighted = True
            shares, non_trainable = self._share_of(state, part)
        sums = sum_over_workers(shares)
        trainable, _, *others = state
        logs, trainable, others = self._apply((trainable, others), sums, part.total)
        return logs, (trainable, non_trainable, *others)

    def _share_of(self, state: State, part: Part) -> Any:
        divisors = ()
        if self._is_weighted:
            divisors = sum_over_workers(self._own_divisors(state, part))
        return super().__call__(state, (part, divisors))

    def _share(self, state: State, data: Any) -> Any:
        part, divisors = data
        with _dividing_by(_Divisors(divisors)):
            shares, non_trainable = self._compute(state, part)
        return Packed.pack(shares), non_trainable

    def _collect_divisors(self, state: State, part: Part) -> list[Tensor]:
        with _dividing_by(_Divisors(collect=True)) as divisors:
            self._compute(state, part)
        assert divisors.own is not None
        return divisors.own


class _PredictStep(CheckedStep):
    """A step of a worker that computes its rows of a batch and gathers those of all workers."""

    def __call__(self, state: State, data: Any) -> Any:
        part = own_part(data)
        outputs, non_trainable = super().__call__(state, part)
        return gather_rows(outputs, part), (state[0], non_trainable)


class TrainerMixin(WorkerFunctions):
    """Base class of `zoo.Trainer`: steps in parts, or those of a worker in a cluster."""

    def train_step(self: Any, state: State, data: Any) -> tuple[Any, State]:
        if self.gradient_accumulation > 1:
            return accumulated_step(self, state, data)
        return super().train_step(state, data)  # type: ignore[misc, no-any-return]

    def _worker_function(self: Any, task: str) -> Callable[..., Any]:
        if task == "predict":
            step = _PredictStep(lambda state, part: self.predict_step(state, part.data))
            return self._make_function(step, concatenate_outputs=True)  # type: ignore[no-any-return]
        steps = {
            "train": (self._share_of_training, self._apply_training),
            "test": (self._share_of_test, self._apply_test),
        }
        return self._make_function(_WorkerStep(*steps[task]))  # type: ignore[no-any-return]

    # -------------------------------------------------------------- shares of a worker

    def _share_of_training(self: Any, state: State, part: Part) -> Any:
        trainable, non_trainable, optimizer, metrics = state
        if self.gradient_accumulation > 1:
            begun = trainable, non_trainable, optimizer, [jnp.zeros_like(x) for x in metrics]
            sums, non_trainable, added = accumulated_sums(self, begun, part)
            return jax.tree.map(part.counted, (sums, added)), non_trainable
        compute = jax.value_and_grad(partial(self._share_of_loss, part), has_aux=True)
        (_, (loss, sums, non_trainable)), gradients = compute(
            trainable, non_trainable, metrics, training=True, optimizer_variables=optimizer
        )
        return ([loss, *gradients], sums), non_trainable

    def _share_of_test(self: Any, state: State, part: Part) -> Any:
        _, (loss, sums, non_trainable) = self._share_of_loss(part, *state)
        return (loss, sums), non_trainable

    def _share_of_loss(
        self: Any,
        part: Part,
        trainable: list[Tensor],
        non_trainable: list[Tensor],
        metrics: list[Tensor],
        **options: Any,
    ) -> Any:
        """The worker's share of the loss, scaled and as it is, and what it adds to the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part.data)
        sums = [jnp.zeros_like(value) for value in metrics]
        with computing(part), self.part_of_batch(part.start, part.rows, part.total):
            scaled, (loss, outputs, non_trainable, sums) = self.compute_loss_and_updates(
                trainable, non_trainable, sums, x, y, sample_weight, **options
            )
        mapping = list(zip(self.metrics_variables, sums))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.compute_metrics(x, y, outputs, sample_weight)
        sums = [scope.get_current_value(variable) for variable in self.metrics_variables]
        return scaled, (loss, metric_shares(self, part, sums), non_trainable)

    def _apply_training(self: Any, state: Any, sums: Packed, total: Tensor) -> Any:
        trainable, (optimizer, metrics) = state
        loss_and_gradients, metric_sums = sums.unpack()
        if self.gradient_accumulation > 1:
            loss, gradients = accumulated_means(loss_and_gradients)
        else:
            loss, *gradients = loss_and_gradients
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, metrics = self._updated_metrics(metrics, metric_sums, loss, total)
        return logs, trainable, [optimizer, metrics]

    def _apply_test(self: Any, state: Any, sums: Packed, total: Tensor) -> Any:
        trainable, (metrics,) = state
        loss, metric_sums = sums.unpack()
        logs, metrics = self._updated_metrics(metrics, metric_sums, loss, total)
        return logs, trainable, [metrics]

    def _updated_metrics(
        self: Any, metrics: list[Tensor], sums: list[Tensor], loss: Tensor, total: Tensor
    ) -> Any:
        """Logs and values of the metrics with the rows of all workers."""
        mapping = [(v, x + y) for v, x, y in zip(self.metrics_variables, metrics, sums)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            common.update_loss_metric(self, loss, total)
            logs = self.get_metrics_result()
        return logs, [scope.get_current_value(variable) for variable in self.metrics_variables]
