"""Tests of the autoencoder."""

from typing import Any

import numpy as np
import pytest

from zoo import autoencoder, registry
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.losses import pixels
from zoo.training import Adam, Batches, Trainer
from zoo.training.losses import ReconstructionError


def bar_images(number: int = 32) -> np.ndarray:
    """Returns images of a vertical bar, (number, 8, 8, 1) uint8."""
    images = np.zeros((number, 8, 8, 1), np.uint8)
    for index, image in enumerate(images):
        image[:, index % 8] = 255
    return images


@pytest.mark.parametrize(
    "arguments",
    [{}, {"input_shape": (12, 8, 3), "channels": (8, 16, 24), "latent_channels": 5}],
)
def test_autoencoder_parameter_count_matches_the_closed_form(arguments: dict[str, Any]) -> None:
    model = autoencoder(**arguments)
    assert model.count_params() == registry.get("autoencoder").parameter_count(**arguments)


@pytest.mark.slow
def test_autoencoder_learns_to_reconstruct_images() -> None:
    model = autoencoder((8, 8, 1), (8, 16), latent_channels=2)
    assert model.get_layer("encoder").output.shape[1:] == (4, 4, 2)
    images = bar_images()
    trainer = Trainer(model, lambda images, training: pixels(images))
    trainer.compile(Adam(1e-2), ReconstructionError())
    batches = Batches((images, images), batch_size=32, seed=0, steps_per_epoch=20)
    losses = trainer.fit(batches, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 10
    scaler = LatentScaler.from_images(model, images)
    latents = scaler.encode(images)
    assert latents.shape == (32, 4, 4, 2)
    np.testing.assert_allclose(latents.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std(axis=(0, 1, 2)), 1, atol=1e-3)
    reconstructions = scaler.decode(latents)
    assert np.square(reconstructions - (images / 127.5 - 1)).mean() < 2 * losses[-1] + 1e-3


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (7, 8, 1)}, "divisible by 2"),
        ({"latent_channels": 0}, "`latent_channels` must be a whole number of at least 1"),
        ({"channels": (9, 16)}, "multiples of `num_groups`=8"),
    ],
)
def test_autoencoder_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(**arguments)
