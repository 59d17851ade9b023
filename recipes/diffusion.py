"""Trains a diffusion model on images, and samples others like them.

    KERAS_BACKEND=jax python recipes/diffusion.py --quick

`--quick` takes some six minutes on two cores; `--latent` works in an autoencoder's latent space. A
classifier measures how similar the samples are to real images. The same `--run-dir` resumes a run;
then `zoo draw --run-dir DIR --out images.png` samples more.

Source: the document's section "Modèles de Diffusion"; Ho et al., 2020.
"""

import sys
from dataclasses import dataclass
from typing import Any

import keras
from rich.console import Console

from zoo import backends, cli, unet
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
from zoo.diffusion.report import SamplePreviews, SampleRequest, write_report
from zoo.training import Batches
from zoo.training.config import open_run
from zoo.training.run_directory import RunDirectory
from zoo.validation import validated


@validated
@dataclass(frozen=True, kw_only=True)
class Config(DiffusionConfig):
    """Train a model that samples images like those of a data set."""


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    with open_run("diffusion", config, "data_dir", "classifier", extendable="epochs") as run:
        if metrics := run.metrics:
            distance = run.result("frechet_distance")
            console.print(f"The run in {run.path} is finished: Fréchet distance {distance:.2f}")
            return metrics
        config.prepare()
        return train(config, run, console)


def train(config: Config, run: RunDirectory, console: Console) -> dict[str, Any]:
    """Trains the network, or resumes its training; writes and returns the metrics."""
    data = config.load_data()
    autoencoder, shape = build_autoencoder(config, data)
    network = unet(input_shape=shape, **config.network)
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
    pipeline = DiffusionPipeline(network, config.spec, latent_scaler=latents)
    request = SampleRequest(config.samples, data.num_classes, config.steps, config.eta, config.seed)

    batch_size = config.batch_size * config.gradient_accumulation
    batches = Batches({"image": images}, batch_size, seed=config.seed)
    validation = Batches(held_out_examples(held_out, NUM_STEPS))
    trainer = DiffusionTrainer(
        network, pipeline.sampler.diffusion, config.seed, min_snr_gamma=config.min_snr_gamma
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
        "diffusion", network, checkpoint.state, console, seed=config.seed,
        train_examples=len(images), epochs=config.epochs, test_loss=test_loss, **scores,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
