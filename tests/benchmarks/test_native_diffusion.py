"""Against the same in plain PyTorch; needs PyTorch, so it runs where that is the backend."""

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
from zoo.training.optimizers import Adam

if name != "torch":
    pytest.skip("needs PyTorch as the backend", allow_module_level=True)

import torch

from benchmarks import native_diffusion

STEPS = 20
PROMPTS = np.array([[1, 3, 2, 0], [1, 4, 5, 6], [1, 0, 0, 0]], np.int32)


@pytest.fixture
def pair() -> tuple[keras.Model, native_diffusion.TextToImage]:
    """The zoo's and the native one, of the same weights, none of which is 0."""
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
    x0, drawn = generator.uniform(-1, 1, (2, 3, 8, 8, 1)).astype(np.float32)
    return x0, np.array([0, 7, STEPS - 1], np.int32), drawn, PROMPTS


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2))


def test_the_network(pair: tuple[keras.Model, native_diffusion.TextToImage]) -> None:
    model, native = pair
    _, t, x, prompts = batch()
    found = model({"image": x, "time": t, "prompt": prompts}, training=False)
    with torch.no_grad():
        expected = native(channels_first(x), torch.tensor(t), torch.tensor(prompts))
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.1
    # 2.2e-6 measured
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-4, rtol=0)


def test_guided_sampling(pair: tuple[keras.Model, native_diffusion.TextToImage]) -> None:
    model, native = pair
    found = Sampler(model, GaussianDiffusion(cosine(STEPS))).sample(3, PROMPTS, seed=4, steps=5)
    first = noise(4, "first", found.shape[1:], range(3))
    drawn = native_diffusion.sample(native, torch.tensor(PROMPTS), channels_first(first), steps=5)
    expected = drawn.permute(0, 2, 3, 1).numpy()
    assert (abs(expected) < 1).mean() > 0.1  # not all is clipped
    # 2.9e-6 measured
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


def test_training_steps(pair: tuple[keras.Model, native_diffusion.TextToImage]) -> None:
    """Losses, and what the averaged weights predict.

    Not the weights one by one: where a bias changes nothing, as before a normalisation of single
    channels, Adam goes where rounding says.
    """
    model, native = pair
    process = GaussianDiffusion(cosine(STEPS))

    ours = DiffusionTrainer(model, process)
    optimizer = Adam(1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=0.9)
    ours.compile(optimizer)
    trainer = native_diffusion.Trainer(native, momentum=0.9)
    x0, t, drawn, prompts = batch()
    images, eps = channels_first(x0), channels_first(drawn)
    examples = {"image": x0, "time": t, "noise": drawn, "prompt": prompts}
    for _ in range(3):
        ours.reset_metrics()
        loss = float(ours.train_on_batch(examples))
        expected = trainer.step(images, torch.tensor(t), eps, torch.tensor(prompts))
        assert abs(loss - expected) < 1e-5  # 3e-8 measured
    optimizer.finalize_variable_values(model.trainable_variables)
    found = model({"image": drawn, "time": t, "prompt": prompts}, training=False)
    with torch.no_grad():
        average = trainer.average.module
        now, before = (
            net(eps, torch.tensor(t), torch.tensor(prompts)) for net in (average, native)
        )
    found = ops.convert_to_numpy(found).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, now.numpy(), atol=1e-4, rtol=0)  # 2.8e-6 measured
    assert abs(now - before).max() > 1e-2
