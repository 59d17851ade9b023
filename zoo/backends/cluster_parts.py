"""Parts of batches: the rows that each worker of a cluster reads and computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

from zoo.backends.accumulation import part_size

Tensor = Any


@dataclass(frozen=True)
class Place:
    """The place of this process among the workers."""

    rank: int
    num_workers: int


_place: Place | None = None  # in the cluster that this process has joined


def take_place(rank: int, num_workers: int) -> None:
    """Notes that this process has joined a cluster."""
    global _place
    _place = Place(rank, num_workers)


def leave_place() -> None:
    """Notes that this process has left its cluster."""
    global _place
    _place = None


def is_joined() -> bool:
    """Whether this process is a worker of a cluster."""
    return _place is not None


def place() -> Place:
    """The place of this worker."""
    assert _place is not None
    return _place


@dataclass(frozen=True)
class Part:
    """The rows of a batch that this worker computes.

    Attributes:
        data: The rows, nested as `fit` takes them. A worker without rows has one that counts 0.
        start: Number of the first row within the batch.
        count: Number of the rows, which may be 0.
        total: Number of rows of the whole batch.
    """

    data: Any
    start: int | Tensor
    count: int | Tensor
    total: int | Tensor

    @property
    def rows(self) -> Any:
        """Number of rows of the data: `count`, but at least 1."""
        return ops.shape(keras.tree.flatten(self.data)[0])[0]

    def split(self, number: int) -> Iterator["Part"]:
        """Yields at most so many parts of these rows, equally many on each worker.

        So workers can compute each of them together. The last ones may have no rows.
        """
        most = self.total if _place is None else -(-self.total // _place.num_workers)
        size = part_size(most, number)
        for first in range(0, most, size):
            count = max(0, min(size, self.count - first))
            rows = slice(first, first + count) if count else slice(0, 1)
            data = keras.tree.map_structure(lambda x: x[rows], self.data)  # noqa: B023
            yield Part(data, self.start + first, count, self.total)

    def counted(self, x: Tensor) -> Tensor:
        """The tensor, or zeros if its rows only stand in for missing ones."""
        if isinstance(self.count, int) and self.count:
            return x
        # Zeros that depend on the weights, which all workers gather for their gradients.
        return ops.where(self.count > 0, x, ops.zeros_like(x))


def check_local_rank(local_rank: int, gpus: int) -> None:
    """Raises ValueError if this machine has no GPU for a worker of it."""
    if local_rank >= gpus:
        raise ValueError(
            f"`devices` must be at most {gpus}, the number of GPUs of this machine. Received: a "
            f"worker with the number {local_rank}"
        )


def span(total: int, rank: int) -> tuple[int, int]:
    """First row of a batch that a worker computes, and the row after its last.

    Parts differ by at most one row, the larger ones come first. A part may be empty.

    Args:
        total: Number of rows of the batch.
        rank: Number of the worker.
    """
    least, larger = divmod(total, place().num_workers)
    start = rank * least + min(rank, larger)
    return start, start + least + (rank < larger)


def spans(total: int) -> list[tuple[int, int]]:
    """The rows of all workers, by rank."""
    return [span(total, rank) for rank in range(place().num_workers)]


def own_part(data: Any) -> Part:
    """This worker's rows of a batch, of which `WorkerBatches` has read no others.

    Outside of a cluster they are those of the whole batch.
    """
    if isinstance(data, Part):
        return data
    if not is_joined():
        total = ops.shape(keras.tree.flatten(data)[0])[0]
        return Part(data, 0, total, total)
    # Without the weights that `train_on_batch` leaves open.
    data = keras.utils.pack_x_y_sample_weight(*keras.utils.unpack_x_y_sample_weight(data))
    total = len(keras.tree.flatten(data)[0])
    start, stop = span(total, place().rank)
    rows = slice(start, stop) if stop > start else slice(0, 1)
    own = keras.tree.map_structure(lambda x: x[rows], data)
    return Part(own, start, stop - start, total)


class WorkerBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """This worker's rows of `zoo.training.Batches`; no others are read."""

    def __init__(self, batches: Any):
        super().__init__()
        self._batches = batches

    @property
    def num_batches(self) -> int | None:
        return self._batches.num_batches  # type: ignore[no-any-return]

    def part(self, index: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Examples of a batch that this worker reads, and start, count and total of its part."""
        indices = self._batches.indices(index)
        start, stop = span(len(indices), place().rank)
        own = indices[start:stop] if stop > start else indices[:1]
        return own, (start, stop - start, len(indices))

    def __getitem__(self, index: int) -> Any:
        return self._batches.examples[self.part(index)[0]]


class WorkerBatchesAdapter(PyDatasetAdapter):  # type: ignore[misc]
    """Parts of batches in place of whole batches, for `fit`."""

    def __init__(self, batches: Any, class_weight: Any = None):
        super().__init__(WorkerBatches(batches), class_weight)

    def get_tf_dataset(self) -> "_Parts":
        return _Parts(self)

    get_torch_dataloader = get_tf_dataset

    def get_jax_iterator(self) -> Iterator[Part]:
        for index, rows in enumerate(self.get_numpy_iterator()):
            yield Part(rows, *self.py_dataset.part(index)[1])


class _Parts:
    """Parts of tensors that can be read several times."""

    def __init__(self, adapter: WorkerBatchesAdapter):
        self._adapter = adapter

    def __iter__(self) -> Iterator[Part]:
        for part in self._adapter.get_jax_iterator():
            tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, part.data)
            yield Part(tensors, part.start, part.count, part.total)


def assign_from_first(variables: Sequence[Any], broadcast: Callable[[bytes], bytes]) -> None:
    """Assigns the values of worker 0 to Keras variables, by a function that sends its bytes."""
    arrays = [ops.convert_to_numpy(variable) for variable in variables]
    content, offset = broadcast(b"".join(array.tobytes() for array in arrays)), 0
    for variable, array in zip(variables, arrays):
        values = np.frombuffer(content, array.dtype, array.size, offset)
        variable.assign(values.reshape(array.shape))
        offset += array.nbytes


# ------------------------------------------------------------------ a step

_part: Part | None = None


@contextmanager
def computing(part: Part) -> Iterator[None]:
    """Context manager in which losses are shares of the loss of the part's batch."""
    global _part
    _part = part
    try:
        yield
    finally:
        _part = None


def current() -> Part | None:
    """The part that is being computed, or None."""
    return _part


def metric_shares(trainer: Any, part: Part, values: Sequence[Tensor]) -> list[Tensor]:
    """What a worker's rows add to the metrics of the whole batch.

    Args:
        trainer: The trainer with the metrics.
        part: The worker's rows.
        values: Values of the metrics' variables after an update that began with zeros.
    """
    updated = dict(zip(map(id, trainer.metrics_variables), values))
    # The mean of each of several losses holds the worker's share once for each of its rows, or only
    # once where TensorFlow does not know their number.
    for metric in getattr(trainer._compile_loss, "metrics", ()):
        total, count = (updated[id(variable)] for variable in (metric.total, metric.count))
        share = ops.divide_no_nan(total, count)
        updated[id(metric.total)] = share * ops.cast(part.total, share.dtype)
        updated[id(metric.count)] = ops.cast(part.count, count.dtype)
    return [part.counted(updated[id(variable)]) for variable in trainer.metrics_variables]


class SharedLosses:
    """Base class of trainers of which each worker has its share of the losses."""

    _made_in_cluster = False

    def _is_worker(self: Any) -> bool:
        """Whether this process is in a cluster; forgets functions made while that was otherwise."""
        if self._made_in_cluster != is_joined():
            self._made_in_cluster = is_joined()
            self.train_function = self.test_function = self.predict_function = None
        return bool(self._made_in_cluster)

    @property
    def losses(self: Any) -> Any:
        """The penalties of the weights.

        Raises:
            ValueError: In a cluster, if a layer has added a loss of its own in the step.
        """
        for layer in self._flatten_layers() if _part is not None else ():
            if layer._get_own_losses():
                raise ValueError(
                    "A layer must not add a loss of its own where several devices train, since its "
                    f"mean over all rows is not known. Received: the layer {layer.name}. Add the "
                    "loss to that of `compile`"
                )
        return super().losses  # type: ignore[misc]

    def _aggregate_additional_loss(self: Any, loss: Tensor) -> Tensor:
        loss = super()._aggregate_additional_loss(loss)  # type: ignore[misc]
        return loss if _part is None else loss / place().num_workers


class WorkerFunctions(SharedLosses):
    """Base class of trainers whose compiled functions are others in a cluster.

    A subclass defines `_worker_function`, which makes the one for "train", "test" or "predict".
    """

    def make_train_function(self: Any, force: bool = False) -> None:
        self._make_function_for("train", force)

    def make_test_function(self: Any, force: bool = False) -> None:
        self._make_function_for("test", force)

    def make_predict_function(self: Any, force: bool = False) -> None:
        self._make_function_for("predict", force)

    def _make_function_for(self: Any, task: str, force: bool) -> None:
        if not self._is_worker():
            getattr(super(), f"make_{task}_function")(force)
        elif force or getattr(self, f"{task}_function") is None:
            setattr(self, f"{task}_function", self._worker_function(task))
