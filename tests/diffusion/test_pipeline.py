"""Tests of the diffusion pipeline: sampling, saving and loading."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import autoencoder, text_to_image, unet
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer
from zoo.training.run_directory import RunDirectory

SPEC = DiffusionSpec(num_steps=20)


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    tokenizer = WordTokenizer(["a seven", "the digit 3"])
    model = text_to_image(
        len(tokenizer), tokenizer.max_length, hidden_dim=16, input_shape=(8, 8, 1),
        channels=(8,), num_steps=20,
    )  # fmt: skip
    return DiffusionPipeline(model, SPEC, tokenizer)


def test_sample_returns_one_image_for_each_prompt(pipeline: DiffusionPipeline) -> None:
    calls: list[tuple[int, float]] = []
    images = pipeline.sample(
        ["a seven", "the digit 3", "seven"], steps=4, seed=1, batch_size=2,
        callback_on_step_end=lambda first, x, x0: calls.append(
            (first, float(np.abs(x - x0).max()))
        ),
    )  # fmt: skip
    assert images.shape == (3, 8, 8, 1)
    assert np.abs(images).max() <= 1
    assert [first for first, _ in calls] == [0, 0, 0, 0, 2, 2, 2, 2]
    assert calls[0][1] > 0.1
    assert calls[3][1] < 1e-6  # the last step leaves no noise
    options: dict[str, Any] = {"prompts": ["a seven", "the digit 3"], "steps": 4, "seed": 1}
    repeated = pipeline.sample(**options)
    np.testing.assert_allclose(repeated, images[:2], atol=1e-5)
    negative = pipeline.sample(**options, negative_prompt="3")
    assert np.abs(negative - repeated).max() > 1e-4


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a dog"]}, "unknown words: dog. The vocabulary is 3, a, digit, seven, the"),
        ({"prompts": ["a seven", ""]}, "must have at least one word.*at index 1"),
        ({"prompts": []}, "a list of at least one text"),
        ({"prompts": 3}, "a list of at least one text. Received: 3"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"negative_prompt": "a cat"}, "unknown words: cat"),
        ({"steps": 21}, r"`steps` must lie in 1..20.* Received: steps=21"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        ({"guidance_scale": -0.5}, "Received: guidance_scale=-0.5"),
        ({"eta": -0.1}, "Received: eta=-0.1"),
        ({"seed": -1}, r"`seed` must be a whole number of at least 0. Received: seed=-1"),
    ],
)
def test_sample_rejects_invalid_arguments(
    pipeline: DiffusionPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.sample(**{"prompts": ["a seven"], "steps": 2, **arguments})


def save_finished_run(pipeline: DiffusionPipeline, folder: Path, **config: Any) -> Path:
    run = RunDirectory(folder, config)
    run.write_config()
    pipeline.save(run)
    run.write_metrics({})
    return folder


def test_load_restores_saved_pipeline(pipeline: DiffusionPipeline, tmp_path: Path) -> None:
    restored = DiffusionPipeline.load(save_finished_run(pipeline, tmp_path / "run"))
    options: dict[str, Any] = {"prompts": ["a seven", "3"], "steps": 3, "seed": 2}
    np.testing.assert_allclose(restored.sample(**options), pipeline.sample(**options), atol=1e-6)
    assert restored.spec == pipeline.spec


def test_unconditional_latent_pipeline_samples_and_is_restored(tmp_path: Path) -> None:
    model = autoencoder((8, 8, 1), (8, 16), latent_channels=2)
    latent_scaler = LatentScaler(model, (0.5, -0.5), (2.0, 3.0))
    pipeline = DiffusionPipeline(
        unet((4, 4, 2), (8,), num_steps=20), SPEC, latent_scaler=latent_scaler
    )
    images = pipeline.sample(3, steps=3)
    assert images.shape == (3, 8, 8, 1)
    restored = DiffusionPipeline.load(save_finished_run(pipeline, tmp_path / "run"))
    np.testing.assert_allclose(restored.sample(3, steps=3), images, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be a number of images.*without a text encoder"):
        pipeline.sample(["a seven"])
    with pytest.raises(ValueError, match="negative_prompt='a dog'"):
        pipeline.sample(3, negative_prompt="a dog")


@pytest.mark.once
@pytest.mark.parametrize(
    "name", ["metrics.json", "manifest.json", "model.weights.h5", "diffusion.json"]
)
def test_load_rejects_directory_without_finished_run(
    pipeline: DiffusionPipeline, tmp_path: Path, name: str
) -> None:
    folder = save_finished_run(pipeline, tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"must hold a finished run.*which has no {name}"):
        DiffusionPipeline.load(folder)
