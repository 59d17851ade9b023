"""Worker process that runs tasks on one backend: `python -P worker.py TIME_LIMIT`.

The worker receives pickled triples (time limit, float type, pickled task) on standard input and
sends pickled results to the original standard output. Output that the tasks print is redirected to
standard error. The process ends with the process that started it, whatever it is doing, and ends by
itself if an import or a task exceeds the time limit.

The file is run by its path and imports `zoo` late, so that both hold while Keras is imported.
"""

import contextlib
import faulthandler
import os
import pickle
import queue
import sys
import threading
import traceback
from typing import Any

_LAST_CALLS = 3  # of the traceback, quoted in an error

Task = tuple[float, str, bytes]


def receive(tasks: "queue.SimpleQueue[Task]") -> None:
    """Puts tasks into the queue; ends the process when its parent process ends.

    The parent process holds the other end of standard input, which the system closes at its death.
    """
    while True:
        try:
            tasks.put(pickle.load(sys.stdin.buffer))
        except Exception:  # any error of an incomplete stream
            os._exit(1)


def end_after(seconds: float) -> None:
    """Lets the process end after a time, with a traceback of all threads on standard error.

    The parent process ends the worker some seconds earlier, unless it has stopped itself. The timer
    is a thread of C code, which a computation that holds Python's lock cannot delay.
    """
    later = min(1.1 * seconds + 1.0, threading.TIMEOUT_MAX / 2)
    faulthandler.dump_traceback_later(later, exit=True)


def serve(tasks: "queue.SimpleQueue[Task]") -> None:
    """Runs tasks until the parent process closes standard input.

    Args:
        tasks: Queue of time limits in seconds, Keras' default float types, "float32" or "float64",
            and pickled functions without arguments.
    """
    import cloudpickle

    from zoo.backends import backend

    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    backend.keep_malloc_pages()
    backend.disable_tf32()
    faulthandler.cancel_dump_traceback_later()
    while True:
        time_limit, floatx, task = tasks.get()
        end_after(time_limit)
        with backend.float64() if floatx == "float64" else contextlib.nullcontext():
            result = cloudpickle.dumps(_run_task(task))
        faulthandler.cancel_dump_traceback_later()
        pickle.dump(result, results)
        results.flush()


def _run_task(task: bytes) -> tuple[bool, Any]:
    """Returns (True, result), or (False, error text with the end of the traceback)."""
    try:
        return True, pickle.loads(task)()  # a function without arguments
    except Exception as error:
        message = "".join(traceback.format_exception_only(error)).strip()
        last = "".join(traceback.format_tb(error.__traceback__)[-_LAST_CALLS:]).rstrip()
        return False, f"{message}\n{last}"


if __name__ == "__main__":
    end_after(float(sys.argv[1]))
    received: "queue.SimpleQueue[Task]" = queue.SimpleQueue()
    threading.Thread(target=receive, args=(received,), daemon=True).start()
    serve(received)
