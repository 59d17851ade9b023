"""Launcher: starts one worker for each device, watches them, and starts them again after a crash.

A worker is the same command with the cluster in its environment. The output of worker 0 is that of
the launcher; of the others the last lines are kept, for the message if one fails.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from zoo.training.cluster import COORDINATOR, LAUNCHED, Cluster, joined
from zoo.training.rendezvous import free_port
from zoo.validation import Count, Index, validated

LOST = 75  # exit status of a worker that has lost the connection to another
_LAUNCHER = "ZOO_LAUNCHER"  # variable with the number of the launcher's process
_LINES = 20  # of a worker's output that are kept
_POLL = 0.05  # seconds between two looks at the workers
_PATIENCE = 5.0  # seconds for a worker to end, before it is killed or held to be alive


@validated
@contextmanager
def distributed(
    devices: Count = 1,
    num_nodes: Count = 1,
    node_rank: Index = 0,
    coordinator: Annotated[str, COORDINATOR] | None = None,
    max_restarts: Index = 3,
) -> Iterator[Cluster | None]:
    """Context manager in which this process trains together with others, one for each device.

        with zoo.training.distributed(devices=2):
            trainer.fit(batches, epochs=3, checkpoint=StepCheckpoint("checkpoints"))

    The process that reaches it first becomes the launcher: it starts the same command once for each
    device, waits for these workers and raises SystemExit with their status. In a worker the context
    joins the cluster. Workers that torchrun, `srun` or `TF_CONFIG` describe join at once. Batches
    are split among the workers, so that losses and weights are those of one device.

    It must begin before the backend has computed anything, and the program must be a script, which
    the workers can run.

    Args:
        devices: Number of devices of this machine; on a CPU, of processes.
        num_nodes: Number of machines. On each the same command is started, with another
            `node_rank`.
        node_rank: Number of this machine, from 0 on.
        coordinator: Address HOST:PORT of machine 0 that the others reach, with a free port. By
            default, on one machine, the launcher takes one.
        max_restarts: How often the workers start again after one was killed, from the last
            checkpoint if there is one.

    Yields:
        The cluster; None if there is one device.

    Raises:
        ValueError: If an argument is invalid, or does not fit the cluster in the environment.
        ConnectionError: If the workers do not find each other.
        SystemExit: In the launcher, when the workers have ended; in a worker, if another is lost.
    """
    cluster = Cluster.from_environment()
    num_workers = devices * num_nodes
    if cluster is None and num_workers > 1:
        if "ipykernel" in sys.modules or hasattr(sys, "ps1"):
            raise ValueError(
                "`devices` above 1 needs a script, which each worker runs. Received: "
                f"devices={devices} in an interactive session"
            )
        command = [sys.executable, *sys.orig_argv[1:]]
        status = launch(command, devices, num_nodes, node_rank, coordinator, max_restarts)
        raise SystemExit(status)
    if cluster is not None and num_workers not in (1, cluster.num_workers):
        raise ValueError(
            f"`devices` times `num_nodes` must be {cluster.num_workers}, the number of workers in "
            f"the environment. Received: devices={devices}, num_nodes={num_nodes}"
        )
    if _LAUNCHER in os.environ:
        _end_with_launcher(int(os.environ[_LAUNCHER]))
    try:
        with joined(cluster):
            yield cluster
    except ConnectionResetError as error:
        _print(f"error: {error}")
        raise SystemExit(LOST) from error  # the launcher starts again


@validated
def launch(
    command: Sequence[str],
    devices: Count,
    num_nodes: Count = 1,
    node_rank: Index = 0,
    coordinator: Annotated[str, COORDINATOR] | None = None,
    max_restarts: Index = 3,
) -> int:
    """Runs a command on the devices of this machine, and returns its exit status.

    Workers start again if one was killed or lost its connection. They do not after an error that
    the program reports itself, such as a wrong argument, a full disk or a loss that is not finite.
    Ctrl-C makes worker 0 save a checkpoint and ends all workers.

    Args:
        command: Program and arguments of each worker.
        devices: Number of workers on this machine.
        num_nodes: Number of machines.
        node_rank: Number of this machine.
        coordinator: Address HOST:PORT of machine 0.
        max_restarts: How often the workers start again.

    Raises:
        ValueError: If `node_rank` is not below `num_nodes`, `coordinator` is missing, or the
            operating system is Windows, which has no process groups.
    """
    if os.name == "nt":
        raise ValueError(
            "`devices` above 1 needs Linux or macOS, whose process groups end together. Received: "
            f"devices={devices} on Windows"
        )
    if node_rank >= num_nodes:
        raise ValueError(
            f"`node_rank` must be below `num_nodes` (={num_nodes}). Received: node_rank={node_rank}"
        )
    if coordinator is None and num_nodes > 1:
        raise ValueError(
            "`coordinator` must be an address HOST:PORT of machine 0 where there are several. "
            f"Received: coordinator=None, num_nodes={num_nodes}"
        )
    launched = time.time()
    for attempt in itertools.count(1):
        address = coordinator or f"127.0.0.1:{free_port()}"
        places = [
            Cluster(
                num_workers=devices * num_nodes,
                rank=node_rank * devices + local_rank,
                local_rank=local_rank,
                coordinator=address,
            )
            for local_rank in range(devices)
        ]
        with _Workers(command, places, launched) as workers:
            failed = workers.wait()
        if failed is None:
            return 0
        if workers.is_stopping:
            return 130
        if not failed.was_killed:
            failed.report()
            return failed.status or 1
        failed.report()
        if attempt > max_restarts:
            _print(
                f"error: The workers have failed {attempt} times, and `max_restarts` is "
                f"{max_restarts}. The same command goes on after the last checkpoint"
            )
            return 1
        _print(f"Starting again from the last checkpoint ({attempt} of {max_restarts})")
    raise AssertionError  # the loop does not end


class _Worker:
    """A process of the cluster.

    Args:
        command: Program and arguments.
        place: The worker's place in the cluster.
        threads: Number of threads for its computations on a CPU.
        launched: When the launcher was started, in seconds since 1970.
    """

    def __init__(self, command: Sequence[str], place: Cluster, threads: int, launched: float):
        self.place = place
        self._lines: deque[str] = deque(maxlen=_LINES)
        environment = {
            "PYTHONUNBUFFERED": "1",  # the last lines before a worker was killed
            "OMP_NUM_THREADS": str(threads),
            "NPROC": str(threads),  # read by XLA
            "TF_NUM_INTRAOP_THREADS": str(threads),
            **os.environ,
            **place.to_environment(),
            _LAUNCHER: str(os.getpid()),
            LAUNCHED: str(launched),
        }
        shown = place.rank == 0
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # closes when the launcher ends, however it ends
            stdout=None if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for the launcher
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        with self._process.stdout as output:
            for line in output:
                self._lines.append(line.decode(errors="replace").rstrip())

    @property
    def status(self) -> int | None:
        """Exit status, or minus the number of the signal that has ended it; None while it runs."""
        return self._process.poll()

    @property
    def was_killed(self) -> bool:
        """Whether the worker has ended through no error that it has reported itself."""
        return self.status is not None and (self.status < 0 or self.status == LOST)

    def signal(self, number: int) -> None:
        """Sends a signal to the worker and the processes that it has started."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def end(self) -> None:
        """Ends the process and those that it has started, and waits until they have ended."""
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join(_PATIENCE)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def report(self) -> None:
        """Says on standard error how the worker has ended, and shows its last lines."""
        status = self.status or 0
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        elif status == LOST:
            how = "has lost the connection to another worker"
        else:
            how = f"has ended with status {status}"
        self._reader.join(_PATIENCE)
        lines = "".join(f"\n    {line}" for line in self._lines)
        told = f". Its last lines:{lines}" if lines else ""
        _print(f"error: Worker {self.place.rank} of {self.place.num_workers} {how}{told}")


