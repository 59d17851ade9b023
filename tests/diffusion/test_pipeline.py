"""A trained model with all it needs to draw: what it draws, and its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import autoencoder, text_to_image, unet
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer
from zoo.training.run_directory import RunDirectory

ABOUT = DiffusionSpec(num_steps=20)


@pytest.fixture(scope="module")
def painter() -> DiffusionPipeline:
    vocabulary = WordTokenizer(["a seven", "the digit 3"])
    model = text_to_image(
        len(vocabulary), vocabulary.max_length, hidden_dim=16, input_shape=(8, 8, 1),
        channels=(8, 16), num_steps=20,
    )  # fmt: skip
    return DiffusionPipeline(model, ABOUT, vocabulary)


def test_it_draws_what_is_asked_for(painter: DiffusionPipeline) -> None:
    seen: list[tuple[int, float]] = []
    images = painter.generate(
        ["a seven", "the digit 3", "seven"], steps=4, seed=1, batch_size=2,
        show=lambda first, x, x0: seen.append((first, float(np.abs(x - x0).max()))),
    )  # fmt: skip
    assert images.shape == (3, 8, 8, 1)
    assert np.abs(images).max() <= 1
    assert [first for first, _ in seen] == [0, 0, 0, 0, 2, 2, 2, 2]
    assert seen[0][1] > 0.1
    assert seen[3][1] < 1e-6  # at the end there is no noise left
    again = painter.generate(["a seven"], steps=4, seed=1)
    np.testing.assert_allclose(again[0], images[0], atol=1e-5)
    away = painter.generate(["a seven"], steps=4, seed=1, negative_prompt="the digit 3")
    assert np.abs(away - again).max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"prompts": ["a dog"]}, "unknown words: dog. The vocabulary is 3, a, digit, seven, the"),
        ({"prompts": ["a seven", ""]}, "must have a word at least.*at index 1"),
        ({"prompts": []}, "a list of one text at least"),
        ({"prompts": 3}, "a list of one text at least. Received: 3"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"negative_prompt": "a cat"}, "unknown words: cat"),
        ({"steps": 21}, r"`steps` must lie in 1..20.* Received: steps=21"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        ({"guidance_scale": -0.5}, "Received: guidance_scale=-0.5"),
        ({"eta": -0.1}, "Received: eta=-0.1"),
        ({"seed": -1}, r"`seed` must be an integer in \[0, 2\*\*32\). Received: seed=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    painter: DiffusionPipeline, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        painter.generate(**{"prompts": ["a seven"], "steps": 2, **arguments})


def finished(painter: DiffusionPipeline, folder: Path) -> Path:
    run = RunDirectory(folder, {})
    run.write_config()
    painter.save(run)
    run.write_metrics({})
    return folder


def test_it_is_written_and_read(painter: DiffusionPipeline, tmp_path: Path) -> None:
    again = DiffusionPipeline.load(finished(painter, tmp_path / "run"))
    options: dict[str, Any] = {"prompts": ["a seven", "3"], "steps": 3, "seed": 2}
    np.testing.assert_allclose(again.generate(**options), painter.generate(**options), atol=1e-6)
    assert again.about == painter.about


def test_one_without_a_text_draws_so_many_in_the_latent_space(tmp_path: Path) -> None:
    coder = autoencoder((8, 8, 1), (8, 16), latent_channels=2)
    latents = LatentScaler(coder, (0.5, -0.5), (2.0, 3.0))
    painter = DiffusionPipeline(unet((4, 4, 2), (8,), num_steps=20), ABOUT, latents=latents)
    images = painter.generate(3, steps=3)
    assert images.shape == (3, 8, 8, 1)
    again = DiffusionPipeline.load(finished(painter, tmp_path / "run"))
    np.testing.assert_allclose(again.generate(3, steps=3), images, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be a number of images.*reads no texts"):
        painter.generate(["a seven"])
    with pytest.raises(ValueError, match="negative_prompt='a dog'"):
        painter.generate(3, negative_prompt="a dog")


@pytest.mark.parametrize("name", ["metrics.json", "model.weights.h5", "diffusion.json"])
def test_a_directory_without_a_finished_run_is_refused(
    painter: DiffusionPipeline, tmp_path: Path, name: str
) -> None:
    folder = finished(painter, tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"must hold a finished run.*which has no {name}"):
        DiffusionPipeline.load(folder)
