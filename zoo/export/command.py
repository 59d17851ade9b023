"""Command line of the export: `zoo export`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zoo import cli
from zoo.export.export import TestData, export
from zoo.export.generation import export_generation
from zoo.export.report import ExportReport
from zoo.export.storage import WeightDType
from zoo.parity import html
from zoo.parity.inputs import InputSpec
from zoo.parity.report import write_json


@dataclass(frozen=True)
class Export:
    """Write a model to a file of another runtime, and prove the file in a process without Keras.

    The exit status is 0 if the file is proven, 1 if it differs from the model, and 2 if the proof
    could not be made. Only a proven file is left.
    """

    model: tyro.conf.Positional[str]
    """Model that `list` shows, or name/example; weights that `weights` prints; weights folder;
    directory of a finished run; or package.module:function for a model of your own."""
    format: Literal["onnx", "saved_model", "litert", "pt2", "stablehlo", "safetensors"]
    """Format of the file."""
    out: Path
    """File, or directory of a SavedModel or of the files of --generation."""
    generation: bool = False
    """Write a gpt, a transformer or a trained text_to_image model as the files that generate, to
    the directory --out: prefill and step with caches, or text encoder and U-Net."""
    arguments: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Keyword arguments of the function that builds the model, such as '{"num_classes": 10}'."""
    input: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Dtype, range and shape of an input, such as int32[0,1000):16, for a model that does not
    define its inputs. Once for each input, in order."""
    backends: str | None = None
    """Backends with which the file is compared, such as torch,jax; by default all installed."""
    dtype: WeightDType = "float32"
    """Type in which the file stores the weights; int8 has scales, which safetensors does not."""
    tolerance: float | None = None
    """Largest distance of the outputs relative to their scale; by default 1e-5, or 1e-4 with
    recurrence or attention. With float16 and int8 the largest relative change of outputs and
    metrics; by default 0.002 and 0.1."""
    test_data: TestData = "part"
    """Test data of the metrics of trained weights or a run: a part, which takes seconds, or the
    whole."""
    seed: int = 0
    """Seed of the random inputs."""
    time_limit: float = 600.0
    """Time limit of one task, in seconds."""
    json: Path | None = None
    """JSON file to which the report is written."""
    html: Path | None = None
    """HTML file to which the report is written."""


def run_export(config: Export) -> int:
    """Exports the model, prints the report, writes its files and returns the exit status.

    Raises:
        ValueError: If an argument is invalid or a report cannot be written.
        ImportError: If a package that the format needs is missing.
    """
    try:
        arguments = json.loads(config.arguments)
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(
            "`arguments` must be a JSON object of the builder's arguments. "
            f"Received: arguments={config.arguments}"
        )
    specs = [InputSpec.parse(text)[1] for text in config.input]
    options: dict[str, Any] = {}
    if specs:
        options["inputs"] = specs if len(specs) > 1 else specs[0]
    if specs and config.generation:
        raise ValueError(
            "`input` must not be given with `generation`, whose models define their inputs. "
            f"Received: input={config.input[0]}"
        )
    function: Callable[..., ExportReport] = export_generation if config.generation else export
    console = cli.console()
    with console.status(config.model) as status:
        report = function(
            config.model,
            config.out,
            config.format,
            arguments=arguments or None,
            backends=config.backends.split(",") if config.backends is not None else None,
            dtype=config.dtype,
            tolerance=config.tolerance,
            test_data=config.test_data,
            seed=config.seed,
            time_limit=config.time_limit,
            progress=status.update,
            **options,
        )
    console.print(report)
    line = f"{report.model}: {report.verdict} ({report.seconds:.0f} s)"
    console.print(line, style=("green", "red", "magenta")[report.exit_status])
    try:
        if config.json is not None:
            write_json([report], config.json)
        if config.html is not None:
            config.html.write_text(html.page([report], "Export"), "utf-8")
    except OSError as error:  # must not lead to exit status 1, which means a difference
        raise ValueError(f"Could not write {error.filename}: {error.strerror}") from error
    return report.exit_status
