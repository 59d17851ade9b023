"""Commands that use trained models: weights, card, classify, generate, translate, draw, next-word.

Each model command takes `--weights NAME`, or `--run-dir DIR` for a finished run.
"""

from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.table import Table

from zoo import cli, tasks
from zoo.diffusion import pipeline
from zoo.files.weights import PACKED, WeightsFolder, open_saved, packed_names, shown
from zoo.generation.completion import TextGenerator
from zoo.tasks import ImageClassifier, ImageSampler, NextWord, Task, TextCompletion, Translator
from zoo.validation import (
    Beams,
    NewTokens,
    NonNegative,
    Probability,
    Seed,
    Size,
    Timesteps,
    validated,
)

T = TypeVar("T", bound=Task)

# The weights of each command without `--weights` and `--run-dir`, and the recipe that trains them.
DEFAULTS = {
    "classify": ("cnn_48x48-mnist", "mnist"),
    "generate": ("gpt-shakespeare", "shakespeare"),
    "translate": ("transformer-eng-spa", "translate"),
    "draw": ("text_to_image-mnist", "text_to_image"),
    "next-word": ("lstm-shakespeare", "next_word"),
}


def list_weights() -> None:
    """Print the trained weights in the package."""
    table = Table("weights", "parameters", "MB", "data", "metrics", "licence")
    for name in packed_names():
        folder = WeightsFolder(PACKED / name)
        card = folder.card
        size = sum(record.bytes for record in card.files.values()) / 1e6
        metrics = next((_format(metrics.whole) for metrics in card.metrics.values()), "")
        table.add_row(
            name, f"{card.parameters:,}", f"{size:.1f}", card.data.name, metrics, card.licence
        )
    cli.console().print(table)


def print_card(name: tyro.conf.Positional[str]) -> None:
    """Print the card of trained weights: architecture, data, training, metrics, limits, licence.

    Args:
        name: Name that `weights` prints, or a weights folder.
    """
    saved = open_saved(name, argument="name")
    if not isinstance(saved, WeightsFolder):
        raise ValueError(f"`name` must be that of weights with a card. Received: the run {name}")
    table = Table(show_header=False, title=name)
    for key, value in saved.card.model_dump().items():
        if key == "metrics":
            for backend, metrics in value.items():
                table.add_row(f"metrics, {backend}", _format(metrics["whole"]))
                table.add_row("on a part of the data", _format(metrics["part"]))
        elif key == "files":
            for file, record in value.items():
                table.add_row(file, f"{record['bytes']:,} bytes, SHA-256 {record['sha256']}")
        elif isinstance(value, dict):
            rows = (f"{name}: {item}" for name, item in value.items())
            table.add_row(key, "\n".join(rows))
        elif value is not None:
            separator = ", " if key == "labels" else "\n"
            table.add_row(key, separator.join(value) if isinstance(value, list) else str(value))
    cli.console().print(table)


@validated
def classify(
    image: tyro.conf.Positional[Path],
    weights: str | None = None,
    run_dir: Path | None = None,
    top: Size = 5,
) -> None:
    """Classify an image file with a model trained by the recipe mnist.

    Args:
        image: Image file of any size and mode.
        weights: Name that `weights` prints, or a weights folder; by default cnn_48x48-mnist.
        run_dir: Run directory of a model of your own.
        top: Largest number of classes to print.
    """
    task = _load(ImageClassifier, "classify", weights, run_dir)
    for label, probability in task.classify(image, top):
        cli.console(highlight=False).print(f"{probability:6.1%}  {label}")


@validated
def generate(
    prompt: tyro.conf.Positional[str],
    weights: str | None = None,
    run_dir: Path | None = None,
    tokens: NewTokens = 300,
    temperature: NonNegative = 0.8,
    seed: Seed = 0,
) -> None:
    """Continue a text with a language model trained by the recipe shakespeare or next_word.

    Args:
        prompt: Beginning of the text.
        weights: Name that `weights` prints, or a weights folder; by default gpt-shakespeare.
        run_dir: Run directory of a model of your own.
        tokens: Largest number of tokens to generate.
        temperature: 1 samples from the model's distribution, less favours likelier tokens, 0
            decodes greedily.
        seed: Seed of the sampled tokens; the same text on every backend.
    """
    task = _load(TextCompletion, "generate", weights, run_dir)
    generator = TextGenerator(task.tokenizer, prompt, seed, temperature)
    generator.print_text(task.model, cli.console(), tokens)


