"""Command line of the cross-backend check: `python -m zoo check` and `python -m zoo report`."""

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
from zoo.parity.case import locate
from zoo.parity.check import Progress, check, parse_rungs
from zoo.parity.inputs import InputSpec
from zoo.parity.report import Report, RungReport, read_json, rung_table, write_json
from zoo.parity.workers import Workers


@dataclass(frozen=True)
class Check:
    """Compare models on the installed backends.

    The exit status is 0 if the backends agree, 1 if they differ, and 2 if a comparison could not be
    made.
    """

    model: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of models that `list` shows, names with an example such as rnn_classifier/lstm, or
    package.module:function for a model of your own."""
    all: bool = False
    """Check every model that `list` shows."""
    rungs: str = "1-10"
    """Numbers of the rungs, such as 1-6 or 2,4: 1 parameters; 2 and 3 outputs of every layer in
    float32 and float64; 4 gradients; 5 optimizer steps; 6 training; 7 state; 8 generated tokens
    and images; 9 checkpoints; 10 compiled, and bfloat16."""
    input_shape: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Shape of one example, such as 32,32,3, for a model that does not define its input shape.
    Once for each input, in order or by name: left=4."""
    input: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Dtype, range and shape of an input, such as int32[0,1000):16 for a model that reads tokens.
    Once for each input, in order or by name: ids:int32[0,1000):16."""
    arguments: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Keyword arguments of the function that builds the model, such as '{"num_classes": 10}'."""
    loss: Literal["mean_squared_error", "cross_entropy"] | None = None
    """Loss of the outputs with random targets; by default the registered loss of a zoo model, else
    mean_squared_error."""
    backends: str | None = None
    """Two or three of tensorflow, torch, jax, such as torch,jax; by default all installed ones."""
    examples: int = 4
    """Batch size."""
    length: int = 8
    """Size of the input axes that the model leaves undefined, such as time steps."""
    steps: int = 10
    """Number of training steps, at least 4."""
    seed: int = 0
    """Seed of the inputs and targets."""
    time_limit: float = 600.0
    """Time limit of one task, in seconds."""
    json: Path | None = None
    """JSON file to which the report is written."""
    html: Path | None = None
    """HTML file to which the report is written, with tables and plots."""
    folder: Path | None = None
    """Folder in which weights, data and every backend's arrays are kept as NumPy files."""


def run_check(config: Check) -> int:
    """Checks the models, prints the tables, writes the reports and returns the exit status.

    Raises:
        ValueError: If an argument is invalid or a report cannot be written.
    """
    # Invalid names raise before any worker starts. A zoo model without example means all of them.
    names = dict.fromkeys(
        example
        for name in [*config.model, *(registry.models if config.all else ())]
        for example in ([name] if ":" in name else registry.examples(name))
    )
    if not names:
        raise ValueError(
            f"Name a model, one of {', '.join(sorted(registry.models))}, or "
            "package.module:function, or give --all"
        )
    for path in (config.json, config.html):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path} to")
    options = _options(config)
    parse_rungs(config.rungs)
    backends = config.backends.split(",") if config.backends else None
    for name in names:
        if ":" in name:
            locate(name)  # before a worker starts, which takes seconds
    console = cli.console()
    reports: list[Report] = []
    with Workers(backends, config.time_limit) as workers:
        for name in names:
            folder = config.folder / re.sub("[:/]", "-", name) if config.folder else None
            with _live_table(console, name) as progress:
                report = check(name, workers=workers, folder=folder, progress=progress, **options)
            console.print(report)
            line = f"{report.model} {report.verdict} ({report.seconds:.0f} s)"
            console.print(line, style=("green", "red", "magenta")[report.exit_status])
            reports.append(report)
    try:
        if config.json is not None:
            write_json(reports, config.json)
        if config.html is not None:
            config.html.write_text(html.page(reports), "utf-8")
    except OSError as error:  # must not lead to exit status 1, which means a difference
        raise ValueError(f"Could not write {error.filename}: {error.strerror}") from error
    statuses = {report.exit_status for report in reports}
    return 1 if 1 in statuses else max(statuses)


def write_page(report: tyro.conf.Positional[Path], page: tyro.conf.Positional[Path]) -> None:
    """Create the HTML page of a report from its JSON file.

    Args:
        report: JSON file that `check --json` wrote.
        page: HTML file to which the page is written.
    """
    page.write_text(html.page(read_json(report)), "utf-8")


def _options(config: Check) -> dict[str, Any]:
    """Converts the command line to arguments of `zoo.parity.check`."""
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
    inputs = [*map(_named_shape, config.input_shape), *map(InputSpec.parse, config.input)]
    names = [name for name, _ in inputs if name]
    if names and len({*names}) < len(inputs):
        raise ValueError(
            "Either all inputs have a name of their own, or none has. "
            f"Received: {' '.join([*config.input_shape, *config.input])}"
        )
    if inputs:
        specs = [spec for _, spec in inputs]
        options["inputs"] = dict(inputs) if names else specs if len(specs) > 1 else specs[0]
    return options


def _named_shape(text: str) -> tuple[str, InputSpec]:
    """Parses "32,32,3" and "name=32,32,3"."""
    name, _, sizes = text.rpartition("=")
    try:
        return name, InputSpec(tuple(int(size) for size in sizes.split(",")))
    except ValueError:
        raise ValueError(
            "`input_shape` must be whole numbers with commas between them, such as 32,32,3. "
            f"Received: input_shape={text}"
        ) from None


@contextmanager
def _live_table(console: Console, name: str) -> Iterator[Progress]:
    """Displays a live table of the finished rungs and a line with the current task."""
    with Live(console=console, transient=True, refresh_per_second=8) as display:

        def show(text: str, rungs: Sequence[RungReport]) -> None:
            spinner = Spinner("dots", text=f"{name}: {text}")
            display.update(Group(rung_table(name, rungs), spinner) if rungs else spinner)

        yield show
