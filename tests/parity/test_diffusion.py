"""Tests that diffusion models train and sample equally on every backend."""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.parity import diffusion
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]


def test_losses_of_ten_training_steps_agree(all_backends: Workers) -> None:
    """Time steps, noise and prompts are equal; rounding errors grow with every step."""
    losses = {
        name: np.array(all_backends[name, "float32"](diffusion.train, 10)[0])
        for name in all_backends.names
    }
    for a, b in itertools.combinations(losses, 2):
        relative = np.abs(losses[a] / losses[b] - 1)
        print(f"{a} and {b}:", " ".join(f"{value:.0e}" for value in relative))
        assert (relative[:5] < 1e-5).all(), (a, b, relative)
        assert (relative < 1e-3).all(), (a, b, relative)


def test_sampled_images_agree(all_backends: Workers) -> None:
    """Every pixel agrees: 50 steps of DDIM with guidance to 1e-3, 200 steps of DDPM to 1e-2."""
    _, weights = all_backends["torch", "float32"](diffusion.train, 150)
    cases: list[tuple[float, dict[str, Any]]] = [
        (1e-3, {"steps": 50, "guidance_scale": 3.0, "seed": 3}),
        (1e-2, {"steps": 200, "guidance_scale": 3.0, "seed": 3, "eta": 1.0}),
    ]
    for tolerance, options in cases:
        images = {
            name: all_backends[name, "float32"](diffusion.sample_images, weights, options)
            for name in all_backends.names
        }
        for a, b in itertools.combinations(images, 2):
            distance = np.abs(images[a] - images[b]).max()
            print(f"{options['steps']} steps, {a} and {b}: {distance:.1e}")
            assert distance < tolerance, (options, a, b, distance)
        # An untrained network would sample equal images, or clipped pixels only.
        assert (np.abs(images["torch"]) < 0.99).mean() > 0.05
        assert np.abs(images["torch"][0] - images["torch"][1]).max() > 0.5
