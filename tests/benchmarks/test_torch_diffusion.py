"""Tests that the zoo's diffusion model and its plain PyTorch code compute the same.

They need PyTorch and run where it is the backend.
"""

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from zoo.backends import name
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import DiffusionTrainer
from zoo.diffusion.noise_schedule import cosine
from zoo.diffusion.sampler import Sampler, noise
from zoo.training import Adam

if name != "torch":
    pytest.skip("needs PyTorch as the backend", allow_module_level=True)

import torch

from benchmarks.native import torch_diffusion as native_diffusion

STEPS = 20
PROMPTS = np.array([[1, 3, 2, 0], [1, 4, 5, 6], [1, 0, 0, 0]], np.int32)
Pair = tuple[keras.Model, native_diffusion.TextToImage]


@pytest.fixture
def pair() -> Pair:
    """The zoo's model and the native one with the same weights, none of which is 0."""
    sizes = {"vocabulary_size": 8, "max_length": 4, "num_layers": 2, "hidden_dim": 16,
             "input_shape": (8, 8, 1), "channels": (8, 16, 64), "num_steps": STEPS}  # fmt: skip
    model = zoo.text_to_image(**sizes)
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        value = ops.convert_to_numpy(variable.value)
        variable.assign(value + 0.1 * generator.normal(size=value.shape).astype(np.float32))
    native = native_diffusion.TextToImage(**sizes)
    weights = {v.path: ops.convert_to_numpy(v.value) for v in model.trainable_variables}
    native_diffusion.load(native, weights)
    return model, native


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images, time steps, noise and prompts."""
    generator = np.random.default_rng(1)
    x0, eps = generator.uniform(-1, 1, (2, 3, 8, 8, 1)).astype(np.float32)
    return x0, np.array([0, 7, STEPS - 1], np.int32), eps, PROMPTS


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2))


def test_network_matches_native_code(pair: Pair) -> None:
    model, native = pair
    _, t, x, prompts = batch()
    output = model({"image": x, "time": t, "prompt": prompts}, training=False)
    with torch.no_grad():
        expected = native(channels_first(x), torch.tensor(t), torch.tensor(prompts))
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.1
    # 2.2e-6 measured
    np.testing.assert_allclose(ops.convert_to_numpy(output), expected, atol=1e-4, rtol=0)


def test_guided_sampling_matches_native_code(pair: Pair) -> None:
    model, native = pair
    images = Sampler(model, GaussianDiffusion(cosine(STEPS))).sample(3, PROMPTS, seed=4, steps=5)
    first = channels_first(noise(4, "first", images.shape[1:], range(3)))
    expected = native_diffusion.sample(native, torch.tensor(PROMPTS), first, steps=5)
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert (abs(expected) < 1).mean() > 0.1  # some values are not clipped
    # 2.9e-6 measured
    np.testing.assert_allclose(images, expected, atol=1e-3, rtol=0)


def test_training_steps_match_native_code(pair: Pair) -> None:
    """Losses, and the outputs of the averaged weights.

    Not the weights one by one: if a bias does not change the output, as before a normalization of
    single channels, rounding decides the direction of its Adam step.
    """
    model, native = pair
    x0, t, eps, prompts = batch()
    trainer = DiffusionTrainer(model, GaussianDiffusion(cosine(STEPS)))
    trainer.compile(Adam(1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=0.9))
    examples = {"image": x0, "time": t, "noise": eps, "prompt": prompts}
    options = {"batch_size": 3, "shuffle": False, "epochs": 3, "verbose": 0}
    losses = trainer.fit(examples, **options).history["loss"]  # it ends with the averages
    native_trainer = native_diffusion.Trainer(native, momentum=0.9)
    inputs = channels_first(x0), torch.tensor(t), channels_first(eps), torch.tensor(prompts)
    expected_losses = [native_trainer.step(*inputs) for _ in range(3)]
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5, rtol=0)  # 3e-8 measured
    output = model({"image": eps, "time": t, "prompt": prompts}, training=False)
    with torch.no_grad():
        average = native_trainer.average.module
        averaged, last = (
            network(channels_first(eps), torch.tensor(t), torch.tensor(prompts))
            for network in (average, native)
        )
    output = ops.convert_to_numpy(output).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(output, averaged.numpy(), atol=1e-4, rtol=0)  # 2.8e-6 measured
    assert abs(averaged - last).max() > 1e-2
