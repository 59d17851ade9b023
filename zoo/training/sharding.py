"""Training of a model whose weights are divided among several devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from zoo.backends import backend
from zoo.training.cluster import COORDINATOR
from zoo.training.launcher import distributed
from zoo.validation import Count, Index, validated


@validated
@contextmanager
def sharded_model(
    devices: Count = 1,
    num_nodes: Count = 1,
    node_rank: Index = 0,
    coordinator: Annotated[str, COORDINATOR] | None = None,
    max_restarts: Index = 3,
) -> Iterator[None]:
    """Context manager in which the weights of a model are divided among devices.

    Each device holds and updates its part of every weight. A model is created, trained and used
    within the context. The losses are those of one device. Files hold whole arrays, so that
    training goes on with any number of devices.

        with zoo.training.sharded_model(devices=2):
            trainer = Trainer(gpt(num_heads=4))

    On JAX the devices are those of this process. They compute every batch together, each with its
    part of the attention heads, the feed-forward units and the embeddings of a `gpt`.

    On PyTorch each device has a worker process, as with `zoo.training.distributed`, and computes
    its rows of every batch with all weights of one block at a time, which it gathers from the
    others. `fit` divides the weights, of any network. From then on all workers must make the same
    calls that read or assign weights, such as `network.save_weights`.

    Args:
        devices: Number of devices of this machine. On JAX it must divide `num_heads`,
            `num_kv_heads`, `hidden_dim` and `intermediate_dim`.
        num_nodes: Number of machines, as for `distributed`; on PyTorch alone.
        node_rank: Number of this machine.
        coordinator: Address HOST:PORT of machine 0.
        max_restarts: How often the workers start again after one was killed.

    Raises:
        ValueError: If the backend is TensorFlow; on JAX, if this process has fewer devices, or
            there are several machines; on PyTorch as for `distributed`.
        ConnectionError, SystemExit: On PyTorch, as for `distributed`.
    """
    if backend.shards_among_workers:
        with (
            distributed(devices, num_nodes, node_rank, coordinator, max_restarts),
            backend.sharded_model(devices),
        ):
            yield
        return
    if num_nodes > 1:
        raise ValueError(
            "`num_nodes` must be 1 where the devices of one process divide a model's weights. "
            f"Received: num_nodes={num_nodes}. Use `KERAS_BACKEND=torch`"
        )
    with backend.sharded_model(devices):
        yield
