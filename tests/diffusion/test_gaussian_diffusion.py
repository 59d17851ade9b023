"""The forward process: at once and step by step; noise, image and v from one another."""

from typing import Any

import numpy as np
import pytest
from keras import ops

from zoo import random
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion, check_gamma
from zoo.diffusion.noise_schedule import NoiseSchedule, cosine, linear, make_schedule


def normal(name: str, *shape: int) -> np.ndarray:
    return random.normal(random.key(0, name), shape)


def batch(count: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, steps and noise."""
    t = np.linspace(0, 999, count).astype(np.int32)
    return np.tanh(normal("image", count, 4, 4, 2)), t, normal("noise", count, 4, 4, 2)


def test_all_steps_at_once_and_one_by_one_agree() -> None:
    """In mean and variance, after the first, some and all steps; then it is a standard Gaussian."""
    schedule = linear(40, 0.01, 0.3)
    process = GaussianDiffusion(schedule, "noise")
    x0 = np.repeat(np.tanh(normal("image", 1, 2, 2, 1)), 40_000, axis=0)
    x: Any = x0
    for step in range(40):
        t = np.full(len(x0), step, np.int32)
        noise = normal(f"step {step}", *x0.shape)
        x = ops.convert_to_numpy(process.q_sample_step(x, t, noise))
        if step in (0, 9, 39):
            closed = ops.convert_to_numpy(process.q_sample(x0, t, normal("closed", *x0.shape)))
            for found in (x, closed):
                # Of 40,000 draws a mean is 0.005 off, a variance 0.007: five times that.
                mean = schedule.signal[step] * x0[0]
                np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.025)
                variance = schedule.sigma[step] ** 2
                np.testing.assert_allclose(found.var(axis=0), variance, atol=0.035)
    assert abs(x.mean()) < 0.04  # of which 0.03 is left of the image
    assert x.var() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_each_prediction_tells_the_others(prediction: str, kind: str) -> None:
    process = GaussianDiffusion(make_schedule(kind), prediction)
    x0, t, noise = batch()
    x = process.q_sample(x0, t, noise)
    found = process.predict_x0_and_noise(x, t, process.target(x0, t, noise))
    # Where little is left of the image, the noise tells it no better than rounding allows.
    keep = slice(0, -1) if prediction == "noise" else slice(None)
    np.testing.assert_allclose(ops.convert_to_numpy(found[0])[keep], x0[keep], atol=2e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(found[1])[1:], noise[1:], atol=2e-4)


def test_with_nothing_left_of_the_image_v_still_tells_it() -> None:
    process = GaussianDiffusion(make_schedule("linear", 1000, True), "v")
    x0, _, noise = batch()
    t = np.full(len(x0), 999, np.int32)
    x = process.q_sample(x0, t, noise)
    np.testing.assert_array_equal(ops.convert_to_numpy(x), noise)
    found, _ = process.predict_x0_and_noise(x, t, process.target(x0, t, noise))
    np.testing.assert_allclose(ops.convert_to_numpy(found), x0, atol=1e-6)


def test_weights_make_one_loss_of_three_predictions() -> None:
    """Min-SNR: for the same mistake in x_0, the weighted losses are equal."""
    schedule = cosine()
    x0, t, noise = batch()
    t[-1] = 900
    guess = x0 + 0.1
    losses = []
    for prediction in ("noise", "x0", "v"):
        process = GaussianDiffusion(schedule, prediction)
        x = ops.convert_to_numpy(process.q_sample(x0, t, noise)).astype(np.float64)
        signal, sigma = (
            table[t][:, None, None, None] for table in (schedule.signal, schedule.sigma)
        )
        wrong_noise = (x - signal * guess) / sigma
        wrong = process.target(guess, t, wrong_noise)
        missed = ops.convert_to_numpy(process.target(x0, t, noise)) - ops.convert_to_numpy(wrong)
        weights = ops.convert_to_numpy(process.min_snr_weights(t, 5.0))
        losses.append(weights * np.square(missed).mean(axis=(1, 2, 3)))
    expected = 0.01 * np.minimum(schedule.snr[t], 5)
    for found in losses:
        np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (
            lambda: GaussianDiffusion(cosine(), "score"),
            "must be one of noise, x0, v. Received: prediction=s",
        ),
        (
            lambda: GaussianDiffusion(cosine().rescale_zero_terminal_snr(), "noise"),
            "must be v or x0 with a schedule that ends",
        ),
        (
            lambda: GaussianDiffusion(cosine()).q_sample(*batch()[:2], normal("noise", 5, 4, 4, 2)),
            r"one batch.* Received: images \(6, 4, 4, 2\), t \(6,\), noise \(5, 4, 4, 2\)",
        ),
        (
            lambda: GaussianDiffusion(cosine(10)).q_sample_step(*batch()),
            r"`t` must lie in \[0, 10\), the schedule's steps. Received: t=999",
        ),
        (lambda: check_gamma(0.0), "`min_snr_gamma` must be above 0. Received: min_snr_gamma=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call()


def test_a_schedule_of_ones_own() -> None:
    process = GaussianDiffusion(NoiseSchedule(np.array([0.5, 0.5])), "x0")
    x0, noise = np.ones((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1, 1), np.float32)
    x = process.q_sample(x0, np.array([1], np.int32), noise)
    assert float(ops.convert_to_numpy(x).item()) == pytest.approx(0.5)
