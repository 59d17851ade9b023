"""Trains a diffusion model to draw the digit that a text asks for.

    KERAS_BACKEND=jax python recipes/text_to_image.py --quick --prompt "a handwritten seven"

A classifier confirms the digits: some 93 % with `--quick`, which takes six to nine minutes on two
cores, and all of 1,000 images with the full setting, which takes 50. The same `--run-dir` resumes a
run; a finished run draws another `--prompt`, with another `--prompt-seed`, at once, as `zoo draw`
does.

Source: the document's section "Modèles de Diffusion"; Ho et al., 2020; Ho and Salimans, 2022.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from zoo import backends, cli, text_to_image
from zoo.datasets.images import ImageDataset
from zoo.diffusion import pipeline as pipelines
from zoo.diffusion.auxiliary import (
    build_autoencoder,
    train_autoencoder,
    train_classifier,
    training_images,
)
from zoo.diffusion.config import NUM_STEPS, DiffusionConfig
from zoo.diffusion.losses import DiffusionTrainer, held_out_examples
from zoo.diffusion.metrics import FeatureExtractor
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.diffusion.prompts import (
    DIGITS,
    ClassPrompts,
    WordTokenizer,
    check_prompts,
    prompts_by_class,
)
from zoo.diffusion.report import SamplePreviews, SampleRequest, write_report
from zoo.training import Batches, cluster
from zoo.training.config import open_run
from zoo.training.run_directory import RunDirectory
from zoo.validation import Layers, NonNegative, Seed, Size, validated


@validated
@dataclass(frozen=True, kw_only=True)
class Config(DiffusionConfig):
    """Train a model that draws digits, and draw what a prompt asks for."""

    text_layers: Layers = 1
    """Number of transformer blocks in the text encoder."""
    text_dim: Size = 64
    """Width of a token's vector in the text encoder."""
    guidance_scale: NonNegative = 2.0
    """Weight of the prompt: 0 ignores it, 1 is the weight of training, above 1 strengthens it."""
    prompt: str | None = None
    """Prompt of the image drawn at the end, such as "a handwritten seven"."""
    negative_prompt: str = ""
    """Prompt of what the image must not show."""
    out: Path | None = None
    """File of the image; by default prompt.png in the run directory."""
    prompt_seed: Seed | None = None
    """Seed of the image's noise; by default that of the run."""

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
            pipelines.check_out(self.out)


NOT_RESULTS = ("data_dir", "classifier", "prompt", "negative_prompt", "out", "prompt_seed")


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, draws the prompt, and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    prompts = prompts_by_class()
    tokenizer = WordTokenizer([prompt for of_class in prompts for prompt in of_class])
    if config.prompt is not None:
        check_prompts([config.prompt])
        tokenizer.encode([config.prompt, config.negative_prompt])
    with open_run("text_to_image", config, *NOT_RESULTS, extendable="epochs") as run:
        config.prepare()
        if metrics := run.metrics:
            accuracy = run.result("prompt_accuracy")
            console.print(f"The run in {run.path} is finished: {accuracy:.1%} show their prompt")
        else:
            metrics = train(config, run, ClassPrompts(tokenizer, prompts))
        if config.prompt is not None and cluster.is_first():
            if config.out is None:
                run.lock()  # for prompt.png
            draw(config, run.path, console)
    return metrics


def train(config: Config, run: RunDirectory, prompts: ClassPrompts) -> dict[str, Any]:
    """Trains the network, or resumes its training; writes and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    data = config.load_data()
    check_digits(data)
    autoencoder, shape = build_autoencoder(config, data)
    tokenizer = prompts.tokenizer
    network = text_to_image(
        len(tokenizer), tokenizer.max_length, config.text_layers, hidden_dim=config.text_dim,
        input_shape=shape, **config.network,
    )  # fmt: skip
    config.check(data)
    extractor = FeatureExtractor.load(config.classifier, data) if config.classifier else None
    run.write_config()
    console.print(
        f"{network.count_params():,} parameters, {len(data.x_train):,} images of {data.name}, "
        f"{backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    extractor = extractor or train_classifier(config, run, data, console)
    latents = train_autoencoder(autoencoder, config, run, data) if autoencoder else None
    images, held_out = training_images(data, latents)
    pipeline = DiffusionPipeline(network, config.spec, tokenizer, latents)
    request = SampleRequest(
        config.samples, data.num_classes, config.steps, config.eta, config.seed,
        config.guidance_scale, prompts,
    )  # fmt: skip

    examples = {"image": images, "label": data.y_train}
    batch_size = config.batch_size * config.gradient_accumulation
    batches = Batches(examples, batch_size, seed=config.seed)
    held_out_prompts = prompts.ids[data.y_test[: len(held_out)], 0]
    validation = Batches(held_out_examples(held_out, NUM_STEPS, held_out_prompts))
    trainer = DiffusionTrainer(
        network, pipeline.sampler.diffusion, config.seed, prompts.ids, config.min_snr_gamma
    )
    trainer.compile(config.optimizer(config.epochs * batches.steps_per_epoch))
    checkpoint = run.checkpoint(config.checkpoint_steps, console)
    history = trainer.fit(
        batches,
        epochs=config.epochs,
        validation_data=validation,
        callbacks=[
            keras.callbacks.SwapEMAWeights(),
            SamplePreviews(run, pipeline, request),
            *config.callbacks(),
        ],
        verbose=config.verbose,
        checkpoint=checkpoint,
        gradient_accumulation=config.gradient_accumulation,
    )
    test_loss = trainer.evaluate(validation, verbose=0)

    pipeline.save(run)
    scores = write_report(run, history, pipeline, request, extractor, data, console)
    return run.finish(
        "text_to_image", network, checkpoint.state, console, seed=config.seed,
        train_examples=len(images), epochs=config.epochs, test_loss=test_loss, **scores,
    )  # fmt: skip


def check_digits(data: ImageDataset) -> None:
    """Raises ValueError unless there are ten classes, since prompts name the digits."""
    if data.num_classes != len(DIGITS):
        raise ValueError(
            f"`dataset` must have {len(DIGITS)} classes, the digits. Received: "
            f"dataset={data.name}, which has {data.num_classes}"
        )


def draw(config: Config, folder: Path, console: Console) -> None:
    """Draws the prompt with a finished run."""
    out = config.out or folder / "prompt.png"
    pipelines.sample_to_file(
        DiffusionPipeline.load(folder), [str(config.prompt)], out, console, steps=config.steps,
        guidance_scale=config.guidance_scale, eta=config.eta,
        seed=config.seed if config.prompt_seed is None else config.prompt_seed,
        negative_prompt=config.negative_prompt,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
