"""A smaller space to draw in."""

from typing import Any

import numpy as np
import pytest

from zoo import autoencoder, registry
from zoo.backends import backend
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.losses import reconstruction_objective
from zoo.training.optimizers import Adam


def images(count: int = 32) -> np.ndarray:
    """Bars at some place."""
    drawn = np.zeros((count, 8, 8, 1), np.uint8)
    for number, image in enumerate(drawn):
        image[:, number % 8] = 255
    return drawn


@pytest.mark.parametrize(
    "arguments",
    [{}, {"input_shape": (12, 8, 3), "channels": (8, 16, 24), "latent_channels": 5}],
)
def test_the_closed_form_counts_its_parameters(arguments: dict[str, Any]) -> None:
    model = autoencoder(**arguments)
    assert model.count_params() == registry.get("autoencoder").count(**arguments)


def test_it_learns_to_bring_images_back_from_less() -> None:
    model = autoencoder((8, 8, 1), (8, 16), latent_channels=2)
    assert model.get_layer("encoder").output.shape[1:] == (4, 4, 2)
    optimizer = Adam(1e-2)
    optimizer.build(model.trainable_variables)
    step = backend.train_step(model, optimizer, reconstruction_objective(model))
    data, indices = backend.on_device(images()), np.arange(32, dtype=np.int32)
    losses = [float(step(data, indices, np.int32(number))["loss"]) for number in range(60)]
    step.sync()
    assert losses[-1] < losses[0] / 10
    latents = LatentScaler.from_images(model, images())
    coded = latents.encode(images())
    assert coded.shape == (32, 4, 4, 2)
    np.testing.assert_allclose(coded.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(coded.std(axis=(0, 1, 2)), 1, atol=1e-3)
    returned = latents.decode(coded)
    assert np.square(returned - (images() / 127.5 - 1)).mean() < 2 * losses[-1] + 1e-3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"input_shape": (7, 8, 1)}, "divisible by 2"),
        ({"latent_channels": 0}, "`latent_channels` must be a whole number of at least 1"),
        ({"channels": (9, 16)}, "multiples of `num_groups`=8"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        autoencoder(**arguments)
