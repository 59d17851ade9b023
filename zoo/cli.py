"""Helpers of the command lines: exit statuses, one-line errors, the console."""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

import zoo_command
from zoo import backends
from zoo.backends import backend
from zoo.backends.selection import hidden_startup_lines
from zoo.training import Diverged, Interrupted
from zoo_command import console as console


def run(command: Callable[[], Any]) -> int:
    """Runs a command and prints its errors as one line on standard error.

    Args:
        command: Function that may return an exit status.

    Returns:
        The exit status: 0, 1 if the work failed, 2 for wrong arguments, 130 after Ctrl-C.
    """
    backend.keep_malloc_pages()  # before the backend starts its threads
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        # Text that the terminal cannot show, such as an accent in a path, is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if backends.name == "tensorflow":
        with hidden_startup_lines():
            backend.device()  # without a GPU TensorFlow logs an error
    zoo_command.restore_interrupts()
    try:
        status = command()
    except (Interrupted, KeyboardInterrupt) as error:
        return _complain(str(error) or "Stopped", 130)
    except (Diverged, FloatingPointError) as error:
        return _complain(str(error), 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}", 1)
    except (ValueError, ImportError) as error:
        return _complain(str(error), 2)
    return status if isinstance(status, int) else 0


def recipe_console(quiet: bool) -> Console:
    """The console of a recipe, whose lines are not wrapped, so that paths can be copied.

    Args:
        quiet: Print nothing.
    """
    return console(quiet=quiet, soft_wrap=True)


def _complain(text: str, status: int) -> int:
    errors = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    errors.print(f"error: {text}")
    return status
