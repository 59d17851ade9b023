"""Selection of the backend, before Keras is imported and chooses one that may not be installed."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

NAMES = ("tensorflow", "torch", "jax")
_BY_PREFERENCE = ("jax", "torch", "tensorflow")
_ALIASES = {"pytorch": "torch", "tf": "tensorflow"}


def installed() -> list[str]:
    """Returns the names of the installed backends."""
    return [name for name in NAMES if importlib.util.find_spec(name)]


def check_backend(name: str) -> None:
    """Checks that a backend exists and is installed, before Keras would fail deep inside an import.

    Raises:
        ValueError: If there is no backend of this name.
        ImportError: If the backend is not installed.
    """
    if name not in NAMES:
        raise _reported_in_one_line(
            ValueError(
                f"`KERAS_BACKEND` must be one of {', '.join(NAMES)}. Received: "
                f"KERAS_BACKEND={name}. Installed here: {', '.join(installed()) or 'none'}"
            )
        )
    if name not in installed():
        raise _reported_in_one_line(
            ImportError(
                f"The backend {name} is not installed. Installed here: "
                f"{', '.join(installed()) or 'none'}. Install it with "
                f'`pip install "keras-zoo[{name}]"`, or set `KERAS_BACKEND` to an installed one'
            )
        )


def select() -> None:
    """Sets `KERAS_BACKEND`, unless Keras has been imported and runs on a backend already.

    The variable may name a backend in any case, and as "pytorch" or "tf". Without it, the backend
    of Keras' configuration file is used, which is TensorFlow by default. If that is not installed,
    the first installed one of jax, torch and tensorflow is used, and a line on standard error says
    so.

    Raises:
        ValueError: If the variable names no backend.
        ImportError: If the backend is not installed, or none is.
    """
    if "keras" in sys.modules:
        return
    choice = os.environ.get("KERAS_BACKEND", "").strip().lower()
    if choice:
        choice = _ALIASES.get(choice, choice)
        check_backend(choice)
        os.environ["KERAS_BACKEND"] = choice
        return
    available = installed()
    if _configured() in available:
        os.environ.pop("KERAS_BACKEND", None)  # Keras takes an empty name for a backend's
        return
    if not available:
        raise _reported_in_one_line(
            ImportError(
                "No backend is installed: Keras needs tensorflow, torch or jax. Install one "
                'with `pip install "keras-zoo[jax]"`, or `[torch]` or `[tensorflow]`'
            )
        )
    choice = next(name for name in _BY_PREFERENCE if name in available)
    os.environ["KERAS_BACKEND"] = choice
    others = f"; installed, too: {', '.join(available)}" if len(available) > 1 else ""
    print(f"keras-zoo runs on {choice}, as `KERAS_BACKEND` is not set{others}", file=sys.stderr)


def _configured() -> Any:
    """The backend that Keras' configuration file names; without one, Keras takes TensorFlow."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        return json.loads((Path(home) / "keras.json").read_text()).get("backend", "tensorflow")
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


def _reported_in_one_line(error: Exception) -> Exception:
    """The error, which is printed without a traceback if it ends the program."""
    print_others = sys.excepthook

    def report(kind: Any, uncaught: BaseException, traceback: Any) -> None:
        if uncaught is error:
            print(f"error: {uncaught}", file=sys.stderr)
        else:
            print_others(kind, uncaught, traceback)

    sys.excepthook = report
    return error
