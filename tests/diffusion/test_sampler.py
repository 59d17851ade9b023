"""From noise to images: the steps' tables, guidance, and what an image depends on."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import text_to_image, unet
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.noise_schedule import cosine, make_schedule
from zoo.diffusion.sampler import Sampler, coefficients, noise, timesteps

T = 20
TEXT: dict[str, Any] = {
    "vocabulary_size": 12, "max_length": 4, "hidden_dim": 16, "input_shape": (8, 8, 1),
    "channels": (8, 16), "num_steps": T,
}  # fmt: skip
PROMPTS = np.array([[1, 3, 2, 0], [1, 4, 0, 0], [1, 5, 6, 7]], np.int32)


@pytest.fixture(scope="module")
def asked() -> Sampler:
    return Sampler(text_to_image(**TEXT), GaussianDiffusion(cosine(T)))


@pytest.fixture(scope="module")
def free() -> Sampler:
    return Sampler(unet((8, 8, 1), (8,), num_steps=T), GaussianDiffusion(cosine(T)))


def test_timesteps_begin_at_the_last_and_lie_evenly() -> None:
    assert timesteps(1000, 5).tolist() == [999, 799, 599, 399, 199]
    assert timesteps(10, 10).tolist() == list(range(9, -1, -1))
    assert timesteps(7, 3).tolist() == [6, 4, 1]
    assert timesteps(1000, 1).tolist() == [999]


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_network_that_knows_the_image_draws_it(prediction: str, steps: int) -> None:
    """DDIM goes straight there, whatever the number of steps."""
    process = GaussianDiffusion(make_schedule("linear", 50), prediction)
    x0, first = 0.3, 1.7  # one pixel
    x = process.schedule.signal[-1] * x0 + process.schedule.sigma[-1] * first
    for t, (from_x, from_output, to_x0, to_x, to_z) in zip(
        timesteps(50, steps), coefficients(process, steps)
    ):
        signal, sigma = process.schedule.signal[t], process.schedule.sigma[t]
        output = {"noise": first, "x0": x0, "v": signal * first - sigma * x0}[prediction]
        seen = from_x * x + from_output * output
        assert seen == pytest.approx(x0, abs=1e-9)
        assert to_z == 0
        x = to_x0 * seen + to_x * x
    assert x == pytest.approx(x0, abs=1e-9)


def test_ancestral_steps_keep_the_noise_level() -> None:
    """For any eta: x_s of a known image has the schedule's mean and variance."""
    process = GaussianDiffusion(cosine(T))
    for eta in (0.0, 0.5, 1.0):
        for t, (_, _, to_x0, to_x, to_z) in zip(timesteps(T, T), coefficients(process, T, eta)):
            before = process.schedule.alphas_cumprod[t - 1] if t else 1.0
            signal, sigma = process.schedule.signal[t], process.schedule.sigma[t]
            assert to_x0 + to_x * signal == pytest.approx(before**0.5, abs=1e-12)
            assert (to_x * sigma) ** 2 + to_z**2 == pytest.approx(1 - before, abs=1e-12)


def test_ancestral_steps_are_the_papers() -> None:
    """Ho et al., 2020, equation 7: the posterior's mean and variance."""
    process = GaussianDiffusion(make_schedule("linear", 50))
    schedule = process.schedule
    for t, (_, _, to_x0, to_x, to_z) in zip(timesteps(50, 50), coefficients(process, 50, 1.0)):
        beta, bar = schedule.betas[t], schedule.alphas_cumprod[t]
        before = schedule.alphas_cumprod[t - 1] if t else 1.0
        assert to_x0 == pytest.approx(before**0.5 * beta / (1 - bar), rel=1e-9)
        assert to_x == pytest.approx((1 - beta) ** 0.5 * (1 - before) / (1 - bar), abs=1e-9)
        assert to_z**2 == pytest.approx(beta * (1 - before) / (1 - bar), abs=1e-9)


def test_an_image_depends_on_seed_and_place_not_on_the_batch(asked: Sampler) -> None:
    for eta in (0.0, 1.0):
        options: dict[str, Any] = {"prompts": PROMPTS, "seed": 3, "steps": 4, "eta": eta}
        whole = asked.sample(3, **options)
        assert whole.shape == (3, 8, 8, 1)
        assert np.abs(whole).max() <= 1
        np.testing.assert_allclose(asked.sample(3, batch_size=2, **options), whole, atol=1e-5)
        np.testing.assert_array_equal(asked.sample(3, **options), whole)
        assert np.abs(asked.sample(3, **{**options, "seed": 4}) - whole).max() > 0.1


