"""Selection of the backend, before Keras is imported and chooses one that may not be installed."""

import importlib.util
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("tensorflow", "torch", "jax")
_BY_PREFERENCE = ("jax", "torch", "tensorflow")
_KERAS_CHOICES = {  # of settings in Keras' configuration
    "floatx": ("float32", "float16", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}
_ALIASES = {"pytorch": "torch", "tf": "tensorflow"}

# Settings that libraries read once, when they are loaded. The user's own are not changed.
_LIBRARY_SETTINGS = {
    # Threads of OpenMP, which PyTorch uses, would wait by spinning. Measured on two cores that had
    # other work, too, in three runs of 300 steps of `mlp` on PyTorch, mean of a step: beside a busy
    # process 74, 44 and 47 ms, with this setting 7, 8 and 4 ms; without that process 9, 17 and
    # 12 ms, with this setting 4, 3 and 5 ms.
    "OMP_WAIT_POLICY": "PASSIVE",
    # TensorFlow's messages from warnings on.
    "TF_CPP_MIN_LOG_LEVEL": "1",
}
_user_wants_messages = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"

# What TensorFlow logs before it reads the level, and without a GPU as an error.
_STARTUP_LINE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)|I\d{4} |"
    rb"E\d{4} .*failed call to cuInit"
)


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
                f"{', '.join(installed()) or 'none'}. Install it with `pip install {name}`, or set "
                "`KERAS_BACKEND` to an installed one"
            )
        )


def select() -> None:
    """Sets `KERAS_BACKEND` and the settings of libraries, unless Keras has been imported already.

    The variable may name a backend in any case, and as "pytorch" or "tf". Without it, the backend
    that Keras' configuration file names is used. If the file names none that is installed, the
    first installed one of jax, torch and tensorflow is used, and a line on standard error says so.

    Raises:
        ValueError: If the variable names no backend, or Keras cannot read its configuration.
        ImportError: If the backend is not installed, or none is.
    """
    if "keras" in sys.modules:
        return
    for variable, setting in _LIBRARY_SETTINGS.items():
        os.environ.setdefault(variable, setting)
    configured = _configuration().get("backend")
    choice = os.environ.get("KERAS_BACKEND", "").strip().lower()
    if choice:
        choice = _ALIASES.get(choice, choice)
        check_backend(choice)
        os.environ["KERAS_BACKEND"] = choice
        return
    available = installed()
    if configured in available:
        os.environ.pop("KERAS_BACKEND", None)  # Keras takes an empty name for a backend's
        return
    if not available:
        raise _reported_in_one_line(
            ImportError(
                "No backend is installed: Keras needs tensorflow, torch or jax. Install one "
                "with `pip install jax`, or `torch` or `tensorflow`"
            )
        )
    choice = next(name for name in _BY_PREFERENCE if name in available)
    os.environ["KERAS_BACKEND"] = choice
    others = [name for name in available if name != choice]
    also = f"; installed, too: {', '.join(others)}" if others else ""
    print(f"keras-zoo runs on {choice}, as `KERAS_BACKEND` is not set{also}", file=sys.stderr)


def selected() -> str | None:
    """The backend that Keras will run on, after `select`."""
    return os.environ.get("KERAS_BACKEND") or _configuration().get("backend")


@contextmanager
def hidden_startup_lines() -> Iterator[None]:
    """Hides TensorFlow's start-up lines on standard error, while a command loads TensorFlow.

    Another process filters what is written, so that the last words before a crash are shown, too.
    In an interactive session, on Windows, and if the user has set `TF_CPP_MIN_LOG_LEVEL` to 0,
    nothing is hidden.
    """
    is_command = sys.argv[:1] == ["-m"] or hasattr(sys.modules["__main__"], "__file__")
    can_hide = is_command and hasattr(os, "fork") and not _user_wants_messages
    if selected() != "tensorflow" or not can_hide:
        yield
        return
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # The child process needs no lock that a thread of this process might hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.close(writer)
            with os.fdopen(reader, "rb") as lines:
                for line in lines:
                    if not _STARTUP_LINE.match(line):
                        os.write(2, line)
        finally:  # whatever happens, this process must not go on as its parent does
            os._exit(0)
    os.close(reader)
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(child, 0)


def _configuration() -> dict[str, Any]:
    """The settings in Keras' configuration file; none if there is no file or it holds no JSON.

    Raises:
        ValueError: If Keras could not be imported with the settings.
    """
    path = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    rule = None
    if not isinstance(settings, dict):
        rule = "must hold a JSON object"
    elif not isinstance(settings.get("epsilon", 1e-7), float):
        rule = "must have a number with a point as `epsilon`"
    else:
        for name, choices in _KERAS_CHOICES.items():
            if settings.get(name, choices[0]) not in choices:
                rule = f"must have one of {', '.join(choices)} as `{name}`"
    if rule is None:
        return dict(settings)
    raise _reported_in_one_line(
        ValueError(
            f"Keras' configuration {path} {rule}. Received: {json.dumps(settings)[:200]}. Correct "
            "the file or remove it"
        )
    )


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
