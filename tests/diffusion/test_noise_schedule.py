"""Schedules: their tables, and what they refuse."""

import numpy as np
import pytest

from zoo.diffusion.noise_schedule import NoiseSchedule, cosine, linear, make_schedule

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
def test_noise_takes_over_step_by_step(schedule: NoiseSchedule) -> None:
    for table in (schedule.betas, schedule.alphas_cumprod, schedule.signal, schedule.sigma):
        assert table.dtype == np.float64
        assert table.shape == (len(schedule),)
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    np.testing.assert_allclose(schedule.signal**2 + schedule.sigma**2, 1, rtol=1e-15)
    np.testing.assert_allclose(schedule.snr, (schedule.signal / schedule.sigma) ** 2, rtol=1e-9)
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, rtol=1e-12)


def test_rescaling_keeps_the_first_step_and_leaves_nothing_at_the_end() -> None:
    for schedule in (linear(), cosine()):
        rescaled = schedule.rescale_zero_terminal_snr()
        assert not schedule.has_zero_terminal_snr
        assert rescaled.has_zero_terminal_snr
        assert rescaled.alphas_cumprod[0] == pytest.approx(
            schedule.alphas_cumprod[0], rel=1e-12
        )
        assert rescaled.snr[-1] == 0
        # Moved and stretched: the signal is a linear function of what it was.
        slope, offset = np.polyfit(schedule.signal, rescaled.signal, 1)
        np.testing.assert_allclose(
            rescaled.signal, slope * schedule.signal + offset, atol=1e-12
        )


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        linear().betas[0] = 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: make_schedule("square"), "`kind` must be one of linear, cosine. Received: kind=s"),
        (lambda: make_schedule(steps=0), "`steps` must be a whole number of at least 1"),
        (
            lambda: make_schedule(steps=1, zero_terminal_snr=True),
            "`steps` must be at least 2 to be rescale_zero_terminal_snr. Received: steps=1",
        ),
        (
            lambda: NoiseSchedule(np.array([0.5, 1.5])),
            r"`betas` must lie in \[0, 1\]. Received: 1.5 at step 2",
        ),
        (lambda: NoiseSchedule(np.zeros((2, 2))), "must be a row of one number at least"),
        (
            lambda: linear(10, first=0.0),
            r"signal to noise ratio is infinite. Received: betas\[0\]=0.0, which leaves "
            "alpha_bar=1 after step 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()  # type: ignore[operator]
