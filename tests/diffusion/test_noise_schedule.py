"""Tests of the noise schedules: their tables, and invalid arguments."""

import numpy as np
import pytest

from zoo.diffusion.noise_schedule import NoiseSchedule, cosine, linear, make_schedule

pytestmark = pytest.mark.once

SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [
        linear(),
        cosine(),
        linear().rescale_zero_terminal_snr(),
        cosine(20).rescale_zero_terminal_snr(),
    ],
)


@SCHEDULES
def test_noise_schedule_tables_are_consistent(schedule: NoiseSchedule) -> None:
    for table in (schedule.betas, schedule.alphas_cumprod, schedule.signal, schedule.sigma):
        assert table.dtype == np.float64
        assert table.shape == (len(schedule),)
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    np.testing.assert_allclose(schedule.signal**2 + schedule.sigma**2, 1, rtol=1e-15)
    np.testing.assert_allclose(schedule.snr, (schedule.signal / schedule.sigma) ** 2, rtol=1e-9)
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, rtol=1e-12)


def test_rescale_zero_terminal_snr_keeps_first_step() -> None:
    for schedule in (linear(), cosine()):
        zero_snr = schedule.rescale_zero_terminal_snr()
        assert not schedule.has_zero_terminal_snr
        assert zero_snr.has_zero_terminal_snr
        assert zero_snr.alphas_cumprod[0] == pytest.approx(schedule.alphas_cumprod[0], rel=1e-12)
        assert zero_snr.snr[-1] == 0
        # Shifted and scaled: the new signal is a linear function of the original one.
        scale, shift = np.polyfit(schedule.signal, zero_snr.signal, 1)
        np.testing.assert_allclose(zero_snr.signal, scale * schedule.signal + shift, atol=1e-12)


def test_noise_schedule_tables_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        linear().betas[0] = 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_schedule("square"), "`kind` must be one of linear, cosine. Received: kind='"),
        (lambda: make_schedule(steps=0), "`steps` must be a whole number of at least 1"),
        (
            lambda: make_schedule(steps=1, zero_terminal_snr=True),
            "`steps` must be at least 2 with `zero_terminal_snr`. Received: steps=1",
        ),
        (
            lambda: NoiseSchedule(np.array([0.5, 1.5])),
            r"`betas` must lie in \[0, 1\]. Received: 1.5 at step 2",
        ),
        (
            lambda: NoiseSchedule(np.zeros((2, 2))),
            r"`betas` must be an array .* of shape \(T,\). Received: .* of shape \(2, 2\)",
        ),
        (
            lambda: linear(10, beta_start=0.0),
            r"signal-to-noise ratio is infinite. Received: betas\[0\]=0.0, which leaves "
            "alphas_cumprod=1 after step 1",
        ),
    ],
)
def test_noise_schedule_rejects_invalid_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
