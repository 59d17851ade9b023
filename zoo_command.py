"""Console command `zoo`: what comes before Keras is imported, which takes seconds.

    zoo list
    zoo check mymodels:build_model

Lists and help texts are printed without it, from `zoo/data/catalogue.json`, which
`python -m benchmarks.results` writes. A mistyped address of a model is found at once, and Ctrl-C
ends the import with one line. The command is a module outside the package, because importing `zoo`
imports Keras. So does `python -m zoo`.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

CATALOGUE = Path(__file__).parent / "zoo" / "data" / "catalogue.json"

_HELP: tuple[list[str], ...] = ([], ["-h"], ["--help"])
_ADDRESS = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_skips_extras = False

# With one of these, a module may have attributes that its source does not show.
_DYNAMIC = {"*", "__getattr__", "exec", "globals", "setattr", "vars"}


def entry_point() -> int:
    """Runs the command line of keras-zoo and returns its exit status."""
    sys.path.insert(0, "")  # as `python -m zoo` does, so that `check` finds the user's modules
    _prepare()
    skip_extras_of_keras()
    from zoo.__main__ import entry_point as run

    return run()


def _prepare() -> None:
    """Answers what needs no Keras, checks addresses, and lets Ctrl-C end the import with a line."""
    if print_from_catalogue(sys.argv[1:]):
        sys.exit(0)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    _check_addresses()


def _stop(*_: Any) -> None:
    """Ends the process. A KeyboardInterrupt within a backend's C++ code could be lost or abort."""
    os.write(2, b"error: Stopped\n")
    os._exit(130)


def skip_extras_of_keras() -> None:
    """Lets `zoo` import Keras without the extras that neither a command nor a worker uses.

    A fourth of the import's time goes to libraries of its wrappers for scikit-learn, its plots and
    its Orbax checkpoints. Whoever else needs these libraries imports them as ever.
    """
    global _skips_extras
    _skips_extras = True


@contextmanager
def extras_skipped(backend: str | None) -> Iterator[None]:
    """Context manager of Keras' import; hides libraries if `skip_extras_of_keras` was called.

    Args:
        backend: Name of the backend that Keras runs on.
    """
    libraries = {"jax", "matplotlib", "sklearn"} - {backend} - sys.modules.keys()
    hidden: dict[str, Any] = dict.fromkeys(libraries if _skips_extras else ())
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def restore_interrupts() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again, once all is imported."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def print_from_catalogue(arguments: Sequence[str]) -> bool:
    """Prints the commands, the models or the recipes if that is what the arguments ask for.

    Returns:
        Whether they do.
    """
    command, *rest = arguments or ["--help"]
    if [command] in _HELP:
        _print_table(("command", ""), "commands", "zoo COMMAND [--help]")
    elif command == "train" and rest in _HELP[1:]:
        _print_table(("recipe", ""), "recipes", "zoo train RECIPE [flags]")
    elif command == "list" and not rest:
        head = "model", "parameters by default", "in general", "section", "recipe"
        _print_table(head, "models")
    else:
        return False
    return True


def _print_table(head: Sequence[str], part: str, title: str | None = None) -> None:
    from rich.table import Table

    rows = json.loads(CATALOGUE.read_text("utf-8"))[part]
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def console(**options: Any) -> Console:
    """A console on standard output that prints text as it is; in a pipe or file, 160 columns wide.

    Args:
        **options: Further options of Rich's `Console`.
    """
    from rich.console import Console

    options |= {"markup": False, "emoji": False}  # a path may look like markup
    terminal = Console(**options)
    return terminal if terminal.is_terminal else Console(width=160, **options)


def _check_addresses() -> None:
    try:
        for address in _addresses(sys.argv[1:]):
            check_address(address)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def check_address(address: str) -> None:
    """Looks for the module and the name of "package.module:function" without importing anything.

    What only an import can tell, such as the names of a package, is not checked.

    Raises:
        ValueError: If there is no such module, or its source does not contain the name.
    """
    module_name, _, name = address.partition(":")
    try:
        spec = _find_module(module_name, address)
    except (AttributeError, ImportError, KeyError):  # a finder that needs the parent's import
        return
    if spec is None or spec.submodule_search_locations is not None:
        return
    get_source = getattr(spec.loader, "get_source", None)
    try:
        tree = ast.parse(get_source(module_name) or "" if get_source else "")
    except (ImportError, SyntaxError):  # the import tells what is wrong
        return
    names = {name for node in ast.walk(tree) for name in _names(node)}
    first = name.partition(".")[0]
    if tree.body and first not in names and not names & _DYNAMIC:
        definitions = (ast.FunctionDef, ast.ClassDef)
        functions = [node.name for node in tree.body if isinstance(node, definitions)]
        raise missing_attribute(first, module_name, functions, address)


def missing_module(module_name: str, address: str) -> ValueError:
    """The error of an address whose module does not exist."""
    return ValueError(
        f"There is no module {module_name} in this folder or among the installed packages. "
        f"Received: {address}"
    )


def missing_attribute(
    name: str, module_name: str, functions: Sequence[str], address: str
) -> ValueError:
    """The error of an address whose module lacks the attribute and has other functions."""
    public = ", ".join(function for function in functions if not function.startswith("_"))
    return ValueError(
        f"There is no {name} in {module_name}, which has {public or 'no functions'}. "
        f"Received: {address}"
    )


def _addresses(arguments: Sequence[str]) -> Iterator[str]:
    """The addresses of models in `check ...` and `export ...`, without the values of flags."""
    if arguments[:1] in (["check"], ["export"]):
        for previous, argument in itertools.pairwise(arguments):
            if _ADDRESS.fullmatch(argument) and not previous.startswith("-"):
                yield argument


def _find_module(module_name: str, address: str) -> ModuleSpec | None:
    """The specification of a module, by the finders that an import asks; None if unknown.

    Raises:
        ValueError: If no finder knows the module or one of its packages.
    """
    spec: ModuleSpec | None = None
    name = ""
    for part in module_name.split("."):
        if spec is not None and spec.submodule_search_locations is None:
            return None  # such as `os.path`, which only the import of `os` provides
        path = None if spec is None else list(spec.submodule_search_locations or ())
        name = f"{name}.{part}" if name else part
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((candidate for candidate in specs if candidate is not None), None)
        if spec is None:
            raise missing_module(name, address)
    return spec


def _names(node: ast.AST) -> Iterator[str]:
    """Names that a part of a syntax tree defines or uses."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr


# The package imports this module first. For `python -m zoo`, "-m" is then in the place of the
# program's path.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == "zoo":
    _prepare()
    skip_extras_of_keras()
