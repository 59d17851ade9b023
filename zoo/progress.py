"""Progress of long work: Keras' bar on a terminal and in a notebook, plain lines elsewhere."""

import sys
import time
from typing import Any

import keras

INTERVAL = 30.0  # seconds between two lines


def shows_bar() -> bool:
    """Whether standard output redraws a line and can encode the characters of Keras' bar."""
    redraws = sys.stdout.isatty() or "ipykernel" in sys.modules
    try:
        "━".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return redraws


class Progress:
    """Progress of work of a known number of steps, on standard output.

    Args:
        name: What is done, such as "sampling".
        total: Number of steps.
        quiet: Print nothing.
    """

    def __init__(self, name: str, total: int, quiet: bool = False):
        self._name = name
        self._total = total
        self._done = 0
        self._bar = keras.utils.Progbar(total) if shows_bar() and not quiet else None
        self._quiet = quiet
        self._last = time.monotonic()

    def advance(self) -> None:
        """Counts one step as done, and prints if it is time to."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._done)
        elif not self._quiet and time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            print(f"{self._name}: {self._done} of {self._total} steps", flush=True)


class ProgressLines(keras.callbacks.Callback):  # type: ignore[misc]
    """Prints a line every 30 seconds of an epoch, for `fit` with `verbose=2`.

    Keras prints a line at the end of each epoch.
    """

    # Otherwise Keras waits for each step. The logs are read only where a line is printed.
    async_safe = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1
        self._last = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if time.monotonic() - self._last < INTERVAL:
            return
        self._last = time.monotonic()
        values = "".join(f" - {name}: {float(value):.4f}" for name, value in (logs or {}).items())
        epochs, steps = self.params["epochs"], self.params["steps"]
        of = f" of {steps}" if steps else ""
        print(f"epoch {self._epoch} of {epochs}, step {batch + 1}{of}{values}", flush=True)
