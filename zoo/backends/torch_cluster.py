"""Workers on PyTorch: `torch.distributed`, with gloo on CPUs and NCCL on GPUs.

Every worker computes its rows of each batch. Gradients, losses, metrics and predictions are added
or gathered over the workers, so that each has those of the whole batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import keras
import numpy as np
import torch
import torch.distributed as dist

from zoo.backends import cluster_losses, common

Tensor = Any

_TIMEOUT = timedelta(minutes=10)  # of an operation; workers wait while one does work of its own
_BUCKET = 2**24  # elements that are added in one operation


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
    start: int
    count: int
    total: int


def join_cluster(addresses: Sequence[str], rank: int, local_rank: int) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    with _connected():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"tcp://{addresses[0]}",
            rank=rank,
            world_size=len(addresses),
            timeout=_TIMEOUT,
        )
    cluster_losses.use_global_divisors(lambda divisor: sum_over_workers([divisor])[0], _counts)


def leave_cluster() -> None:
    cluster_losses.use_own_divisors()
    dist.destroy_process_group()


def is_joined() -> bool:
    """Whether this process is a worker of a cluster."""
    return bool(dist.is_available() and dist.is_initialized())


def num_workers() -> int:
    return int(dist.get_world_size()) if is_joined() else 1


def broadcast(content: bytes) -> bytes:
    objects = [content]
    with _connected():
        dist.broadcast_object_list(objects, 0)
    return objects[0]


def broadcast_variables(variables: Sequence[Any]) -> None:
    with _connected(), torch.no_grad():
        for variable in variables:
            value = variable.value.detach().contiguous()
            # Bytes, since gloo does not know every dtype.
            dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
            variable.assign(value)


def check_distributed(trainer: Any) -> None:
    for layer in trainer._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise ValueError(
                "Several devices must not train a batch normalization on PyTorch, since each would "
                f"compute the statistics of its own rows. Received: the layer {layer.name}. Use "
                "`GroupNormalization` or `LayerNormalization`, or freeze the layer"
            )
    for metric in trainer.metrics:
        for variable in metric.variables:
            if variable.aggregation != "sum":
                raise ValueError(
                    "The variables of a metric must be sums over the examples where several "
                    f"devices train. Received: {variable.path} of the metric {metric.name} with "
                    f"aggregation={variable.aggregation!r}. Use another metric"
                )


@contextmanager
def _connected() -> Iterator[None]:
    """Says in words that another worker has ended, which the library reports in many ways."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rpartition("] ")[2][:200]
        raise ConnectionResetError(
            f"The connection to another worker is lost, which may have ended: {reason}"
        ) from error


def sum_over_workers(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Adds tensors over the workers, in a few operations on flat buckets."""
    sums = list(tensors)
    with _connected(), torch.no_grad():
        for bucket in _buckets(tensors):
            flat = torch.cat([tensors[index].reshape(-1) for index in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensors[index].numel() for index in bucket])
            for index, part in zip(bucket, parts):
                sums[index] = part.view(tensors[index].shape)
    return sums


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Indices of tensors of one dtype, in groups of at most `_BUCKET` elements or one tensor."""
    buckets: list[list[int]] = []
    last: dict[torch.dtype, tuple[list[int], int]] = {}
    for index, tensor in enumerate(tensors):
        bucket, size = last.get(tensor.dtype, ([], _BUCKET))
        if size + tensor.numel() > _BUCKET:
            buckets.append(bucket := [])
            size = 0
        bucket.append(index)
        last[tensor.dtype] = bucket, size + tensor.numel()
    return buckets


def gather_rows(outputs: Any, part: Part) -> Any:
    """The rows of all workers, in the order of the batch; nested outputs of one part each."""
    most = -(-part.total // dist.get_world_size())

    def gather(rows: Tensor) -> Tensor:
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: part.count] = rows[: part.count]
        gathered = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
        with _connected():
            dist.all_gather(gathered, padded)
        spans = (_rows_of(part.total, rank) for rank in range(len(gathered)))
        return torch.cat([x[: stop - start] for x, (start, stop) in zip(gathered, spans)])

    return keras.tree.map_structure(gather, outputs)


@contextmanager
def global_metrics(trainer: Any, part: Part, loss: Tensor) -> Iterator[None]:
    """Context manager in which a worker updates metrics, which then are those of all workers.

    Args:
        trainer: The model with the metrics, whose variables are sums over examples.
        part: Rows of the worker.
        loss: The worker's share of the loss, which is added over the workers for the mean loss.
    """
    variables = [metric_variable.value for metric_variable in trainer.metrics_variables]
    earlier = [value.clone() for value in variables]
    for value in variables:
        value.zero_()
    yield
    if not part.count:
        for value in variables:
            value.zero_()
    loss, *sums = sum_over_workers([loss.detach(), *variables])
    for value, before, added in zip(variables, earlier, sums):
        value.copy_(before + added)
    common.update_loss_metric(trainer, loss, part.total)


# ------------------------------------------------------------------ batches

_part: Part | None = None  # that is being computed


def _counts() -> float:
    """Whether the rows that are being computed count, or stand in for a part without rows."""
    return float(_part is None or _part.count > 0)


@contextmanager
def computing(part: Part) -> Iterator[None]:
    """Context manager in which losses are shares of the loss of the part's batch."""
    global _part
    _part = part
    try:
        yield
    finally:
        _part = None


def own_part(data: Any) -> Part:
    """This worker's rows of a batch, of which `WorkerBatches` has read no others."""
    if isinstance(data, Part):
        return data
    total = len(keras.tree.flatten(data)[0])
    start, stop = _rows_of(total, dist.get_rank())
    rows = slice(start, stop) if stop > start else slice(0, 1)
    return Part(keras.tree.map_structure(lambda x: x[rows], data), start, stop - start, total)


def _rows_of(total: int, rank: int) -> tuple[int, int]:
    return common.worker_rows(total, dist.get_world_size(), rank)


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
        start, stop = _rows_of(len(indices), dist.get_rank())
        own = indices[start:stop] if stop > start else indices[:1]
        return own, (start, stop - start, len(indices))

    def __getitem__(self, index: int) -> Any:
        return self._batches.examples[self.part(index)[0]]


class WorkerBatchesAdapter(common.BatchesAdapter):
    """Parts of batches, as tensors, in place of a PyTorch `DataLoader` for `fit`."""

    def get_torch_dataloader(self) -> Any:
        return _Parts(self.py_dataset, self.get_numpy_iterator)


class _Parts:
    """Parts of batches that can be read several times."""

    def __init__(self, batches: WorkerBatches, read: Callable[[], Iterable[Any]]):
        self._batches = batches
        self._read = read

    def __iter__(self) -> Iterator[Part]:
        for index, rows in enumerate(self._read()):
            tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, rows)
            yield Part(tensors, *self._batches.part(index)[1])