def test_guidance_is_a_line_through_two_predictions(asked: Sampler) -> None:
    """After a single step, before the image is clipped."""
    model = text_to_image(**TEXT)
    sampler = Sampler(model, GaussianDiffusion(cosine(T)), clip=False)
    options: dict[str, Any] = {"prompts": PROMPTS, "steps": 1}
    drawn = {scale: sampler.sample(3, guidance_scale=scale, **options) for scale in (0.0, 1.0, 3.0)}
    np.testing.assert_allclose(drawn[3.0] - drawn[0.0], 3 * (drawn[1.0] - drawn[0.0]), atol=1e-5)
    assert np.abs(drawn[1.0] - drawn[0.0]).max() > 1e-4
    # What is not asked for takes the place of nothing.
    away = sampler.sample(3, guidance_scale=0.0, negative=PROMPTS, **options)
    np.testing.assert_allclose(away, drawn[1.0], atol=1e-6)
    # And what it is asked of is what the model says of the whole.
    first = noise(0, "first", (8, 8, 1), range(3))
    inputs = {"image": first, "time": np.full(3, T - 1, np.int32), "prompt": PROMPTS}
    v = ops.convert_to_numpy(model(inputs))
    schedule = sampler.process.schedule
    expected = schedule.signal[-1] * first - schedule.sigma[-1] * v
    np.testing.assert_allclose(drawn[1.0], expected, atol=1e-5)


def test_steps_are_shown(free: Sampler) -> None:
    seen: list[tuple[int, np.ndarray]] = []
    images = free.sample(
        3, steps=4, batch_size=2, show=lambda first, x, x0: seen.append((first, np.array(x0)))
    )
    assert [first for first, _ in seen] == [0, 0, 0, 0, 2, 2, 2, 2]
    np.testing.assert_allclose(seen[3][1], images[:2], atol=1e-6)


def test_no_gradients_are_kept(free: Sampler) -> None:
    kept: list[bool] = []
    free.sample(2, steps=2, show=lambda _, x, x0: kept.append(getattr(x, "requires_grad", False)))
    assert kept == [False, False]


def test_a_sampler_follows_its_model() -> None:
    """Its compiled step reads the weights anew."""
    model = unet((8, 8, 1), (8,), num_steps=T)
    sampler = Sampler(model, GaussianDiffusion(cosine(T)))
    before = sampler.sample(2, steps=2)
    for variable in model.trainable_variables:
        variable.assign(variable.value * 2)
    assert np.abs(sampler.sample(2, steps=2) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"steps": 0}, "`steps` must be a whole number of at least 1. Received: steps=0"),
        (
            {"steps": 21},
            r"`steps` must lie in 1..20, the steps of the schedule. Received: steps=21",
        ),
        ({"eta": 1.5}, r"`eta` must lie in \[0, 1\]. Received: eta=1.5"),
        ({"guidance_scale": -1.0}, "number of at least 0. Received: guidance_scale=-1.0"),
        ({"guidance_scale": float("nan")}, "Received: guidance_scale=nan"),
        ({"prompts": PROMPTS[:2]}, "`prompts` must be as many as the images. Received: 2 for 3"),
        ({"negative": PROMPTS[:1]}, "`negative` must be as many as the images. Received: 1 for 3"),
        ({"prompts": None}, "`prompts` must be given to a model that reads them.* Received: none"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: Sampler, options: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        asked.sample(3, **{"prompts": PROMPTS, **options})


def test_a_model_of_another_number_of_steps_is_refused(free: Sampler) -> None:
    model = unet((8, 8, 1), (8,), num_steps=T)
    with pytest.raises(ValueError, match="num_steps=20, a schedule of 10"):
        Sampler(model, GaussianDiffusion(cosine(10)))
    with pytest.raises(ValueError, match="and to no other"):
        free.sample(3, prompts=PROMPTS)


def test_latents_are_not_clipped() -> None:
    model = unet((8, 8, 1), (8,), num_steps=T)
    sampler = Sampler(model, GaussianDiffusion(cosine(T)), clip=False)
    assert np.abs(sampler.sample(4, steps=3)).max() > 1
    assert keras.config.floatx() == str(sampler.sample(1, steps=1).dtype)
