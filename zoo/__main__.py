"""python -m zoo: what models there are, what they are made of, whether the backends agree."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tyro
from rich.table import Table

from zoo import cli, registry, summary
from zoo.diffusion import pipeline
from zoo.generation import completion
from zoo.parity import command
from zoo.validation import check_sizes


def list_models() -> None:
    """Print every model with its parameter count, document section and recipe."""
    table = Table("model", "parameters by default", "in general", "section", "recipe")
    for name, entry in registry.models.items():
        count, formula = f"{entry.parameter_count():,}", entry.parameter_formula
        table.add_row(name, count, formula, entry.section, entry.recipe)
    cli.console().print(table)


def show(name: tyro.conf.Positional[str]) -> None:
    """Print a model's layers with output shapes and the arithmetic of each parameter count.

    The builder's arguments may follow: `show cnn_48x48 --num-classes 43`; `show cnn_48x48 --help`
    lists them.

    Args:
        name: a model that `list` shows.
    """
    show_model(registry.get(name).build())


def generate(
    run_dir: Path,
    prompt: str,
    tokens: int = 300,
    temperature: float | None = None,
    seed: int = 0,
) -> None:
    """Write a text with a model that recipes/shakespeare.py or recipes/next_word.py has trained.

    One that recipes/translate.py has trained translates the prompt.

    Args:
        run_dir: the directory of its run.
        prompt: what the text begins with.
        tokens: how many are to come at most.
        temperature: 1 draws as the model predicts, less from its likelier tokens, by default 0.8; 0
            takes the likeliest, which is the default of a translation.
        seed: of the draws; the same text on every backend.
    """
    model, vocabulary = completion.load_run(run_dir)
    writer = completion.TextGenerator(vocabulary, prompt, seed, temperature)
    writer.print_text(model, cli.console(), tokens)


def draw(
    run_dir: Path,
    prompt: str | None = None,
    out: Path = Path("drawn.png"),
    count: int = 1,
    steps: int = 50,
    guidance_scale: float = 3.0,
    negative_prompt: str = "",
    eta: float = 0.0,
    seed: int = 0,
) -> None:
    """Draw what a text asks for, with a model that recipes/text_to_image.py has trained.

    One that recipes/diffusion.py has trained draws without being asked.

    Args:
        run_dir: the directory of its run.
        prompt: such as "a handwritten seven".
        out: where the image goes.
        count: images to draw, side by side.
        steps: from noise to an image.
        guidance_scale: 0 does not ask for the prompt, 1 asks for it, more insists.
        negative_prompt: what is not to be drawn.
        eta: 0 draws with DDIM, 1 with DDPM's steps.
        seed: of the noise; the same image on every backend.
    """
    check_sizes(count=count)
    diffusion = pipeline.DiffusionPipeline.load(run_dir)
    if (prompt is None) != (diffusion.tokenizer is None):
        raise ValueError(
            f"`prompt` must be given to a model that reads prompts, and to no other. Received: "
            f"prompt={prompt!r} for {diffusion.model.name}"
        )
    pipeline.sample_to_file(
        diffusion, count if prompt is None else [prompt] * count, out, cli.console(), steps=steps,
        guidance_scale=guidance_scale, negative_prompt=negative_prompt, eta=eta, seed=seed,
    )  # fmt: skip


def show_model(model: keras.Model) -> None:
    """Prints the table for a model that is built."""
    table = Table("layer", "kind", "output", "parameters", "", title=model.name)
    for name, kind, shape, arithmetic, count in summary.rows(model):
        table.add_row(name, kind, shape, arithmetic, f"{count:,}" if count else "")
    table.columns[-1].justify = "right"
    table.add_section()
    table.add_row("total", "", "", "", f"{model.count_params():,}")
    cli.console().print(table)


def main(arguments: Sequence[str]) -> int | None:
    """Parses the command line; `show NAME` hands the rest on to the builder's own arguments."""
    if len(arguments) > 1 and arguments[0] == "show" and not arguments[1].startswith("-"):
        name, *rest = arguments[1:]
        show_model(tyro.cli(registry.get(name).build, args=rest, prog=f"python -m zoo show {name}"))
        return None
    commands: dict[str, Callable[..., Any]] = {
        "list": list_models,
        "show": show,
        "generate": generate,
        "draw": draw,
        "check": command.Check,
        "report": command.write_page,
    }
    chosen = tyro.extras.subcommand_cli_from_dict(
        commands, args=arguments, prog="python -m zoo", description=__doc__
    )
    return command.run_check(chosen) if isinstance(chosen, command.Check) else None


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
