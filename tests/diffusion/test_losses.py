"""Tests of the diffusion trainer: its random draws, its loss, and the average of the weights."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import unet
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import (
    PROMPT_DROPOUT,
    DiffusionTrainer,
    ema_momentum,
    ema_weights,
    held_out_examples,
    pixels,
    stratified_timesteps,
)
from zoo.diffusion.noise_schedule import cosine
from zoo.training import Adam, Batches

T = 20
PROMPTS = np.array([[[1, 2, 0], [1, 3, 4]], [[1, 5, 0], [1, 6, 4]]], np.int32)
LABELS = np.array([0, 1] * 8, np.int32)


def make_images() -> np.ndarray:
    """Images (16, 8, 8, 1) uint8 that are bright in the half that the label names."""
    images = np.random.default_rng(0).integers(0, 60, (16, 8, 8, 1))
    for image, label in zip(images, LABELS):
        image[4 * label : 4 * label + 4] += 190
    return images.astype(np.uint8)


class RecordingNetwork(keras.Model):  # type: ignore[misc]
    """Network that records its last inputs and predicts 0."""

    def __init__(self) -> None:
        super().__init__()
        self.built = True

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        self.last_inputs = {name: ops.convert_to_numpy(value) for name, value in inputs.items()}
        return ops.zeros_like(inputs["image"])


def recording_trainer(prediction: str = "noise", **options: Any) -> DiffusionTrainer:
    diffusion = GaussianDiffusion(cosine(T), prediction)
    return DiffusionTrainer(RecordingNetwork(), diffusion, 3, **options)


def training_losses(trainer: DiffusionTrainer, images: np.ndarray) -> np.ndarray:
    """The loss of each image in a training step, (16,)."""
    return ops.convert_to_numpy(trainer({"image": images, "label": LABELS}, training=True))


def test_diffusion_trainer_draws_timesteps_noise_and_prompts() -> None:
    trainer, images = recording_trainer(prompts=PROMPTS), make_images()
    classes_and_words, dropped = [], 0
    for _ in range(40):
        losses = training_losses(trainer, images)
        # The prediction is 0, so the loss is the variance of the noise.
        assert losses.mean() == pytest.approx(1, abs=0.2)
        inputs = trainer.network.last_inputs
        assert np.diff(np.sort(inputs["time"])).max() <= 2
        for label, prompt in zip(LABELS, inputs["prompt"].tolist()):
            if prompt == [1, 0, 0]:
                dropped += 1
            else:
                assert prompt in PROMPTS[label].tolist()
                classes_and_words.append((int(label), prompt[1]))
    assert set(classes_and_words) == {(0, 2), (0, 3), (1, 5), (1, 6)}
    assert 640 * PROMPT_DROPOUT / 2 < dropped < 640 * PROMPT_DROPOUT * 2


def test_diffusion_trainer_draws_depend_on_seed_and_step() -> None:
    trainer, images = recording_trainer(prompts=PROMPTS), make_images()
    first, second = training_losses(trainer, images), training_losses(trainer, images)
    assert (first != second).any()
    again = recording_trainer(prompts=PROMPTS)
    again.counter.state.assign([0, 1])  # a seed that is not used, and the number of steps
    np.testing.assert_array_equal(training_losses(again, images), second)


def test_diffusion_trainer_weighs_losses_by_min_snr_in_training_only() -> None:
    images = make_images()
    plain, weighted = recording_trainer("v"), recording_trainer("v", min_snr_gamma=5.0)
    losses = training_losses(plain, images)
    factors = GaussianDiffusion(cosine(T), "v").min_snr_weights(
        plain.network.last_inputs["time"], 5.0
    )
    expected = losses * ops.convert_to_numpy(factors)
    np.testing.assert_allclose(training_losses(weighted, images), expected, rtol=1e-6)
    assert np.abs(expected / losses - 1).max() > 0.1
    examples = held_out_examples(images, T)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (plain(examples), weighted(examples))))


def test_diffusion_trainer_rejects_min_snr_gamma_of_zero() -> None:
    with pytest.raises(ValueError, match="`min_snr_gamma` must be a finite number above 0"):
        recording_trainer(min_snr_gamma=0.0)


@pytest.mark.slow
def test_diffusion_trainer_says_how_to_save_its_network() -> None:
    with pytest.raises(NotImplementedError, match="Save its `network`"):
        recording_trainer().get_config()


def test_diffusion_trainer_learns_and_averages_weights() -> None:
    network = unet((8, 8, 1), (8,), num_steps=T)
    trainer = DiffusionTrainer(network, GaussianDiffusion(cosine(T)))
    trainer.compile(Adam(3e-3, use_ema=True, ema_momentum=0.9))
    images = make_images()
    examples = held_out_examples(images, T)

    def held_out_loss() -> float:
        return trainer.evaluate(Batches(examples, batch_size=16), verbose=0)

    def first_weight() -> np.ndarray:
        return np.array(ops.convert_to_numpy(network.trainable_variables[0].value))

    initial_loss = held_out_loss()
    assert held_out_loss() == pytest.approx(initial_loss, rel=1e-6)  # the same noise
    weights = []
    for _ in range(30):
        trainer.train_on_batch({"image": images})
        weights.append(first_weight())
    loss = held_out_loss()
    assert loss < 0.8 * initial_loss
    average = weights[0]
    for weight in weights[1:]:
        average = 0.9 * average + 0.1 * weight
    with ema_weights(network, trainer.optimizer):
        np.testing.assert_allclose(first_weight(), average, atol=1e-6)
        assert held_out_loss() != loss
    np.testing.assert_array_equal(first_weight(), weights[-1])
    assert held_out_loss() == pytest.approx(loss, rel=1e-6)


def test_ema_weights_restores_weights_after_an_error() -> None:
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = Adam(1e-3, use_ema=True)
    optimizer.build(network.trainable_variables)
    weights = [np.array(weight) for weight in network.get_weights()]
    with pytest.raises(KeyboardInterrupt), ema_weights(network, optimizer):
        raise KeyboardInterrupt
    for weight, restored in zip(weights, network.get_weights()):
        np.testing.assert_array_equal(weight, restored)


@pytest.mark.once
def test_ema_momentum_covers_a_twentieth_of_the_steps() -> None:
    assert ema_momentum(4000) == pytest.approx(0.995)
    assert ema_momentum(1) == 0.5


def test_held_out_examples_rejects_unscaled_numbers() -> None:
    with pytest.raises(ValueError, match=r"numbers in \[-1, 1\].*float32 from .* to 2"):
        held_out_examples(make_images().astype(np.float32), T)
    with pytest.raises(ValueError, match="float64 from nan to nan"):
        held_out_examples(np.full((1, 8, 8, 1), np.nan), T)


def test_held_out_examples_depend_on_the_seed_alone() -> None:
    images = make_images()
    first, again, other = (held_out_examples(images, T, seed=seed) for seed in (0, 0, 1))
    for name in ("time", "noise"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert np.diff(np.sort(first["time"])).max() <= 2


def test_stratified_timesteps_are_evenly_spaced() -> None:
    for start in (0.0, 0.3, 1 - 2**-24):
        t = ops.convert_to_numpy(stratified_timesteps(np.array([start], np.float32), 50, 1000))
        assert t.dtype == np.int32
        assert t.min() >= 0
        assert t.max() < 1000
        assert np.diff(np.sort(t)).max() <= 21


def test_pixels_scales_uint8_images_only() -> None:
    images = np.array([[0, 255]], np.uint8)
    np.testing.assert_allclose(ops.convert_to_numpy(pixels(images)), [[-1, 1]])
    latents = np.array([[2.5]], np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(pixels(latents)), latents)
