"""Models that a diffusion recipe trains beside its own: a classifier and an autoencoder."""

from typing import Any

import keras
import numpy as np
from rich.console import Console

from zoo import datasets, registry
from zoo.datasets.augmentation import ImageAugmentation
from zoo.datasets.images import ImageDataset
from zoo.diffusion.config import DiffusionConfig
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.losses import pixels
from zoo.diffusion.metrics import FeatureExtractor
from zoo.models.autoencoder import autoencoder
from zoo.training import Adam, Batches, CrossEntropy, Trainer
from zoo.training.losses import ReconstructionError
from zoo.training.optimizers import learning_rate_schedule
from zoo.training.run_directory import RunDirectory
from zoo.validation import validated

HELD_OUT = 512  # test images of a validation loss
_SCALER_IMAGES = 5000  # training images that the statistics of latents are computed from

Tensor = Any


@validated
def train_classifier(
    config: DiffusionConfig, run: RunDirectory, data: ImageDataset, console: Console
) -> FeatureExtractor:
    """Trains the classifier of the sample metrics as recipes/mnist.py does, or resumes it.

    Args:
        config: Configuration of the recipe.
        run: Run directory of the recipe; that of the classifier is the folder "classifier" in it.
        data: Images of the recipe.
        console: Console for messages.

    Raises:
        Diverged, Interrupted, OSError: As `zoo.Trainer.fit` does.
    """
    assert config.classifier_model is not None
    classifier = registry.get_classifier(config.classifier_model)
    images = datasets.load(
        config.dataset,
        classifier.images.size,
        data_dir=config.data_dir,
        verbose=not config.quiet,
    )
    shape = classifier.images.shape(images.x_train.shape[-1])
    arguments = {} if classifier.images.channels else {"input_shape": shape}
    network = classifier.build(num_classes=images.num_classes, seed=config.seed, **arguments)
    epochs = 1 if config.classifier_model == "cnn_48x48" else 5
    settings = {
        "recipe": "mnist", "model": config.classifier_model, "dataset": config.dataset,
        "seed": config.seed,
    }  # fmt: skip
    with run.nested("classifier", settings) as nested:
        if not nested.metrics:
            trainer = Trainer(
                network, ImageAugmentation(images.mean, images.std, shape=shape, seed=config.seed)
            )
            trainer.compile(Adam(1e-3, l2=1e-4), CrossEntropy(), metrics=["accuracy"])
            test = Batches((images.x_test, images.y_test), batch_size=256)
            checkpoint = nested.checkpoint(config.checkpoint_steps, console)
            trainer.fit(
                Batches((images.x_train, images.y_train), seed=config.seed),
                epochs=epochs,
                validation_data=test,
                callbacks=config.progress(),
                verbose=config.verbose,
                checkpoint=checkpoint,
            )
            nested.save_model(network)
            row = checkpoint.state.history[-1]
            nested.finish(
                "mnist", network, checkpoint.state, console, model=config.classifier_model,
                dataset=images.name, mean=images.mean, std=images.std, seed=config.seed,
                train_examples=len(images.x_train), test_examples=len(images.x_test),
                epochs=epochs, test_loss=row["val_loss"], test_accuracy=row["val_accuracy"],
            )  # fmt: skip
        return FeatureExtractor.load(nested.path, data)


@validated
def build_autoencoder(
    config: DiffusionConfig, data: ImageDataset
) -> tuple[keras.Model | None, tuple[int, ...]]:
    """The autoencoder, if `config.latent`, and the shape of the images that the U-Net reads."""
    shape = tuple(data.x_train.shape[1:])
    if not config.latent:
        return None, shape
    model = autoencoder(shape, seed=config.seed, dtype=config.dtype_policy)
    return model, tuple(model.get_layer("encoder").output.shape[1:])


@validated
def train_autoencoder(
    model: keras.Model, config: DiffusionConfig, run: RunDirectory, data: ImageDataset
) -> LatentScaler:
    """Trains an autoencoder on the images, or resumes its training.

    Args:
        model: Autoencoder with the layers "encoder" and "decoder".
        config: Configuration of the recipe.
        run: Run directory of the recipe; that of the autoencoder is the folder "autoencoder" in it.
        data: Images of the recipe.

    Returns:
        The latent space, scaled to unit variance.

    Raises:
        Diverged, Interrupted, OSError: As `zoo.Trainer.fit` does.
    """
    batches = Batches((data.x_train, data.x_train), config.batch_size or 64, seed=config.seed)
    epochs = max(1, (config.epochs or 1) // 4)
    steps = epochs * batches.steps_per_epoch
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, steps)
    trainer = Trainer(model, _scaled)
    trainer.compile(Adam(rate, global_clipnorm=1.0), ReconstructionError())
    images = data.x_test[:HELD_OUT]
    settings = {"recipe": "autoencoder", "seed": config.seed}
    with run.nested("autoencoder", settings) as nested:
        if nested.metrics:  # a longer run keeps the latent space that it has begun in
            nested.load_weights(model)
        else:
            history = trainer.fit(
                batches,
                epochs=epochs,
                validation_data=Batches((images, images)),
                callbacks=config.progress(),
                verbose=config.verbose,
                checkpoint=nested.checkpoint(config.checkpoint_steps),
            )
            nested.save_model(model)
            loss = history.history["val_loss"][-1]
            nested.write_metrics({"recipe": "autoencoder", "epochs": epochs, "test_loss": loss})
    weights = "autoencoder/model.weights.h5"  # the diffusion model knows these latents only
    run.bind(weights, (run.path / weights).read_bytes())
    return LatentScaler.from_images(model, data.x_train[:_SCALER_IMAGES])


@validated
def training_images(
    data: ImageDataset, latent_scaler: LatentScaler | None
) -> tuple[np.ndarray, np.ndarray]:
    """The training images and those of the validation loss, or their latents."""
    images = data.x_train, data.x_test[:HELD_OUT]
    if latent_scaler is None:
        return images
    return latent_scaler.encode(images[0]), latent_scaler.encode(images[1])


def _scaled(images: Tensor, training: bool = False) -> Tensor:
    return pixels(images)
