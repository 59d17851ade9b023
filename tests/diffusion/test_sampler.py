"""Tests of the sampler: coefficients of its steps, guidance, and reproducibility of images."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import text_to_image, unet
from zoo.backends import backend
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.noise_schedule import cosine, make_schedule
from zoo.diffusion.sampler import Sampler, coefficients, noise, timesteps

T = 20
TEXT_TO_IMAGE: dict[str, Any] = {
    "vocabulary_size": 12, "max_length": 4, "hidden_dim": 16, "input_shape": (8, 8, 1),
    "channels": (8,), "num_steps": T,
}  # fmt: skip
PROMPTS = np.array([[1, 3, 2, 0], [1, 4, 0, 0], [1, 5, 6, 7]], np.int32)


@pytest.fixture(scope="module")
def conditional_model() -> keras.Model:
    return text_to_image(**TEXT_TO_IMAGE)


@pytest.fixture(scope="module")
def conditional_sampler(conditional_model: keras.Model) -> Sampler:
    return Sampler(conditional_model, GaussianDiffusion(cosine(T)), clip=False)


@pytest.fixture(scope="module")
def unconditional_sampler() -> Sampler:
    return Sampler(unet((8, 8, 1), (8,), num_steps=T), GaussianDiffusion(cosine(T)))


@pytest.fixture(scope="module")
def latent_model() -> keras.Model:
    return unet((8, 8, 1), (8,), num_steps=T)


@pytest.fixture(scope="module")
def latent_sampler(latent_model: keras.Model) -> Sampler:
    return Sampler(latent_model, GaussianDiffusion(cosine(T)), clip=False)


@pytest.mark.once
def test_timesteps_start_at_last_step_and_are_evenly_spaced() -> None:
    assert timesteps(1000, 5).tolist() == [999, 799, 599, 399, 199]
    assert timesteps(10, 10).tolist() == list(range(9, -1, -1))
    assert timesteps(7, 3).tolist() == [6, 4, 1]
    assert timesteps(1000, 1).tolist() == [999]


@pytest.mark.once
@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_coefficients_recover_image_from_exact_predictions(prediction: str, steps: int) -> None:
    """With an exact network, DDIM reaches x_0 whatever the number of steps."""
    diffusion = GaussianDiffusion(make_schedule("linear", 50), prediction)
    schedule = diffusion.schedule
    x0, eps = 0.3, 1.7  # one pixel and its noise
    x = schedule.signal[-1] * x0 + schedule.sigma[-1] * eps
    for t, (from_x, from_output, to_x0, to_x, to_z) in zip(
        timesteps(50, steps), coefficients(diffusion, steps)
    ):
        signal, sigma = schedule.signal[t], schedule.sigma[t]
        output = {"noise": eps, "x0": x0, "v": signal * eps - sigma * x0}[prediction]
        predicted_x0 = from_x * x + from_output * output
        assert predicted_x0 == pytest.approx(x0, abs=1e-9)
        assert to_z == 0
        x = to_x0 * predicted_x0 + to_x * x
    assert x == pytest.approx(x0, abs=1e-9)


@pytest.mark.once
def test_coefficients_preserve_noise_level_for_any_eta() -> None:
    """Given x_0, x_s has the mean and variance of the schedule."""
    diffusion = GaussianDiffusion(cosine(T))
    schedule = diffusion.schedule
    for eta in (0.0, 0.5, 1.0):
        for t, (_, _, to_x0, to_x, to_z) in zip(timesteps(T, T), coefficients(diffusion, T, eta)):
            alpha_bar_s = schedule.alphas_cumprod[t - 1] if t else 1.0
            signal, sigma = schedule.signal[t], schedule.sigma[t]
            assert to_x0 + to_x * signal == pytest.approx(alpha_bar_s**0.5, abs=1e-12)
            assert (to_x * sigma) ** 2 + to_z**2 == pytest.approx(1 - alpha_bar_s, abs=1e-12)


@pytest.mark.once
def test_coefficients_match_ddpm_posterior() -> None:
    """Mean and variance of the posterior, Ho et al., 2020, equation 7."""
    diffusion = GaussianDiffusion(make_schedule("linear", 50))
    schedule = diffusion.schedule
    for t, (_, _, to_x0, to_x, to_z) in zip(timesteps(50, 50), coefficients(diffusion, 50, 1.0)):
        beta, alpha_bar_t = schedule.betas[t], schedule.alphas_cumprod[t]
        alpha_bar_s = schedule.alphas_cumprod[t - 1] if t else 1.0
        x0_factor = alpha_bar_s**0.5 * beta / (1 - alpha_bar_t)
        x_factor = (1 - beta) ** 0.5 * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        variance = beta * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        assert to_x0 == pytest.approx(x0_factor, rel=1e-9)
        assert to_x == pytest.approx(x_factor, abs=1e-9)
        assert to_z**2 == pytest.approx(variance, abs=1e-9)


def test_sample_depends_on_seed_and_index_but_not_on_batch_size(
    conditional_sampler: Sampler,
) -> None:
    sample = conditional_sampler.sample
    for eta in (0.0, 1.0):
        options: dict[str, Any] = {"prompts": PROMPTS, "seed": 3, "steps": 4, "eta": eta}
        images = sample(3, **options)
        assert images.shape == (3, 8, 8, 1)
        np.testing.assert_allclose(sample(3, batch_size=2, **options), images, atol=1e-5)
        np.testing.assert_array_equal(sample(3, **options), images)
        assert np.abs(sample(3, **{**options, "seed": 4}) - images).max() > 0.1


def test_sample_with_guidance_extrapolates_predictions(
    conditional_model: keras.Model, conditional_sampler: Sampler
) -> None:
    """Guidance is linear in the scale: checked after a single step without clipping."""
    model, sampler = conditional_model, conditional_sampler
    options: dict[str, Any] = {"prompts": PROMPTS, "steps": 1}
    images = {
        scale: sampler.sample(3, guidance_scale=scale, **options) for scale in (0.0, 1.0, 3.0)
    }
    np.testing.assert_allclose(
        images[3.0] - images[0.0], 3 * (images[1.0] - images[0.0]), atol=1e-5
    )
    assert np.abs(images[1.0] - images[0.0]).max() > 1e-4
    # Negative prompts replace the empty prompts.
    negative = sampler.sample(3, guidance_scale=0.0, negative_prompts=PROMPTS, **options)
    np.testing.assert_allclose(negative, images[1.0], atol=1e-6)
    # At scale 1 the sampler uses the prediction of the whole model.
    first = noise(0, "first", (8, 8, 1), range(3))
    predict = backend.inference_function(
        model, lambda x, t, ids: model({"image": x, "time": t, "prompt": ids}, training=False)
    )
    v = ops.convert_to_numpy(predict(first, np.full(3, T - 1, np.int32), PROMPTS))
    schedule = sampler.diffusion.schedule
    expected = schedule.signal[-1] * first - schedule.sigma[-1] * v
    np.testing.assert_allclose(images[1.0], expected, atol=1e-5)


def test_sample_calls_callback_on_step_end(unconditional_sampler: Sampler) -> None:
    calls: list[tuple[int, np.ndarray]] = []
    images = unconditional_sampler.sample(
        3,
        steps=4,
        batch_size=2,
        callback_on_step_end=lambda first, x, x0: calls.append((first, np.array(x0))),
    )
    assert [first for first, _ in calls] == [0, 0, 0, 0, 2, 2, 2, 2]
    np.testing.assert_allclose(calls[3][1], images[:2], atol=1e-6)
    assert np.abs(images).max() <= 1


def test_sample_computes_no_gradients(unconditional_sampler: Sampler) -> None:
    requires_grad: list[bool] = []
    unconditional_sampler.sample(
        2,
        steps=2,
        callback_on_step_end=lambda _, x, x0: requires_grad.append(
            getattr(x, "requires_grad", False)
        ),
    )
    assert requires_grad == [False, False]


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        (
            {"steps": 21},
            r"`steps` must lie in 1..20, the steps of the schedule. Received: steps=21",
        ),
        ({"eta": 1.5}, r"`eta` must be a number in \[0, 1\]. Received: eta=1.5"),
        ({"guidance_scale": -1.0}, "number of at least 0. Received: guidance_scale=-1.0"),
        ({"guidance_scale": float("nan")}, "Received: guidance_scale=nan"),
        (
            {"prompts": PROMPTS[:2]},
            "`prompts` must hold one prompt for each image. Received: 2 for 3",
        ),
        (
            {"negative_prompts": PROMPTS[:1]},
            "`negative_prompts` must hold one prompt for each image. Received: 1 for 3",
        ),
        (
            {"prompts": None},
            "`prompts` must be given to a text-conditional model.* Received: none",
        ),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
    ],
)
def test_sample_rejects_invalid_arguments(
    conditional_sampler: Sampler, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        conditional_sampler.sample(3, **{"prompts": PROMPTS, **options})


@pytest.mark.once
def test_sample_rejects_prompts_of_unconditional_model(unconditional_sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="and to no other"):
        unconditional_sampler.sample(3, prompts=PROMPTS)


@pytest.mark.once
def test_sampler_rejects_model_of_other_num_steps() -> None:
    model = unet((8, 8, 1), (8,), num_steps=T)
    with pytest.raises(ValueError, match="num_steps=20, a schedule of 10"):
        Sampler(model, GaussianDiffusion(cosine(10)))


def test_sample_does_not_clip_latents(latent_sampler: Sampler) -> None:
    latents = latent_sampler.sample(2, steps=3)
    assert np.abs(latents).max() > 1
    assert keras.config.floatx() == str(latents.dtype)


def test_sample_uses_current_weights(latent_model: keras.Model, latent_sampler: Sampler) -> None:
    """The compiled step reads the model's weights at each call."""
    images = latent_sampler.sample(2, steps=2)
    for variable in latent_model.trainable_variables:
        variable.assign(variable.value * 2)
    assert np.abs(latent_sampler.sample(2, steps=2) - images).max() > 1e-3
