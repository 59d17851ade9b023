"""Worker processes, one per backend, and their supervision."""

import collections
import contextlib
import copy
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any, Self

import cloudpickle

from zoo import backends
from zoo.parity import worker as worker_program
from zoo.validation import Positive, Size, TextList, validated

_LAST_LINES = 12


class WorkerError(RuntimeError):
    """Failure of a task: an exception, a crash, a timeout or a lack of memory.

    Attributes:
        ended: Whether the worker process has ended.
    """

    def __init__(self, text: str, ended: bool):
        super().__init__(text)
        self.ended = ended


class Worker:
    """Worker process that runs Keras on one backend. The first task starts the process.

    Args:
        backend: Name of the backend, one of `zoo.backends.NAMES`.
        time_limit: Time limit of one task, in seconds. The process keeps it, too, and ends some
            seconds later by itself.
        environment: Additional environment variables of the process.
    """

    def __init__(
        self,
        backend: str,
        time_limit: float = 600.0,
        environment: dict[str, str] | None = None,
    ):
        self.backend = backend
        self.time_limit = time_limit
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._results: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def __call__(
        self, function: Callable[..., Any], *arguments: Any, floatx: str = "float32"
    ) -> Any:
        """Calls a function in the worker process and returns its result.

        Args:
            function: Function to call; it is pickled with the objects that it refers to.
            *arguments: Positional arguments of the function.
            floatx: Keras' default float type meanwhile, "float32" or "float64".

        Raises:
            ValueError: If the function or an argument cannot be pickled.
            WorkerError: If the function raises, the process ends or the time limit is exceeded. The
                text may include the last lines of the process' standard error.
        """
        task = self.time_limit, floatx, _pickled(lambda: function(*arguments), function)
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        # A process that hangs does not read its input, and the pipe's buffer is small.
        threading.Thread(target=_send, args=(task, process.stdin), daemon=True).start()
        try:
            pickled = self._results.get(timeout=self.time_limit)
        except queue.Empty:
            text = self._with_last_lines(f"No result within {self.time_limit:g} s; process ended")
            self.close()
            raise WorkerError(text, ended=True) from None
        except BaseException:  # Ctrl-C must not leave the process running
            self.close()
            raise
        if pickled is None:
            text = self._with_last_lines(_exit_message(process.wait()))
            self.close()
            raise WorkerError(text, ended=True)
        try:
            succeeded, result = pickle.loads(pickled)
        except Exception as error:
            text = f"The result cannot be unpickled: {type(error).__name__}: {error}"
            raise WorkerError(text, ended=False) from error
        if not succeeded:
            raise WorkerError(result, ended=False)
        return result

    def start(self) -> None:
        """Starts the process, unless it runs already."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._results = queue.SimpleQueue()
        environment = {
            "OPENBLAS_NUM_THREADS": "1",  # its idle threads would disturb the other workers
            # On JAX most of the time went to LLVM's work on code that runs once.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            **os.environ,
            "KERAS_BACKEND": self.backend,
            "JAX_ENABLE_X64": "0",  # but while a task computes in float64
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several processes share a GPU
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            **self._environment,
        }
        self._process = subprocess.Popen(
            # -P: the folder of the file has modules with the names of standard ones.
            [sys.executable, "-P", worker_program.__file__, str(self.time_limit)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the worker
        )
        threading.Thread(
            target=_receive, args=(self._process.stdout, self._results), daemon=True
        ).start()

    def close(self) -> None:
        """Ends the worker process and its child processes."""
        process, self._process = self._process, None
        if process is None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows, where child processes of the worker stay until they end themselves
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _with_last_lines(self, text: str) -> str:
        assert self._log is not None
        if self._log.closed:  # another thread has ended the process
            return text
        self._log.seek(0)
        lines = collections.deque(self._log, _LAST_LINES)
        return "\n".join([text, *(line.decode(errors="replace").rstrip() for line in lines)])


class Workers:
    """Pool of workers, one per backend, created on first use and then reused.

    Args:
        names: Names of the backends; by default all installed ones.
        time_limit: Time limit of one task, in seconds.
        min_backends: Smallest number of backends.

    Raises:
        ValueError: If a backend is unknown or not installed, if there are fewer than `min_backends`
            backends, or if `time_limit` is not above 0.
    """

    @validated
    def __init__(
        self,
        names: TextList | None = None,
        time_limit: Positive = 600.0,
        min_backends: Size = 2,
    ):
        installed = backends.installed()
        chosen = tuple(dict.fromkeys(names if names is not None else installed))
        for name in chosen:
            if name not in installed:
                raise ValueError(
                    "`backends` must be among those installed here, "
                    f"{', '.join(installed)}. Received: backends={', '.join(chosen)}"
                )
        if len(chosen) < min_backends:
            missing = [name for name in backends.NAMES if name not in installed]
            way_out = (
                f"install {' or '.join(missing)}" if len(installed) < 2 else "name another one"
            )
            raise ValueError(
                f"`backends` must be two or three of tensorflow, torch, jax; {way_out}. "
                f"Received: backends={', '.join(chosen)}"
            )
        self.names: tuple[str, ...] = chosen
        self._time_limit = time_limit
        self._workers: dict[str, Worker] = {}

    def __getitem__(self, name: str) -> Worker:
        """Returns the worker of a backend."""
        if name not in self._workers:
            self._workers[name] = Worker(name, time_limit=self._time_limit)
        return self._workers[name]

    def only(self, *names: str) -> "Workers":
        """Returns a pool of the given backends that shares the processes of this pool."""
        subset = copy.copy(self)
        subset.names = names
        return subset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all worker processes."""
        for worker in list(self._workers.values()):
            worker.close()


def _send(task: worker_program.Task, stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):  # `_receive` reports the end
        pickle.dump(task, stream)
        stream.flush()


def _receive(stream: IO[bytes], results: "queue.SimpleQueue[bytes | None]") -> None:
    """Puts pickled results into the queue, and None when the process has ended."""
    while True:
        try:
            results.put(pickle.load(stream))
        except Exception:  # any error of an incomplete stream
            results.put(None)
            return


def _exit_message(status: int) -> str:
    if status == -9:  # `signal.SIGKILL`, which Windows does not have
        return "The process was killed (signal 9), as the system does when memory runs out"
    if status < 0:
        return f"The process was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"The process ended with exit status {status}"


def _pickled(task: Callable[[], Any], function: Callable[..., Any]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:
        raise ValueError(
            "A function for another process must be picklable; make tensors, layers and the like "
            f"inside the function. Received: {function!r} ({error})"
        ) from error
