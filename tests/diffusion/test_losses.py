"""What a training step sees, and the average of the weights."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import text_to_image, unet
from zoo.backends import backend
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import (
    UNPROMPTED,
    diffusion_loss,
    diffusion_objective,
    ema_momentum,
    ema_weights,
    pixels,
    stratified_timesteps,
)
from zoo.diffusion.noise_schedule import cosine
from zoo.training.optimizers import Adam

T = 20
PROMPTS = np.array([[[1, 2, 0], [1, 3, 4]], [[1, 5, 0], [1, 6, 4]]], np.int32)
LABELS = np.array([0, 1] * 8, np.int32)


def images() -> np.ndarray:
    """Bright above or below, as the label says."""
    drawn = np.random.default_rng(0).integers(0, 60, (16, 8, 8, 1))
    for image, label in zip(drawn, LABELS):
        image[4 * label : 4 * label + 4] += 190
    return drawn.astype(np.uint8)


def small_model(seed: int = 0) -> keras.Model:
    return text_to_image(
        vocabulary_size=8, max_length=3, hidden_dim=16, input_shape=(8, 8, 1), channels=(8, 16),
        num_steps=T, seed=seed,
    )  # fmt: skip


class Watched:
    """Stands for a model: keeps what it is given, and predicts 0."""

    def __init__(self) -> None:
        self.given: dict[str, np.ndarray] = {}

    def __call__(self, inputs: dict[str, Any], training: bool) -> Any:
        assert training
        self.given = {name: ops.convert_to_numpy(value) for name, value in inputs.items()}
        return ops.zeros_like(inputs["image"])


def test_a_step_sees_noisy_images_and_prompts_of_their_class() -> None:
    watched, process = Watched(), GaussianDiffusion(cosine(T), "noise")
    objective = diffusion_objective(watched, process, 3, PROMPTS)
    arrays = [ops.convert_to_tensor(array) for array in (images(), LABELS)]
    indices = np.arange(16, dtype=np.int32)
    seen, unprompted = [], 0
    for step in range(40):
        loss, metrics = objective(*arrays, indices, np.int32(step))
        assert metrics == {}
        # It predicts 0, so the loss is the variance of the noise.
        assert float(loss) == pytest.approx(1, abs=0.2)
        assert np.diff(np.sort(watched.given["time"])).max() <= 2
        for label, prompt in zip(LABELS, watched.given["prompt"].tolist()):
            if prompt == [1, 0, 0]:
                unprompted += 1
            else:
                assert prompt in PROMPTS[label].tolist()
                seen.append((int(label), prompt[1]))
    assert set(seen) == {(0, 2), (0, 3), (1, 5), (1, 6)}
    assert 640 * UNPROMPTED / 2 < unprompted < 640 * UNPROMPTED * 2
    # The same step is the same again.
    once = float(objective(*arrays, indices, np.int32(5))[0])
    assert float(objective(*arrays, indices, np.int32(5))[0]) == once
    assert float(objective(*arrays, indices, np.int32(6))[0]) != once


def test_steps_are_spread_evenly() -> None:
    for start in (0.0, 0.3, 1 - 2**-24):
        t = ops.convert_to_numpy(stratified_timesteps(np.array([start], np.float32), 50, 1000))
        assert t.dtype == np.int32
        assert t.min() >= 0
        assert t.max() < 1000
        assert np.diff(np.sort(t)).max() <= 21


def test_bytes_become_numbers_between_minus_one_and_one() -> None:
    given = np.array([[0, 255]], np.uint8)
    np.testing.assert_allclose(ops.convert_to_numpy(pixels(given)), [[-1, 1]])
    latents = np.array([[2.5]], np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(pixels(latents)), latents)


@pytest.mark.parametrize("min_snr_gamma", [None, 5.0])
def test_it_learns_and_the_average_follows(min_snr_gamma: float | None) -> None:
    model, process = small_model(), GaussianDiffusion(cosine(T))
    optimizer = Adam(3e-3, use_ema=True, ema_momentum=0.9)
    optimizer.build(model.trainable_variables)
    objective = diffusion_objective(model, process, 0, PROMPTS, min_snr_gamma)
    loss = diffusion_loss(model, process, images(), PROMPTS[LABELS, 0], batch_size=5)
    before = loss()
    assert loss() == pytest.approx(before, rel=1e-6)  # on the same noise
    step = backend.train_step(model, optimizer, objective)
    arrays = [backend.on_device(array) for array in (images(), LABELS)]
    indices = np.arange(16, dtype=np.int32)
    weights = []
    for number in range(30):
        step(*arrays, indices, np.int32(number))
        step.sync()
        weights.append(np.array(ops.convert_to_numpy(model.trainable_variables[0].value)))
    after = loss()
    assert after < 0.8 * before
    average = weights[0]
    for weight in weights[1:]:
        average = 0.9 * average + 0.1 * weight
    with ema_weights(model, optimizer):
        found = ops.convert_to_numpy(model.trainable_variables[0].value)
        np.testing.assert_allclose(found, average, atol=1e-6)
        assert loss() != after
    found = ops.convert_to_numpy(model.trainable_variables[0].value)
    np.testing.assert_array_equal(found, weights[-1])


def test_numbers_that_are_no_pixels_are_refused() -> None:
    model = unet((8, 8, 1), (8,), num_steps=T)
    with pytest.raises(ValueError, match=r"numbers in \[-1, 1\].*float32 from .* to 2"):
        diffusion_loss(model, GaussianDiffusion(cosine(T)), images().astype(np.float32))
    with pytest.raises(ValueError, match="float64 from nan to nan"):
        diffusion_loss(model, GaussianDiffusion(cosine(T)), np.full((1, 8, 8, 1), np.nan))


def test_weights_come_back_after_an_error() -> None:
    model = unet((8, 8, 1), (8,), num_steps=T)
    optimizer = Adam(1e-3, use_ema=True)
    optimizer.build(model.trainable_variables)
    before = [np.array(w) for w in model.get_weights()]
    with pytest.raises(KeyboardInterrupt), ema_weights(model, optimizer):
        raise KeyboardInterrupt
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_the_average_looks_back_over_a_part_of_the_run() -> None:
    assert ema_momentum(4000) == pytest.approx(0.995)
    assert ema_momentum(1) == 0.5
