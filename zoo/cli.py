"""Helpers of the command lines: exit statuses, one-line errors, the console."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from rich.console import Console

import zoo_command
from zoo import backends
from zoo.backends import backend
from zoo.backends.selection import hidden_startup_lines
from zoo.training import Diverged, Interrupted, cluster
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


def run_recipe(
    main: Callable[[Any], Any],
    config_type: Any,
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> Any:
    """Runs a recipe with the flags of the command line, on as many devices as they say.

    Args:
        main: The recipe's function of its configuration.
        config_type: Class of the configuration; if the recipe trains, a
            `zoo.training.config.TrainingConfig`.
        arguments: The flags; by default those of this process.
        prog: Name of the command in the help text.

    Returns:
        What the recipe returns.
    """
    config = tyro.cli(config_type, args=arguments, prog=prog)
    if not hasattr(config, "distributed"):  # a recipe that does not train
        return main(config)
    with config.distributed():
        return main(config)


def recipe_console(quiet: bool) -> Console:
    """The console of a recipe, whose lines are not wrapped, so that paths can be copied.

    Of several devices' processes the first prints.

    Args:
        quiet: Print nothing.
    """
    return console(quiet=quiet or not cluster.is_first(), soft_wrap=True)


def _complain(text: str, status: int) -> int:
    errors = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    errors.print(f"error: {text}")
    return status
