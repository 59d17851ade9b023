"""Diffusion: the same run from one seed, and the same images, on every backend."""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.parity import drawing
from zoo.parity import Workers

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]


def test_ten_training_steps(everywhere: Workers) -> None:
    """Time steps, noise and prompts are the same; rounding grows from step to step."""
    losses = {
        name: np.array(everywhere[name, "float32"](drawing.trained, 10)[0])
        for name in everywhere.names
    }
    for a, b in itertools.combinations(losses, 2):
        relative = np.abs(losses[a] / losses[b] - 1)
        print(f"{a} and {b}:", " ".join(f"{value:.0e}" for value in relative))
        assert (relative[:5] < 1e-5).all(), (a, b, relative)
        assert (relative < 1e-3).all(), (a, b, relative)


def test_the_same_images_from_the_same_seed(everywhere: Workers) -> None:
    """50 steps of DDIM with guidance within 1e-3 in every pixel, 200 of DDPM within 1e-2."""
    _, weights = everywhere["torch", "float32"](drawing.trained, 150)
    cases: list[tuple[float, dict[str, Any]]] = [
        (1e-3, {"steps": 50, "guidance_scale": 3.0, "seed": 3}),
        (1e-2, {"steps": 200, "guidance_scale": 3.0, "seed": 3, "eta": 1.0}),
    ]
    for tolerance, options in cases:
        images = {
            name: everywhere[name, "float32"](drawing.drawn, weights, options)
            for name in everywhere.names
        }
        for a, b in itertools.combinations(images, 2):
            distance = np.abs(images[a] - images[b]).max()
            print(f"{options['steps']} steps, {a} and {b}: {distance:.1e}")
            assert distance < tolerance, (options, a, b, distance)
        # Of a network that had learnt nothing they would be alike, or clipped everywhere.
        assert (np.abs(images["torch"]) < 0.99).mean() > 0.05
        assert np.abs(images["torch"][0] - images["torch"][1]).max() > 0.5
