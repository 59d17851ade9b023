"""Tests that diffusion models train and sample equally on every backend."""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.parity import diffusion
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trained(all_backends: Workers) -> tuple[list[float], list[np.ndarray]]:
    """Losses and trained weights of a training on PyTorch."""
    losses, weights = all_backends["torch"](diffusion.train, diffusion.STEPS)
    return losses, weights


def test_losses_of_ten_training_steps_agree(
    all_backends: Workers, trained: tuple[list[float], list[np.ndarray]]
) -> None:
    """Time steps, noise and prompts are equal; rounding errors grow with every step."""
    losses = {"torch": np.array(trained[0][:10])}
    for name in set(all_backends.names) - {"torch"}:
        losses[name] = np.array(all_backends[name](diffusion.train, 10)[0])
    for a, b in itertools.combinations(losses, 2):
        relative = np.abs(losses[a] / losses[b] - 1)
        print(f"{a} and {b}:", " ".join(f"{value:.0e}" for value in relative))
        assert len(relative) == 10
        assert (relative[:5] < 1e-5).all(), (a, b, relative)
        assert (relative < 1e-3).all(), (a, b, relative)


def test_sampled_images_agree(
    all_backends: Workers, trained: tuple[list[float], list[np.ndarray]]
) -> None:
    """Every pixel agrees: 50 steps of DDIM with guidance to 1e-3, 200 steps of DDPM to 1e-2."""
    tolerances = (1e-3, 1e-2)
    cases: list[dict[str, Any]] = [
        {"steps": 50, "guidance_scale": 3.0, "seed": 3},
        {"steps": 200, "guidance_scale": 3.0, "seed": 3, "eta": 1.0},
    ]
    images = {
        name: all_backends[name](diffusion.sample_images, trained[1], cases)
        for name in all_backends.names
    }
    for number, (tolerance, options) in enumerate(zip(tolerances, cases)):
        for a, b in itertools.combinations(images, 2):
            distance = np.abs(images[a][number] - images[b][number]).max()
            print(f"{options['steps']} steps, {a} and {b}: {distance:.1e}")
            assert distance < tolerance, (options, a, b, distance)
        # An untrained network would sample equal images, or clipped pixels only.
        assert (np.abs(images["torch"][number]) < 0.99).mean() > 0.05
        assert np.abs(images["torch"][number][0] - images["torch"][number][1]).max() > 0.5
