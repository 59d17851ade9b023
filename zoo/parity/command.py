"""`python -m zoo check`: the check on the command line, with a live table."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner

from zoo import cli, registry
from zoo.parity import html
from zoo.parity.check import Progress, check, parse_rungs
from zoo.parity.report import Report, RungReport, read_json, rung_table, write_json
from zoo.parity.workers import Workers


@dataclass(frozen=True)
class Check:
    """Check that models are the same on the backends that are installed.

    The exit status is 0 if they are, 1 if something differs, 2 if something could not be checked.
    """

    model: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names that `list` shows (of rnn_classifier/lstm and its like, also one alone), or
    package.module:function for a model of your own."""
    all: bool = False
    """Every model that `list` shows."""
    rungs: str = "1-10"
    """What to compare: 1 parameters; 2 and 3 outputs of every layer in float32 and float64;
    4 gradients; 5 optimizer steps; 6 training; 7 state; 8 generated tokens and images;
    9 checkpoints; 10 compiled, and bfloat16."""
    input_shape: str | None = None
    """Of one example, such as 32,32,3, for a model that does not say it itself."""
    arguments: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """For the function that builds the model, such as '{"num_classes": 10}'."""
    loss: Literal["mean_squared_error", "cross_entropy"] | None = None
    """Of the outputs against random targets; by default the model's own, else the first."""
    backends: str | None = None
    """Two or three of tensorflow, torch, jax, such as torch,jax; by default all installed."""
    examples: int = 4
    """The batch."""
    length: int = 8
    """Of input axes that the model leaves open, such as a sequence's."""
    steps: int = 10
    """Of training."""
    seed: int = 0
    """Of inputs and targets."""
    time_limit: float = 600.0
    """Seconds that a worker may take for a task."""
    json: Path | None = None
    """Write the report here."""
    html: Path | None = None
    """Write it here as a page with tables and plots; it opens without a network."""
    folder: Path | None = None
    """Keep weights, data and every backend's arrays here as NumPy files."""


def run(config: Check) -> int:
    """Checks, shows, writes; returns the exit status."""
    # Wrong names are told before anything starts; one of the zoo's stands for all its examples.
    names = dict.fromkeys(
        example
        for name in [*config.model, *(registry.models if config.all else ())]
        for example in ([name] if ":" in name else registry.examples(name))
    )
    if not names:
        raise ValueError(
            f"Name a model, one of {', '.join(registry.models)}, or package.module:function, or "
            "give --all"
        )
    for path in (config.json, config.html):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path} to")
    options = _options(config)
    parse_rungs(config.rungs)
    backends = config.backends.split(",") if config.backends else None
    console = cli.console()
    reports: list[Report] = []
    with Workers(backends, config.time_limit) as workers:
        for name in names:
            folder = config.folder / re.sub("[:/]", "-", name) if config.folder else None
            with _live(console, name) as progress:
                report = check(name, workers=workers, folder=folder, progress=progress, **options)
            console.print(report)
            line = f"{report.model} {report.verdict} ({report.seconds:.0f} s)"
            console.print(line, style=("green", "red", "magenta")[report.exit_status])
            reports.append(report)
    try:
        if config.json is not None:
            write_json(reports, config.json)
        if config.html is not None:
            config.html.write_text(html.page(reports))
    except OSError as error:  # which is not that the backends differ
        raise ValueError(f"Could not write {error.filename}: {error.strerror}") from error
    statuses = {report.exit_status for report in reports}
    return 1 if 1 in statuses else max(statuses)


def rewrite(report: tyro.conf.Positional[Path], page: tyro.conf.Positional[Path]) -> None:
    """Make the HTML page of a report from its JSON.

    Args:
        report: a file that `check --json` wrote.
        page: where the page goes.
    """
    page.write_text(html.page(read_json(report)))


def _options(config: Check) -> dict[str, Any]:
    """The arguments of `check`."""
    options: dict[str, Any] = {
        key: getattr(config, key) for key in ("rungs", "examples", "length", "steps", "seed")
    }
    if config.loss is not None:
        options["loss"] = config.loss
    try:
        options["arguments"] = json.loads(config.arguments)
    except json.JSONDecodeError:
        options["arguments"] = None
    if not isinstance(options["arguments"], dict):
        raise ValueError(
            "`arguments` must be a JSON object of the builder's arguments. "
            f"Received: arguments={config.arguments}"
        )
    if config.input_shape is not None:
        try:
            options["input_shape"] = tuple(int(size) for size in config.input_shape.split(","))
        except ValueError:
            raise ValueError(
                "`input_shape` must be whole numbers with commas between them, such as 32,32,3. "
                f"Received: input_shape={config.input_shape}"
            ) from None
    return options


@contextmanager
def _live(console: Console, name: str) -> Iterator[Progress]:
    """A table that fills up, with a line on what is being done."""
    with Live(console=console, transient=True, refresh_per_second=8) as live:

        def show(text: str, rungs: Sequence[RungReport]) -> None:
            spinner = Spinner("dots", text=f"{name}: {text}")
            live.update(Group(rung_table(name, rungs), spinner) if rungs else spinner)

        yield show
