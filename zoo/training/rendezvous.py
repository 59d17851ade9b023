"""Meeting of the workers of a cluster, before a backend connects them in its own way.

Worker 0 listens at the coordinator's address. Each other worker connects to it, says who it is, and
receives an address of every worker. An address in use, a worker that does not come and workers that
do not fit together so are errors within a time limit, with the same text on every backend.
"""

import errno
import json
import random
import socket
import time
from contextlib import ExitStack
from typing import Any

from zoo import backends

TIMEOUT = 30.0  # seconds until all workers must be there
_RETRY = 0.1  # seconds between two attempts to connect
_REPLY = 5.0  # seconds until who has connected must say who it is
_PORTS = range(20000, 32000)
_MAX_LENGTH = 65536  # bytes of a message


def meet(coordinator: str, num_workers: int, rank: int, timeout: float = TIMEOUT) -> list[str]:
    """Waits for all workers and returns an address HOST:PORT of each, where nobody listens yet.

    Args:
        coordinator: Address HOST:PORT at which worker 0 listens.
        num_workers: Number of workers.
        rank: Number of this worker.
        timeout: Seconds until all must be there.

    Raises:
        ConnectionError: If the address is in use or cannot be reached, a worker does not come, or
            the workers do not fit together.
    """
    deadline = time.monotonic() + timeout
    introduction = {"rank": rank, "num_workers": num_workers, "backend": backends.name}
    meeting = _receive_all if rank == 0 else _report
    return meeting(coordinator, introduction, deadline)


def _receive_all(coordinator: str, introduction: dict[str, Any], deadline: float) -> list[str]:
    """Listens at the coordinator's address until all workers were there."""
    host, port = _split(coordinator)
    num_workers = introduction["num_workers"]
    started = time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(_listen(host, port))
        addresses = {0: _join(host, free_port(host))}
        connections = []
        while len(addresses) < num_workers:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, (peer_host, *_) = server.accept()
            except TimeoutError:
                missing = [str(n) for n in range(num_workers) if n not in addresses]
                raise ConnectionError(
                    errno.ETIMEDOUT,
                    f"All {num_workers} workers must connect to {coordinator} within "
                    f"{time.monotonic() - started:.0f} s. Missing: worker {', '.join(missing)}. "
                    "Start them with the same `--coordinator`, and look whether one has failed",
                ) from None
            stack.enter_context(connection)
            try:
                connection.settimeout(_REPLY)
                peer = _read_introduction(connection)
            except (OSError, ValueError):  # not a worker
                continue
            if refusal := _refuse(peer, introduction, addresses):
                _send(connection, {"error": refusal})
                raise ConnectionError(errno.EPROTO, refusal)
            addresses[peer["rank"]] = _join(peer_host, peer["port"])
            connections.append(connection)
        answer = [addresses[number] for number in range(num_workers)]
        for connection in connections:
            _send(connection, {"addresses": answer})
    return answer


def _read_introduction(connection: socket.socket) -> dict[str, Any]:
    peer = _read(connection)
    if not isinstance(peer, dict) or peer.keys() != {"rank", "num_workers", "backend", "port"}:
        raise ValueError
    return peer


def _refuse(peer: Any, own: dict[str, Any], addresses: dict[int, str]) -> str | None:
    """Says why a worker cannot take part; None if it can."""
    for name, what in (("num_workers", "number of workers"), ("backend", "backend")):
        if peer[name] != own[name]:
            return (
                f"All workers must have the same {what}. Received: {own[name]} on worker 0 and "
                f"{peer[name]} on worker {peer['rank']}"
            )
    if peer["rank"] in addresses:
        return (
            "Each worker must have a rank of its own. Received: two workers of rank "
            f"{peer['rank']}. Give each machine another `--node-rank`"
        )
    return None


def _report(coordinator: str, introduction: dict[str, Any], deadline: float) -> list[str]:
    """Connects to the coordinator, again and again until it listens, and returns its answer."""
    started = time.monotonic()
    while True:
        try:
            with socket.create_connection(
                _split(coordinator), max(deadline - time.monotonic(), 0.01)
            ) as connection:
                host = connection.getsockname()[0]
                _send(connection, {**introduction, "port": free_port(host)})
                answer = _read(connection)
            break
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error)
        if time.monotonic() >= deadline:
            raise ConnectionError(
                errno.ETIMEDOUT,
                f"The coordinator {coordinator} must be reached within "
                f"{time.monotonic() - started:.0f} s. Received: {reason}. Start the machine of "
                "worker 0 with the same `--coordinator`, an address of it that the others reach",
            )
        time.sleep(_RETRY)
    if "error" in answer:
        raise ConnectionError(errno.EPROTO, answer["error"])
    return list(answer["addresses"])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConnectionError(
            error.errno,
            "`coordinator` must be an address of this machine with a free port. Received: "
            f"coordinator={host}:{port} ({error.strerror}). Give another port or host",
        ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this machine where nobody listens, below those that connections use.

    Raises:
        OSError: If there is none, or `host` is another machine's.
    """
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    for port in random.sample(_PORTS, 100):
        with socket.socket(family) as probe:
            try:
                probe.bind((address[0], port))
                return port
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
    raise OSError(errno.EADDRINUSE, f"There must be a free port on {host}. Received: none in 100")


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _send(connection: socket.socket, message: Any) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket) -> Any:
    with connection.makefile("rb") as file:
        return json.loads(file.readline(_MAX_LENGTH))
