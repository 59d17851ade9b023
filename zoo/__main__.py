"""Command line of keras-zoo: list, show, train, use and export models, and compare the backends."""

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tyro
from rich.table import Table

import zoo_command
from zoo import cli, registry, summary
from zoo.export import command as export_command
from zoo.parity import command
from zoo.tasks.command import COMMANDS


def show(name: tyro.conf.Positional[str]) -> None:
    """Print a model's layers with output shapes and the arithmetic of each parameter count.

    The builder's arguments may follow: `show cnn_48x48 --num-classes 43`; `show cnn_48x48 --help`
    lists them.

    Args:
        name: Model that `list` prints.
    """
    show_model(registry.get(name).build())


def show_model(model: keras.Model) -> None:
    """Prints the table of a built model."""
    table = Table("layer", "kind", "output", "parameters", "", title=model.name)
    for name, kind, shape, formula, count in summary.rows(model):
        table.add_row(name, kind, shape, formula, f"{count:,}" if count else "")
    table.columns[-1].justify = "right"
    table.add_section()
    table.add_row("total", "", "", "", f"{model.count_params():,}")
    cli.console().print(table)


def train(name: tyro.conf.Positional[str]) -> None:
    """Run a recipe: train a model, or resume its training.

    The recipe's own flags follow: `train mnist --quick`; `train mnist --help` lists them.

    Args:
        name: Recipe that `train --help` lists.
    """
    run_recipe(name, [])


def recipes() -> dict[str, str]:
    """The first line of each recipe, by name.

    Raises:
        ImportError: If the recipes are not installed.
    """
    package = importlib.util.find_spec("zoo.recipes")
    if package is None or package.origin is None:
        raise ImportError(
            "The recipes are not installed with this copy of zoo. Install the package with pip, or "
            "run `python recipes/NAME.py` in a clone"
        )
    files = sorted(Path(package.origin).parent.glob("[a-z]*.py"))
    sources = {path.stem: path.read_text("utf-8") for path in files}
    docstrings = {name: ast.get_docstring(ast.parse(text)) for name, text in sources.items()}
    return {name: str(text).partition("\n")[0] for name, text in docstrings.items()}


def run_recipe(name: str, arguments: Sequence[str]) -> int | None:
    """Runs a recipe with its flags.

    Raises:
        ValueError: If there is no such recipe. The text lists all names.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"`recipe` must be one of {', '.join(known)}. Received: recipe={name}")
    recipe: Any = importlib.import_module(f"zoo.recipes.{name}")
    status = cli.run_recipe(recipe.main, recipe.Config, arguments, f"zoo train {name}")
    return status if isinstance(status, int) else None


def list_models() -> None:
    """Print every model with its parameter count, document section and recipe."""
    zoo_command.print_from_catalogue(["list"])


_COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_models,
    "show": show,
    "train": train,
    **COMMANDS,
    "check": command.Check,
    "report": command.write_page,
    "export": export_command.Export,
}


def catalogue() -> dict[str, list[tuple[str, ...]]]:
    """The lines of `zoo --help`, `zoo list` and `zoo train --help`, printed without Keras."""
    return {
        "commands": [(name, _summary(function)) for name, function in _COMMANDS.items()],
        "models": [
            (name, f"{entry.parameter_count():,}", entry.parameter_formula, entry.section,
             entry.recipe)
            for name, entry in registry.models.items()
        ],
        "recipes": list(recipes().items()),
    }  # fmt: skip


def _summary(function: Callable[..., Any]) -> str:
    return str(inspect.getdoc(function)).partition("\n")[0]


def main(arguments: Sequence[str]) -> int | None:
    """Runs a command; `show NAME` and `train NAME` pass the other arguments on."""
    if zoo_command.print_from_catalogue(arguments):
        return None
    command_name, *rest = arguments
    if command_name == "show" and rest and not rest[0].startswith("-"):
        name, *rest = rest
        show_model(tyro.cli(registry.get(name).build, args=rest, prog=f"zoo show {name}"))
        return None
    if command_name == "train" and rest:
        return run_recipe(rest[0], rest[1:])
    chosen = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS, args=arguments, prog="zoo", description=__doc__
    )
    if isinstance(chosen, export_command.Export):
        return export_command.run_export(chosen)
    return command.run_check(chosen) if isinstance(chosen, command.Check) else None


def entry_point() -> int:
    """Runs a command and returns its exit status, for `python -m zoo` and `zoo_command`."""
    return cli.run(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(entry_point())
