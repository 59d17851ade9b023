"""The models that a diffusion run trains beside its own: a classifier, and an autoencoder."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from zoo.backends import backend
from zoo.datasets.images import ImageDataset
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.losses import reconstruction_objective
from zoo.training import batches, trainer
from zoo.training.optimizers import Adam, learning_rate_schedule
from zoo.training.run_directory import RunDirectory

MEASURED = 5000  # training images that say what latents are usual
HELD_OUT = 512  # test images that the validation loss is of


def train_classifier(mnist: Path, settings: Any, folder: Path) -> None:
    """Has recipes/mnist.py train a classifier; it goes on where it was stopped, or is done at once.

    Args:
        mnist: the recipe's path.
        settings: `zoo.diffusion.config.DiffusionConfig`, which say what on.
        folder: the run directory.

    Raises:
        ValueError, Interrupted, OSError: as the recipe does.
    """
    spec = importlib.util.spec_from_file_location("mnist", mnist)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["mnist"] = recipe  # where its dataclass is looked up
    spec.loader.exec_module(recipe)
    epochs = 1 if settings.classifier_model == "cnn_48x48" else 5
    recipe.main(
        recipe.Config(
            model=settings.classifier_model, epochs=epochs, dataset=settings.dataset,
            data_dir=settings.data_dir, run_dir=folder,
        )
    )  # fmt: skip


def train_latents(
    coder: keras.Model, settings: Any, folder: Path, data: ImageDataset, console: Console
) -> LatentScaler:
    """Trains an autoencoder, or goes on with it.

    Args:
        coder: the autoencoder.
        settings: `zoo.diffusion.config.DiffusionConfig`.
        folder: the run directory.
        data: the images.
        console: where progress is shown.

    Raises:
        Interrupted, Diverged, OSError: as `zoo.training.trainer.fit` does.
    """
    objective = reconstruction_objective(coder)
    held_out = backend.inference_function(
        coder, lambda images, indices: objective(images, indices, 0)[0]
    )
    images = data.x_test[:HELD_OUT]
    indices = np.arange(len(images), dtype=np.int32)
    epochs = max(1, settings.epochs // 4)
    rate = learning_rate_schedule(
        "warmup_cosine",
        settings.learning_rate,
        epochs * -(-len(data.x_train) // settings.batch_size),
    )
    trainer.fit(
        coder, Adam(rate, global_clipnorm=1.0), objective, batches.InMemory(data.x_train),
        RunDirectory(folder, {"recipe": "autoencoder", "seed": settings.seed}),
        epochs=epochs, batch_size=settings.batch_size, seed=settings.seed,
        evaluate=lambda: {"validation_loss": float(held_out(images, indices))},
        checkpoint_steps=settings.checkpoint_steps, console=console,
    )  # fmt: skip
    return LatentScaler.from_images(coder, data.x_train[:MEASURED])
