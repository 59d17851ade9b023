"""Parts of batches: the rows that each worker of a cluster reads and computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

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
    start: Any
    count: Any
    total: Any


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
    """This worker's rows of a batch, of which `WorkerBatches` has read no others."""
    if isinstance(data, Part):
        return data
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


# ------------------------------------------------------------------ the part being computed

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
