"""Tests of the description of a cluster, and of the meeting of its workers."""

import json
import socket
import threading
from typing import Any

import pytest

from zoo import backends
from zoo.training import cluster
from zoo.training.cluster import Cluster
from zoo.training.rendezvous import free_port, meet

pytestmark = pytest.mark.once

OWN = {
    "ZOO_NUM_WORKERS": "4", "ZOO_RANK": "3", "ZOO_LOCAL_RANK": "1", "ZOO_COORDINATOR": "a:2000",
}  # fmt: skip
TORCHRUN = {
    "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "2000",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "4107", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004,007],login",
}  # fmt: skip
WORKERS = ["a:2000", "a:2001", "b:2000", "b:2001"]


def tf_config(cluster: Any, kind: str, index: Any) -> dict[str, str]:
    task = {"type": kind, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


TF_CONFIG = tf_config({"worker": WORKERS}, "worker", 3)


@pytest.mark.parametrize(
    ("environment", "coordinator"),
    [
        (OWN, "a:2000"),
        (TORCHRUN, "a:2000"),
        (SLURM, "gpu003:61451"),
        ({**SLURM, "SLURM_STEP_NODELIST": "login"}, "login:61451"),
        ({**SLURM, "SLURM_STEP_NODELIST": "a12,a14"}, "a12:61451"),
        ({**SLURM, "ZOO_COORDINATOR": "a:2000"}, "a:2000"),
        (TF_CONFIG, "a:2000"),
        (tf_config({"chief": WORKERS[:1], "worker": WORKERS[1:]}, "worker", 2), "a:2000"),
        ({**TORCHRUN, **OWN, "RANK": "0"}, "a:2000"),
    ],
)
def test_cluster_from_environment(environment: dict[str, str], coordinator: str) -> None:
    expected = Cluster(num_workers=4, rank=3, local_rank=1, coordinator=coordinator)
    assert Cluster.from_environment(environment) == expected
    assert Cluster.from_environment(expected.to_environment()) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**OWN, "ZOO_NUM_WORKERS": "1", "ZOO_RANK": "0", "ZOO_LOCAL_RANK": "0"},
        tf_config({"worker": WORKERS[:1]}, "worker", 0),
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, which no `srun` has started
    ],
)
def test_cluster_of_one_process_is_none(environment: dict[str, str]) -> None:
    assert Cluster.from_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({**OWN, "ZOO_RANK": "4"}, r"`ZOO_RANK` must be a whole number from 0 to 3. Received: Z"),
        ({**OWN, "ZOO_RANK": "-1"}, r"`ZOO_RANK` must be a whole number .*ZOO_RANK='-1'"),
        ({**OWN, "ZOO_COORDINATOR": "a"}, "`ZOO_COORDINATOR` must be an address HOST:PORT"),
        ({**OWN, "ZOO_COORDINATOR": "a:0"}, "`ZOO_COORDINATOR` must be .* port from 1 to 65535"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "`MASTER_ADDR` must be set for a worker .*: nothing"),
        (
            {**TORCHRUN, "MASTER_PORT": "x"},
            "`MASTER_PORT` must be .* 1 to 65535. .*MASTER_PORT='x'",
        ),
        ({**SLURM, "SLURM_STEP_NODELIST": "[1-2]"}, "`SLURM_STEP_NODELIST` must begin with the"),
        ({"TF_CONFIG": "{"}, "`TF_CONFIG` must be JSON with the addresses .*TF_CONFIG="),
        (tf_config({"worker": WORKERS}, "worker", 4), "`TF_CONFIG` must be JSON"),
        (tf_config({"worker": WORKERS}, "ps", 0), "`TF_CONFIG` must be JSON"),
        (
            tf_config({"worker": ["a", "b"]}, "worker", 0),
            "`TF_CONFIG` must be an address HOST:PORT",
        ),
    ],
)
def test_cluster_from_environment_names_the_variable(
    environment: dict[str, str], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Cluster.from_environment(environment)


def test_cluster_rejects_a_rank_beyond_its_workers() -> None:
    with pytest.raises(ValueError, match=r"`rank` must be below `num_workers` \(=2\). Received: r"):
        Cluster(num_workers=2, rank=2, local_rank=0, coordinator="a:1")


def test_a_process_without_cluster_is_first() -> None:
    assert cluster.current() is None
    assert cluster.is_first()
    assert cluster.from_first(lambda: (1, 2)) == (1, 2)


# ------------------------------------------------------------------ the meeting


def meet_all(places: list[tuple[int, int]]) -> list[Any]:
    """What workers with these numbers of workers and ranks get: addresses, or an error."""
    coordinator = f"127.0.0.1:{free_port()}"
    results: list[Any] = [None] * len(places)

    def worker(index: int) -> None:
        num_workers, rank = places[index]
        try:
            results[index] = meet(coordinator, num_workers, rank, timeout=2)
        except ConnectionError as error:
            results[index] = error

    threads = [threading.Thread(target=worker, args=(index,)) for index in range(len(places))]
    for thread in reversed(threads):  # worker 0 comes last
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_workers_meet_and_get_an_address_of_each() -> None:
    addresses, *others = meet_all([(3, 0), (3, 1), (3, 2)])
    assert others == [addresses, addresses]
    ports = {int(address.removeprefix("127.0.0.1:")) for address in addresses}
    assert len(ports) == 3


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ([(2, 0), (3, 1)], "same number of workers. Received: 2 on worker 0 and 3 on worker 1"),
        ([(3, 0), (3, 1), (3, 1)], "rank of its own. Received: two workers of rank 1. Give each"),
    ],
)
def test_workers_that_do_not_fit_together_are_refused(
    places: list[tuple[int, int]], text: str
) -> None:
    errors = meet_all(places)
    assert any(text in str(error) for error in errors[1:])
    assert text in str(errors[0])


def test_workers_on_different_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["jax", "tensorflow"])
    lock = threading.Lock()

    class Names:
        @property
        def name(self) -> str:
            with lock:
                return next(names)

    monkeypatch.setattr("zoo.training.rendezvous.backends", Names())
    for error in meet_all([(2, 0), (2, 1)]):
        assert "All workers must have the same backend. Received: " in str(error)


def test_a_missing_worker_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"All 3 workers .* within 0 s. Missing: worker 1, 2"):
        meet(f"127.0.0.1:{free_port()}", 3, 0, timeout=0.2)


def test_a_coordinator_that_cannot_be_reached_is_an_error() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"coordinator {address} must .*Connection refused"):
        meet(address, 2, 1, timeout=0.2)


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        text = f"`coordinator` must be .* free port. Received: coordinator={address} .*in use"
        with pytest.raises(ConnectionError, match=text):
            meet(address, 2, 0, timeout=0.2)


def test_a_host_of_another_machine_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="`coordinator` must be an address of this machine"):
        meet("192.0.2.1:2000", 2, 0, timeout=0.2)


def test_a_stranger_does_not_disturb_the_meeting() -> None:
    port = free_port()
    results: list[Any] = []
    first = threading.Thread(target=lambda: results.append(meet(f"127.0.0.1:{port}", 2, 0, 5)))
    first.start()
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1}\n', b""):
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(text)
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.02)
    assert backends.name
    assert meet(f"127.0.0.1:{port}", 2, 1, 5) == (first.join() or results[0])
