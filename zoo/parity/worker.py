"""Worker process that runs tasks on one backend: `python -m zoo.parity.worker FLOATX`.

The worker receives pickled tasks on standard input and sends pickled results to the original
standard output. Output that the tasks print is redirected to standard error.
"""

import gc
import os
import pickle
import sys
import threading
import time
import traceback
from typing import Any

import cloudpickle
import keras

from zoo.backends import backend

_LAST_CALLS = 3  # of the traceback, quoted in an error


def serve(floatx: str) -> None:
    """Runs tasks until standard input is closed.

    Args:
        floatx: Keras' default float type, "float32" or "float64".
    """
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    backend.keep_malloc_pages()
    backend.disable_tf32()
    if floatx == "float64":
        backend.keep_float64()
    keras.config.set_floatx(floatx)
    # Each task collects garbage (`clear_session`), 0.3 s for what the libraries hold.
    gc.freeze()
    while True:
        try:
            task: bytes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(cloudpickle.dumps(_run_task(task)), results)
        results.flush()


def _exit_with_parent(parent: int) -> None:
    """Ends this process when its parent process ends, also during a task."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run_task(task: bytes) -> tuple[bool, Any]:
    """Returns (True, result), or (False, error text with the end of the traceback)."""
    try:
        return True, pickle.loads(task)()  # a function without arguments
    except Exception as error:
        message = "".join(traceback.format_exception_only(error)).strip()
        last = "".join(traceback.format_tb(error.__traceback__)[-_LAST_CALLS:]).rstrip()
        return False, f"{message}\n{last}"


if __name__ == "__main__":
    serve(sys.argv[1])
