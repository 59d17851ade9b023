"""One process a backend and precision, watched from outside."""

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
from collections.abc import Callable, Sequence
from typing import IO, Any, Self

import cloudpickle

from zoo import backends

_LAST_LINES = 12


class WorkerError(RuntimeError):
    """A task could not be done: it raised, or its process died, hung or ran out of memory.

    Attributes:
        ended: whether the process is gone.
    """

    def __init__(self, text: str, ended: bool):
        super().__init__(text)
        self.ended = ended


class Worker:
    """A process in which Keras runs on one backend. It starts with its first task.

    Args:
        backend: a name of `zoo.backends.NAMES`.
        floatx: "float32" or "float64", what models are made of there unless they say otherwise.
        time_limit: seconds that a task may take.
        environment: more variables for the process.
    """

    def __init__(
        self,
        backend: str,
        floatx: str = "float32",
        time_limit: float = 600.0,
        environment: dict[str, str] | None = None,
    ):
        self.backend = backend
        self.floatx = floatx
        self.time_limit = time_limit
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in the process and waits for what it returns.

        Raises:
            WorkerError: the text is one line, or a line and the last lines that the process wrote.
        """
        task = _portable(lambda: function(*arguments), function)
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        # A process that is stuck reads nothing, and the pipe holds little.
        threading.Thread(target=_send, args=(task, process.stdin), daemon=True).start()
        try:
            answer = self._answers.get(timeout=self.time_limit)
        except queue.Empty:
            text = self._with_last_lines(f"No answer within {self.time_limit:g} s; it was ended")
            self.close()
            raise WorkerError(text, ended=True) from None
        except BaseException:  # Ctrl-C: nothing is left running
            self.close()
            raise
        if answer is None:
            text = self._with_last_lines(_how_it_ended(process.wait()))
            self.close()
            raise WorkerError(text, ended=True)
        try:
            good, result = pickle.loads(answer)
        except Exception as error:
            text = f"The answer cannot be read here: {type(error).__name__}: {error}"
            raise WorkerError(text, ended=False) from error
        if not good:
            raise WorkerError(result, ended=False)
        return result

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._answers = queue.SimpleQueue()
        environment = {
            **os.environ,
            "KERAS_BACKEND": self.backend,
            "JAX_ENABLE_X64": str(int(self.floatx == "float64")),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several processes share a GPU
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            **self._environment,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoo.parity.worker", self.floatx],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends this
        )
        threading.Thread(
            target=_receive, args=(self._process.stdout, self._answers), daemon=True
        ).start()

    def close(self) -> None:
        """Ends the process and whatever it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _with_last_lines(self, text: str) -> str:
        assert self._log is not None
        if self._log.closed:  # ended from another thread
            return text
        self._log.seek(0)
        lines = collections.deque(self._log, _LAST_LINES)
        return "\n".join([text, *(line.decode(errors="replace").rstrip() for line in lines)])


class Workers:
    """A worker for each backend and precision asked for, kept for the next task.

    Args:
        names: the backends to use; by default all that are installed.
        time_limit: seconds that a task may take.
        least: backends that there have to be.

    Raises:
        ValueError: for a name that is no backend or not installed, or fewer than `least` of them.
    """

    def __init__(
        self, names: Sequence[str] | None = None, time_limit: float = 600.0, least: int = 2
    ):
        installed = backends.installed()
        chosen = tuple(dict.fromkeys(names if names is not None else installed))
        for name in chosen:
            if name not in installed:
                raise ValueError(
                    "`backends` must be among those installed here, "
                    f"{', '.join(installed)}. Received: backends={', '.join(chosen)}"
                )
        if len(chosen) < least:
            raise ValueError(
                "`backends` must be two or three of tensorflow, torch, jax; install another one, "
                f'such as `pip install "keras-zoo[jax]"`. Received: backends={", ".join(chosen)}'
            )
        if not time_limit > 0:
            raise ValueError(f"`time_limit` must be above 0. Received: time_limit={time_limit}")
        self.names: tuple[str, ...] = chosen
        self._time_limit = time_limit
        self._workers: dict[tuple[str, str], Worker] = {}

    def __getitem__(self, key: tuple[str, str]) -> Worker:
        """The worker of (backend, floatx)."""
        if key not in self._workers:
            self._workers[key] = Worker(*key, time_limit=self._time_limit)
        return self._workers[key]

    def only(self, *names: str) -> "Workers":
        """Some of the backends, in the same processes."""
        some = copy.copy(self)
        some.names = names
        return some

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process."""
        for worker in list(self._workers.values()):
            worker.close()


def _send(task: bytes, stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended: the answer says how
        pickle.dump(task, stream)
        stream.flush()


def _receive(stream: IO[bytes], answers: "queue.SimpleQueue[bytes | None]") -> None:
    """Hands on pickled answers, and None when the process has ended."""
    while True:
        try:
            answers.put(pickle.load(stream))
        except Exception:  # of a stream that broke off in the middle
            answers.put(None)
            return


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "The process was killed (signal 9), as the system does when memory runs out"
    if status < 0:
        return f"The process was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"The process ended with exit status {status}"


def _portable(task: Callable[[], Any], function: Callable[..., Any]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:
        raise ValueError(
            "What runs in another process must be picklable; make tensors, layers and the like "
            f"inside the function. Received: {function!r} ({error})"
        ) from error
