"""Tests of the samples that a diffusion run draws: requests, previews and the animation."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo import unet
from zoo.diffusion import plots
from zoo.diffusion.losses import DiffusionTrainer, ema_weights
from zoo.diffusion.pipeline import COLUMNS, DiffusionPipeline, DiffusionSpec
from zoo.diffusion.report import DenoisingAnimation, SamplePreviews, SampleRequest
from zoo.training import Adam
from zoo.training.run_directory import RunDirectory


def test_sample_previews_draw_with_averaged_weights(tmp_path: Path) -> None:
    """Two images of the averages, in a file named after the epoch; the weights come back."""
    network = unet((8, 8, 1), (8,), num_steps=20)
    pipeline = DiffusionPipeline(network, DiffusionSpec(num_steps=20))
    request = SampleRequest(count=2, num_classes=2, steps=2)
    trainer = DiffusionTrainer(network, pipeline.sampler.diffusion)
    trainer.compile(Adam(1e-2, use_ema=True, ema_momentum=0.5))
    trainer.optimizer.build(network.trainable_variables)
    for variable in network.trainable_variables:
        variable.assign(variable.value + 1.0)  # the averages stay as they were
    previews = SamplePreviews(RunDirectory(tmp_path / "run", {}), pipeline, request)
    previews.set_model(trainer)
    weights = [np.array(weight) for weight in network.get_weights()]
    previews.on_epoch_end(2)
    for weight, restored in zip(weights, network.get_weights()):
        np.testing.assert_array_equal(weight, restored)
    with ema_weights(network, trainer.optimizer):
        classes, images = request.sample(pipeline, 2, 2)
    assert classes.tolist() == [0, 1]
    expected = plots.png(plots.grid(images, COLUMNS))
    assert (tmp_path / "run" / "samples-03.png").read_bytes() == expected
    _, images = request.sample(pipeline, 2, 2)
    assert plots.png(plots.grid(images, COLUMNS)) != expected


@pytest.mark.once
def test_denoising_animation_shows_the_first_batch_in_at_most_25_frames() -> None:
    """Each frame holds ten images x_t above their predicted x_0."""
    animation = DenoisingAnimation()
    for step in range(60):
        x, x0 = np.full((12, 4, 4, 1), -1 + step / 30), np.full((12, 4, 4, 1), 1.0)
        animation(0, x, x0)
        animation(12, x, x0)
    with Image.open(io.BytesIO(animation.to_gif())) as gif:
        assert gif.n_frames == 25
        gif.seek(24)
        last = np.asarray(gif.convert("L"))
    rows = np.full((COLUMNS, 4, 4, 1), -1 + 59 / 30), np.full((COLUMNS, 4, 4, 1), 1.0)
    images = np.round((np.concatenate(rows) + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(last, np.asarray(plots.grid(images, COLUMNS)))