class _Workers:
    """The workers of this machine; the context starts them, and ends those that still run.

    Args:
        command: Program and arguments of each.
        places: Their places in the cluster.
        launched: When the launcher was started, in seconds since 1970.
    """

    def __init__(self, command: Sequence[str], places: Sequence[Cluster], launched: float):
        self._launched = launched
        self._command = command
        self._places = places
        self._workers: list[_Worker] = []
        self._previous: dict[int, Any] = {}
        self.is_stopping = False

    def __enter__(self) -> "_Workers":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)
        threads = max(1, (os.cpu_count() or 1) // len(self._places))
        for place in self._places:
            self._workers.append(_Worker(self._command, place, threads, self._launched))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGTERM)
        for worker in self._workers:
            worker.end()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, *_: Any) -> None:
        """Makes worker 0 save a checkpoint and stop; without it, ends the workers."""
        self.is_stopping = True
        for worker in self._workers:
            if worker.place.rank == 0:
                worker.signal(signal.SIGINT)
                return
        for worker in self._workers:
            worker.signal(signal.SIGTERM)

    def wait(self) -> _Worker | None:
        """Waits until all workers have ended well, or one has failed, which is returned."""
        while not (failed := [worker for worker in self._workers if worker.status]):
            if all(worker.status == 0 for worker in self._workers):
                return None
            time.sleep(_POLL)
        # Workers that lose the connection may end before the one that has failed.
        deadline = time.monotonic() + _PATIENCE
        while all(worker.status in _CONSEQUENCES for worker in failed):
            if time.monotonic() > deadline or len(failed) == len(self._workers):
                break
            time.sleep(_POLL)
            failed = [worker for worker in self._workers if worker.status]
        return min(failed, key=lambda worker: worker.status in _CONSEQUENCES)


# How a worker ends when another has failed: JAX aborts.
_CONSEQUENCES = (LOST, -signal.SIGABRT)


def _end_with_launcher(launcher: int) -> None:
    """Ends this process and those that it has started as soon as the launcher has ended."""

    def watch() -> None:
        if os.getppid() == launcher:
            os.read(0, 1)  # returns when the launcher's end of the pipe is closed
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
