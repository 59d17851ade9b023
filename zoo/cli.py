"""From a command line to a call, and from an error to a line that says what to do."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from rich.console import Console

C = TypeVar("C")


def run(main: Callable[[C], Any], config: type[C], arguments: Sequence[str] | None = None) -> int:
    """Parses the command line into `config` and calls `main` with it.

    Returns:
        The exit status: 0, 1 if the work failed, 2 if it was asked for wrongly, 130 after Ctrl-C.
    """
    from zoo.backends.common import keep_freed_memory
    from zoo.training import Diverged, Interrupted

    keep_freed_memory()  # before the backend starts its threads
    try:
        main(tyro.cli(config, args=arguments))
    except (Interrupted, KeyboardInterrupt) as error:
        return _complain(str(error) or "Stopped", 130)
    except Diverged as error:
        return _complain(str(error), 1)
    except OSError as error:
        return _complain(error.strerror or str(error), 1)
    except (ValueError, ImportError) as error:
        return _complain(str(error), 2)
    return 0


def _complain(text: str, status: int) -> int:
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", markup=False, highlight=False)
    return status


def exit_with(main: Callable[[C], Any], config: type[C]) -> None:
    """`run`, and leaves the process with its status."""
    sys.exit(run(main, config))
