"""Tests of the forward process, and of the conversion between predictions of noise, x_0 and v."""

from typing import Any

import numpy as np
import pytest
from keras import ops

from zoo import random
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.noise_schedule import NoiseSchedule, cosine, linear, make_schedule


def normal(stream: str, *shape: int) -> np.ndarray:
    return random.normal(random.key(0, stream), shape)


def batch(size: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, timesteps and noise."""
    t = np.linspace(0, 999, size).astype(np.int32)
    return np.tanh(normal("image", size, 4, 4, 2)), t, normal("noise", size, 4, 4, 2)


def test_q_sample_step_agrees_with_q_sample() -> None:
    """Mean and variance agree after 1, 10 and all steps; the last x_t is a standard Gaussian."""
    schedule = linear(40, 0.01, 0.3)
    diffusion = GaussianDiffusion(schedule, "noise")
    x0 = np.repeat(np.tanh(normal("image", 1, 2, 2, 1)), 40_000, axis=0)
    x: Any = x0
    for step in range(40):
        t = np.full(len(x0), step, np.int32)
        noise = normal(f"step {step}", *x0.shape)
        x = ops.convert_to_numpy(diffusion.q_sample_step(x, t, noise))
        if step in (0, 9, 39):
            direct = ops.convert_to_numpy(diffusion.q_sample(x0, t, normal("closed", *x0.shape)))
            for samples in (x, direct):
                # The standard error of 40,000 samples is 0.005 for a mean and 0.007 for a
                # variance; the tolerances are five times as large.
                mean = schedule.signal[step] * x0[0]
                np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.025)
                variance = schedule.sigma[step] ** 2
                np.testing.assert_allclose(samples.var(axis=0), variance, atol=0.035)
    assert abs(x.mean()) < 0.04  # the image still contributes 0.03
    assert x.var() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_predict_x0_and_noise_inverts_target(prediction: str, kind: str) -> None:
    diffusion = GaussianDiffusion(make_schedule(kind), prediction)
    x0, t, noise = batch()
    x = diffusion.q_sample(x0, t, noise)
    predictions = diffusion.predict_x0_and_noise(x, t, diffusion.target(x0, t, noise))
    predicted_x0, predicted_noise = map(ops.convert_to_numpy, predictions)
    # At the last step little of the image is left, so rounding of the noise hides x_0.
    precise = slice(0, -1) if prediction == "noise" else slice(None)
    np.testing.assert_allclose(predicted_x0[precise], x0[precise], atol=2e-4)
    np.testing.assert_allclose(predicted_noise[1:], noise[1:], atol=2e-4)


def test_predict_x0_and_noise_from_v_at_zero_terminal_snr() -> None:
    diffusion = GaussianDiffusion(make_schedule("linear", 1000, True), "v")
    x0, _, noise = batch()
    t = np.full(len(x0), 999, np.int32)
    x = diffusion.q_sample(x0, t, noise)
    np.testing.assert_array_equal(ops.convert_to_numpy(x), noise)
    predicted_x0, _ = diffusion.predict_x0_and_noise(x, t, diffusion.target(x0, t, noise))
    np.testing.assert_allclose(ops.convert_to_numpy(predicted_x0), x0, atol=1e-6)


def test_min_snr_weights_equate_losses_of_all_predictions() -> None:
    """For the same error in x_0, the weighted losses of the three predictions are equal."""
    schedule = cosine()
    x0, t, noise = batch()
    t[-1] = 900
    predicted_x0 = x0 + 0.1
    losses = []
    for prediction in ("noise", "x0", "v"):
        diffusion = GaussianDiffusion(schedule, prediction)
        x = ops.convert_to_numpy(diffusion.q_sample(x0, t, noise)).astype(np.float64)
        signal, sigma = (
            table[t][:, None, None, None] for table in (schedule.signal, schedule.sigma)
        )
        predicted_noise = (x - signal * predicted_x0) / sigma
        output = ops.convert_to_numpy(diffusion.target(predicted_x0, t, predicted_noise))
        error = ops.convert_to_numpy(diffusion.target(x0, t, noise)) - output
        loss_weights = ops.convert_to_numpy(diffusion.min_snr_weights(t, 5.0))
        losses.append(loss_weights * np.square(error).mean(axis=(1, 2, 3)))
    expected = 0.01 * np.minimum(schedule.snr[t], 5)
    for loss in losses:
        np.testing.assert_allclose(loss, expected, rtol=2e-3)


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: GaussianDiffusion(cosine(), "score"),
            "must be one of noise, x0, v. Received: prediction='s",
        ),
        (
            lambda: GaussianDiffusion(cosine().rescale_zero_terminal_snr(), "noise"),
            "must be v or x0 for a schedule with a terminal signal-to-noise ratio of 0",
        ),
        (
            lambda: GaussianDiffusion(cosine()).q_sample(*batch()[:2], normal("noise", 5, 4, 4, 2)),
            r"the same shape.* Received: images \(6, 4, 4, 2\), t \(6,\), noise \(5, 4, 4, 2\)",
        ),
        (
            lambda: GaussianDiffusion(cosine(10)).q_sample_step(*batch()),
            r"`t` must lie in \[0, 10\), the schedule's steps. Received: t=999",
        ),
    ],
)
def test_gaussian_diffusion_rejects_invalid_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_gaussian_diffusion_accepts_custom_schedule() -> None:
    diffusion = GaussianDiffusion(NoiseSchedule(np.array([0.5, 0.5])), "x0")
    x0, noise = np.ones((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1, 1), np.float32)
    x = diffusion.q_sample(x0, np.array([1], np.int32), noise)
    assert float(ops.convert_to_numpy(x).item()) == pytest.approx(0.5)
