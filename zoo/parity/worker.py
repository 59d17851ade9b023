"""A process that does tasks on one backend: `python -m zoo.parity.worker FLOATX`.

Tasks come in on standard input and answers go out on what was standard output, both pickled.
Whatever the code under check prints goes to standard error.
"""

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

_LAST_CALLS = 3  # that an answer quotes


def serve(floatx: str) -> None:
    """Answers tasks until standard input ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    backend.keep_malloc_pages()
    backend.disable_tf32()
    if floatx == "float64":
        backend.keep_float64()
    keras.config.set_floatx(floatx)
    while True:
        try:
            task: bytes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(cloudpickle.dumps(_answer(task)), answers)
        answers.flush()


def _end_with(parent: int) -> None:
    """Ends the process when its parent is gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answer(task: bytes) -> tuple[bool, Any]:
    try:
        return True, pickle.loads(task)()  # a function of no arguments
    except Exception as error:
        what = "".join(traceback.format_exception_only(error)).strip()
        last = "".join(traceback.format_tb(error.__traceback__)[-_LAST_CALLS:]).rstrip()
        return False, f"{what}\n{last}"


if __name__ == "__main__":
    serve(sys.argv[1])
