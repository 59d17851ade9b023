"""Trains a diffusion model to draw the digit that a text asks for.

    KERAS_BACKEND=jax python recipes/text_to_image.py --quick --prompt "a handwritten seven"

A classifier, trained by recipes/mnist.py, confirms what is drawn: some 93 % with `--quick`, which
takes six to nine minutes on two cores, and all of 1,000 images with the full setting, which takes
50. The same `--run-dir` goes on where it stopped; a finished run draws another `--prompt`, with
another `--prompt-seed`, at once, as `python -m zoo draw` does.

Source: the document's section "Modèles de Diffusion"; Ho et al., 2020; Ho and Salimans, 2022.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from zoo import backends, cli, random, text_to_image
from zoo.datasets.images import ImageDataset
from zoo.diffusion import pipeline
from zoo.diffusion.config import DiffusionConfig, Prompts, train
from zoo.diffusion.prompts import DIGITS, WordTokenizer, check_prompts, prompts_by_class
from zoo.training.run_directory import open_run


@dataclass(frozen=True, kw_only=True)
class Config(DiffusionConfig):
    """Train a model that draws digits, and draw what a prompt asks for."""

    text_layers: int = 1
    """Blocks of the text encoder."""
    text_dim: int = 64
    """Width of a token's vector in it."""
    guidance_scale: float = 3.0
    """How much the prompt matters: 0 not at all, 1 as in training, more insists."""
    prompt: str | None = None
    """What is to be drawn at the end, such as "a handwritten seven"."""
    negative_prompt: str = ""
    """What is not to be in it."""
    out: Path | None = None
    """Where that image goes; by default prompt.png in the run directory."""
    prompt_seed: int | None = None
    """Of its noise; by default that of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is None and (
            self.negative_prompt or self.out or self.prompt_seed is not None
        ):
            raise ValueError(
                "`prompt` must be given for `negative_prompt`, `out` and `prompt_seed` to matter. "
                "Received: prompt=None"
            )
        if self.out is not None:
            pipeline.check_out(self.out)
        if self.prompt_seed is not None:
            random.key(self.prompt_seed)  # refuses what it must


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, draws what is asked for, and returns the metrics."""
    console = cli.console()
    run = open_run(
        "text_to_image",
        config,
        "data_dir",
        "classifier",
        "prompt",
        "negative_prompt",
        "out",
        "prompt_seed",
    )
    if config.deterministic:
        backends.backend.make_deterministic()
    vocabulary = WordTokenizer([prompt for prompts in prompts_by_class() for prompt in prompts])
    if config.prompt is not None:
        check_prompts([config.prompt])
        vocabulary.encode([config.prompt, config.negative_prompt])
    metrics = run.metrics
    if metrics:
        console.print(
            f"The run in {run.path} is finished: {metrics['prompt_accuracy']:.1%} of its images "
            "are what was asked for"
        )
    else:
        data = config.load_data()
        check_digits(data)
        build = partial(
            text_to_image, len(vocabulary), vocabulary.max_length, config.text_layers,
            hidden_dim=config.text_dim,
        )  # fmt: skip
        metrics = train(
            "text_to_image", config, run, data, build,
            Path(__file__).with_name("mnist.py"), console,
            Prompts(vocabulary, prompts_by_class()), config.guidance_scale,
        )  # fmt: skip
    if config.prompt is not None:
        draw(config, run.path, console)
    return metrics


def check_digits(data: ImageDataset) -> None:
    """Raises ValueError unless there are ten classes, which prompts call by the digits' names."""
    if data.num_classes != len(DIGITS):
        raise ValueError(
            f"`dataset` must have {len(DIGITS)} classes, the digits. Received: "
            f"dataset={data.name}, which has {data.num_classes}"
        )


def draw(config: Config, folder: Path, console: Console) -> None:
    """Draws the prompt with a finished run."""
    out = config.out or folder / "prompt.png"
    pipeline.sample_to_file(
        pipeline.DiffusionPipeline.load(folder), [str(config.prompt)], out, console, steps=config.steps,
        guidance_scale=config.guidance_scale, eta=config.eta,
        seed=config.seed if config.prompt_seed is None else config.prompt_seed,
        negative_prompt=config.negative_prompt,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
