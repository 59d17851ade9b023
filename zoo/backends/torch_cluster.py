"""Workers on PyTorch: `torch.distributed`, with gloo on CPUs and NCCL on GPUs.

Every worker computes its rows of each batch. Gradients, losses, metrics and predictions are added
or gathered over the workers, so that each has those of the whole batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import keras
import torch
import torch.distributed as dist

from zoo.backends import cluster_losses, cluster_parts
from zoo.backends.cluster_parts import Part

Tensor = Any

_TIMEOUT = timedelta(minutes=10)  # of an operation; workers wait while one does work of its own
_BUCKET = 2**24  # elements that are added in one operation


def join_cluster(addresses: Sequence[str], rank: int, local_rank: int) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        cluster_parts.check_local_rank(local_rank, torch.cuda.device_count())
        torch.cuda.set_device(local_rank)
    with _connected():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"tcp://{addresses[0]}",
            rank=rank,
            world_size=len(addresses),
            timeout=_TIMEOUT,
        )
    cluster_losses.use_global_divisors(_global_divisor)
    cluster_parts.take_place(rank, len(addresses))


def leave_cluster(together: bool) -> None:
    cluster_losses.use_own_divisors()
    cluster_parts.leave_place()
    try:
        if together:
            with _connected():
                dist.barrier()
    finally:
        dist.destroy_process_group()


def broadcast(content: bytes) -> bytes:
    objects = [content]
    with _connected():
        dist.broadcast_object_list(objects, 0)
    return objects[0]


def broadcast_variables(variables: Sequence[Any]) -> None:
    with torch.no_grad():
        for variable in variables:
            value = variable.value.detach().contiguous()
            broadcast_tensor(value)
            variable.assign(value)


def broadcast_tensor(tensor: Tensor) -> None:
    """Writes the values that worker 0 has to a contiguous tensor of every worker."""
    with _connected():
        # Bytes, since gloo does not know every dtype.
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)


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


def _global_divisor(divisor: Tensor) -> Tensor:
    # Keras infers shapes with tensors on the device "meta", which have no values.
    return divisor if divisor.device.type == "meta" else sum_over_workers([divisor])[0]


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
    most = -(-part.total // cluster_parts.place().num_workers)

    def gather(rows: Tensor) -> Tensor:
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: part.count] = rows[: part.count]
        gathered = [torch.empty_like(padded) for _ in cluster_parts.spans(part.total)]
        with _connected():
            dist.all_gather(gathered, padded)
        parts = zip(gathered, cluster_parts.spans(part.total))
        return torch.cat([x[: stop - start] for x, (start, stop) in parts])

    return keras.tree.map_structure(gather, outputs)


def reset_metrics(trainer: Any) -> list[Tensor]:
    """Values of the metrics' variables, which become 0. Several losses update metrics, too."""
    values = [variable.value for variable in trainer.metrics_variables]
    earlier = [value.clone() for value in values]
    for value in values:
        value.zero_()
    return earlier


def add_to_metrics(trainer: Any, earlier: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """Makes the metrics' variables what `reset_metrics` has returned, and these sums besides."""
    for variable, before, added in zip(trainer.metrics_variables, earlier, sums):
        variable.value.copy_(before + added)