@validated
def predict_next_word(
    prompt: tyro.conf.Positional[str],
    weights: str | None = None,
    run_dir: Path | None = None,
    top: Size = 5,
) -> None:
    """Print the most probable next words with a model trained by the recipe next_word.

    Args:
        prompt: Text before the next word.
        weights: Name that `weights` prints, or a weights folder; by default lstm-shakespeare.
        run_dir: Run directory of a model of your own.
        top: Number of words to print.
    """
    task = _load(NextWord, "next-word", weights, run_dir)
    for word, probability in task.next_words(prompt, top):
        cli.console(highlight=False).print(f"{probability:6.1%}  {word}")


@validated
def translate(
    sentence: tyro.conf.Positional[str],
    weights: str | None = None,
    run_dir: Path | None = None,
    num_beams: Beams = 4,
) -> None:
    """Translate an English sentence into Spanish with a model trained by the recipe translate.

    Args:
        sentence: Sentence to translate.
        weights: Name that `weights` prints, or a weights folder; by default transformer-eng-spa.
        run_dir: Run directory of a model of your own.
        num_beams: Number of beams of the beam search.
    """
    task = _load(Translator, "translate", weights, run_dir)
    (translation,) = task.translate([sentence], num_beams)
    cli.console(highlight=False, soft_wrap=True).print(translation)


@validated
def draw(
    prompt: tyro.conf.Positional[str | None] = None,
    weights: str | None = None,
    run_dir: Path | None = None,
    out: Path = Path("drawn.png"),
    count: Size = 1,
    steps: Timesteps = 50,
    guidance_scale: NonNegative = 2.0,
    negative_prompt: str = "",
    eta: Probability = 0.0,
    seed: Seed = 0,
) -> None:
    """Sample images of a prompt with a diffusion model trained by the recipe text_to_image.

    A model trained by the recipe diffusion samples images without a prompt.

    Args:
        prompt: Prompt, such as "a handwritten seven".
        weights: Name that `weights` prints, or a weights folder; by default text_to_image-mnist.
        run_dir: Run directory of a model of your own.
        out: File of the image.
        count: Number of images, side by side.
        steps: Number of sampling steps.
        guidance_scale: Weight of the prompt: 0 ignores it, 1 is the weight of training, above 1
            strengthens it.
        negative_prompt: Prompt of what the images must not show.
        eta: 0 samples with DDIM, 1 with DDPM's steps.
        seed: Seed of the noise; the same image on every backend.
    """
    diffusion = _load(ImageSampler, "draw", weights, run_dir).pipeline
    if (prompt is None) != (diffusion.tokenizer is None):
        raise ValueError(
            f"`prompt` must be given to a model that reads prompts, and to no other. Received: "
            f"prompt={prompt!r} for {diffusion.model.name}"
        )
    pipeline.sample_to_file(
        diffusion, count if prompt is None else [prompt] * count, out, cli.console(), steps=steps,
        guidance_scale=guidance_scale, negative_prompt=negative_prompt, eta=eta, seed=seed,
    )  # fmt: skip


COMMANDS: dict[str, Any] = {
    "weights": list_weights,
    "card": print_card,
    "classify": classify,
    "generate": generate,
    "next-word": predict_next_word,
    "translate": translate,
    "draw": draw,
}


def _load(kind: type[T], command: str, weights: str | None, run_dir: Path | None) -> T:
    """Loads the model of a command.

    Raises:
        ValueError: If both a name and a run directory are given, neither is and the package has no
            default, or the model is for another command.
    """
    default, recipe = DEFAULTS[command]
    if weights is not None and run_dir is not None:
        raise ValueError(
            "`weights` and `run_dir` must not be given together. Received: "
            f"weights={weights!r}, run_dir={str(run_dir)!r}"
        )
    source = weights or (run_dir and run_dir.absolute()) or default
    if source == default and default not in packed_names():
        raise ValueError(
            f"`weights` or `run_dir` must be given, since this package has no {default}. Received: "
            f"neither. The package has {', '.join(packed_names())}; `zoo train {recipe} --run-dir "
            "DIR` trains a model for `--run-dir DIR`"
        )
    argument = "weights" if run_dir is None else "run_dir"
    task = tasks.load(source, argument)
    if not isinstance(task, kind):
        raise ValueError(
            f"`{argument}` must hold a model for `zoo {command}`, as `zoo train {recipe}` trains "
            f"it. Received: {source}, a {task.model.name}"
        )
    return task


def _format(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {shown(name, value)}" for name, value in metrics.items())
