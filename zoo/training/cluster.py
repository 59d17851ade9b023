"""Clusters: worker processes that train together, one for each device of one or more machines.

Every worker runs the same program. Each computes its rows of every batch, and the backend's own
engine sums losses and gradients over the workers, so that all hold the same weights at each step.
Worker 0 alone writes files and prints.

    with zoo.training.distributed(devices=2):
        ...                                        # builds a trainer and calls `fit`

What starts the workers describes the cluster in environment variables: this package's own launcher,
`torchrun`, SLURM's `srun`, or the `TF_CONFIG` of TensorFlow.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from zoo.backends import backend
from zoo.training.rendezvous import meet
from zoo.validation import MAX_COUNT, Count, Index, Rule, show, validated, whole

_PORT = whole(1, 65535)


def _check_coordinator(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    host, _, port = value.rpartition(":")
    _PORT.check(int(port))
    if not host or host != host.strip() or not port.isdecimal():
        raise ValueError
    return str(value)


COORDINATOR = Rule("an address HOST:PORT with a port from 1 to 65535", _check_coordinator)


@validated
@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The workers that train together, and the place of this process among them.

    Attributes:
        num_workers: Number of workers on all machines.
        rank: Number of this worker, from 0 on.
        local_rank: Number of this worker among those of its machine; it uses the device of this
            number.
        coordinator: Address HOST:PORT on the machine of worker 0, where the workers meet.

    Raises:
        ValueError: If an argument is invalid, or `rank` is not below `num_workers`.
    """

    num_workers: Count
    rank: Index
    local_rank: Index
    coordinator: Annotated[str, COORDINATOR]

    def __post_init__(self) -> None:
        for name in ("rank", "local_rank"):
            if getattr(self, name) >= self.num_workers:
                raise ValueError(
                    f"`{name}` must be below `num_workers` (={self.num_workers}). Received: "
                    f"{name}={getattr(self, name)}"
                )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Cluster | None":
        """Reads the cluster from environment variables.

        The first of these that is there counts: the launcher's `ZOO_NUM_WORKERS`, `ZOO_RANK`,
        `ZOO_LOCAL_RANK` and `ZOO_COORDINATOR`; torchrun's `WORLD_SIZE`, `RANK`, `LOCAL_RANK`,
        `MASTER_ADDR` and `MASTER_PORT`; of a step that SLURM's `srun` started `SLURM_NTASKS`,
        `SLURM_PROCID`, `SLURM_LOCALID` and `SLURM_STEP_NODELIST`; and `TF_CONFIG`.
        `ZOO_COORDINATOR` also replaces the address that SLURM's variables give.

        Args:
            environment: The variables; by default those of this process.

        Returns:
            The cluster, or None if there is no other worker.

        Raises:
            ValueError: If a variable is missing or invalid; the text names it.
        """
        environment = os.environ if environment is None else environment
        for variable, read in _READERS.items():
            if environment.get(variable):
                cluster = read(_Variables(environment))
                return cluster if cluster.num_workers > 1 else None
        return None

    def to_environment(self) -> dict[str, str]:
        """The launcher's variables, from which a worker reads the cluster."""
        return {
            "ZOO_NUM_WORKERS": str(self.num_workers),
            "ZOO_RANK": str(self.rank),
            "ZOO_LOCAL_RANK": str(self.local_rank),
            "ZOO_COORDINATOR": self.coordinator,
        }


class _Variables:
    """Environment variables that must be there and valid."""

    def __init__(self, values: Mapping[str, str]):
        self._values = values

    def has(self, name: str) -> bool:
        return bool(self._values.get(name))

    def text(self, name: str) -> str:
        if not self.has(name):
            raise ValueError(
                f"`{name}` must be set for a worker of a cluster. Received: nothing. Start the "
                "workers with `--devices`, or with torchrun or srun, which set it"
            )
        return self._values[name]

    def number(self, name: str, low: int = 0, high: int = MAX_COUNT) -> int:
        value = self.text(name)
        if not re.fullmatch(r"\d{1,10}", value) or not low <= int(value) <= high:
            raise ValueError(
                f"`{name}` must be a whole number from {low} to {high}. Received: {name}={value!r}"
            )
        return int(value)

    def place(self, num_workers: str, rank: str, local_rank: str) -> dict[str, int]:
        """Number of workers, rank and local rank from the variables of these names."""
        workers = self.number(num_workers, 1)
        return {
            "num_workers": workers,
            "rank": self.number(rank, 0, workers - 1),
            "local_rank": self.number(local_rank, 0, workers - 1),
        }

    def address(self, name: str) -> str:
        return str(COORDINATOR.require(name, self.text(name)))


def _read_own(variables: _Variables) -> Cluster:
    place = variables.place("ZOO_NUM_WORKERS", "ZOO_RANK", "ZOO_LOCAL_RANK")
    return Cluster(**place, coordinator=variables.address("ZOO_COORDINATOR"))


def _read_torchrun(variables: _Variables) -> Cluster:
    place = variables.place("WORLD_SIZE", "RANK", "LOCAL_RANK")
    port = variables.number("MASTER_PORT", 1, 65535)
    return Cluster(**place, coordinator=f"{variables.text('MASTER_ADDR')}:{port}")


def _read_slurm(variables: _Variables) -> Cluster:
    place = variables.place("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if variables.has("ZOO_COORDINATOR"):
        return Cluster(**place, coordinator=variables.address("ZOO_COORDINATOR"))
    # Jobs that share a machine get different ports, above those that servers use.
    port = 61440 + variables.number("SLURM_JOB_ID") % 4096
    return Cluster(**place, coordinator=f"{_first_node(variables)}:{port}")


def _first_node(variables: _Variables) -> str:
    """The first name of SLURM's list of nodes, such as gpu003 of "gpu[003-005,007],login1"."""
    nodes = variables.text("SLURM_STEP_NODELIST")
    match = re.match(r"([^\[\],]+)(?:\[(\d+)[^\]]*\])?([^\[\],]*)", nodes)
    if match is None:
        raise ValueError(
            "`SLURM_STEP_NODELIST` must begin with the name of a node. Received: "
            f"SLURM_STEP_NODELIST={nodes!r}"
        )
    return "".join(part or "" for part in match.groups())


def _read_tf_config(variables: _Variables) -> Cluster:
    text = variables.text("TF_CONFIG")
    try:
        config = json.loads(text)
        kind, index = config["task"]["type"], int(config["task"]["index"])
        chiefs, workers = (list(config["cluster"].get(kind, [])) for kind in ("chief", "worker"))
        ranks = [("chief", i) for i in range(len(chiefs))]
        ranks += [("worker", i) for i in range(len(workers))]
        addresses, rank = [*chiefs, *workers], ranks.index((kind, index))
        hosts = [address.rpartition(":")[0] for address in addresses]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            "`TF_CONFIG` must be JSON with the addresses of the workers and the place of this one, "
            'such as {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", '
            f'"index": 0}}}}. Received: TF_CONFIG={show(text)}'
        ) from None
    return Cluster(
        num_workers=len(addresses),
        rank=rank,
        local_rank=hosts[:rank].count(hosts[rank]),
        coordinator=COORDINATOR.require("TF_CONFIG", addresses[0]),
    )


LAUNCHED = "ZOO_LAUNCHED"
"""Variable with the time at which the launcher was started, in seconds since 1970."""

# By the variable that shows who has started the worker.
_READERS: dict[str, Callable[[_Variables], Cluster]] = {
    "ZOO_NUM_WORKERS": _read_own,
    "WORLD_SIZE": _read_torchrun,
    "SLURM_STEP_NODELIST": _read_slurm,
    "TF_CONFIG": _read_tf_config,
}

# ------------------------------------------------------------------ the cluster of this process

_joined: Cluster | None = None


def current() -> Cluster | None:
    """The cluster that this process has joined, or None."""
    return _joined


def is_first() -> bool:
    """Whether this process writes the files: worker 0, or a process without a cluster."""
    return _joined is None or _joined.rank == 0


def launched() -> datetime | None:
    """When the launcher was started; None if there is none.

    Workers that it starts again after a crash go on in the run directory of this time.
    """
    seconds = os.environ.get(LAUNCHED)
    return datetime.fromtimestamp(float(seconds)) if _joined is not None and seconds else None


def from_first(make: Callable[[], Any]) -> Any:
    """Calls a function on worker 0 alone, and returns its result on every worker.

    All workers must make the same calls in the same order.

    Args:
        make: Function whose result JSON can hold.
    """
    if _joined is None:
        return make()
    content = json.dumps(make()).encode() if _joined.rank == 0 else b""
    return json.loads(backend.broadcast(content))


@contextmanager
def joined(cluster: Cluster | None) -> Iterator[Cluster | None]:
    """Context manager in which this process is a worker of the cluster.

    It must begin before the backend has computed anything.

    Args:
        cluster: The cluster; None for a process without others, for which nothing is done.

    Raises:
        ConnectionError: If the workers do not find each other within a time limit, or another has
            ended.
    """
    global _joined
    if cluster is None:
        yield None
        return
    addresses = meet(cluster.coordinator, cluster.num_workers, cluster.rank)
    backend.join_cluster(addresses, cluster.rank, cluster.local_rank)
    _joined = cluster
    together = False
    try:
        yield cluster
        together = True
    except SystemExit as error:
        together = not error.code
        raise
    finally:
        _joined = None
        backend.leave_cluster(together)
