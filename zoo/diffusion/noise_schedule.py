"""Noise schedules: the variance of the noise that each of T diffusion steps adds.

Step t scales the image by sqrt(1 - beta_t) and adds noise of variance beta_t. With

    alpha_bar_t = (1 - beta_1)·...·(1 - beta_t)

the first t steps together give x_t = sqrt(alpha_bar_t)·x_0 + sqrt(1 - alpha_bar_t)·noise, whose
signal-to-noise ratio (SNR) is alpha_bar_t/(1 - alpha_bar_t). In the tables, step t has the index
t - 1.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (linear); Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", 2021 (cosine); Lin et al., "Common Diffusion
Noise Schedules and Sample Steps are Flawed", 2023 (zero terminal SNR).
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from zoo.validation import NonNegative, Probability, Timesteps, array, validated

Kind = Literal["linear", "cosine"]


@validated
@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a noise schedule, read-only and in float64.

    Attributes:
        betas: (T,), the noise variance that each step adds, in [0, 1].
        alphas_cumprod: (T,), the fraction of the image's variance that is left after each step.
        signal: (T,), the factor of the image in x_t, sqrt(alphas_cumprod).
        sigma: (T,), the factor of the noise in x_t, sqrt(1 - alphas_cumprod).
        snr: (T,), the signal-to-noise ratio.

    Raises:
        ValueError: if a beta lies outside [0, 1] or the signal-to-noise ratio is infinite.
    """

    betas: Annotated[np.ndarray, array("iuf", "(T,)")]
    alphas_cumprod: np.ndarray = field(init=False)
    signal: np.ndarray = field(init=False)
    sigma: np.ndarray = field(init=False)
    snr: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(
                "`betas` must be a one-dimensional array of at least one number. "
                f"Received: shape={betas.shape}"
            )
        out_of_range = np.flatnonzero(~((betas >= 0) & (betas <= 1)))
        if len(out_of_range):
            index = out_of_range[0]
            raise ValueError(
                f"`betas` must lie in [0, 1]. Received: {betas[index]} at step {index + 1}"
            )
        alphas_cumprod = np.cumprod(1 - betas)
        noiseless = np.flatnonzero(alphas_cumprod == 1)
        if len(noiseless):
            index = noiseless[-1]
            raise ValueError(
                "`betas` must add noise from the first step on; otherwise the signal-to-noise "
                f"ratio is infinite. Received: betas[{index}]={betas[index]}, which leaves "
                f"alphas_cumprod=1 after step {index + 1}"
            )
        tables = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "signal": np.sqrt(alphas_cumprod),
            "sigma": np.sqrt(1 - alphas_cumprod),
            "snr": alphas_cumprod / (1 - alphas_cumprod),
        }
        for name, table in tables.items():
            table.setflags(write=False)
            object.__setattr__(self, name, table)

    def __len__(self) -> int:
        """The number of steps, T."""
        return len(self.betas)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether x_T is pure noise: the signal-to-noise ratio of the last step is 0."""
        return bool(self.alphas_cumprod[-1] == 0)

    def rescale_zero_terminal_snr(self) -> "NoiseSchedule":
        """Shifts and scales `signal` so that the last step has a signal-to-noise ratio of 0.

        The first step is unchanged. Source: Lin et al., 2023, algorithm 1.
        """
        first, last = self.signal[0], self.signal[-1]
        alphas_cumprod = ((self.signal - last) * (first / (first - last))) ** 2
        return _from_alphas_cumprod(alphas_cumprod)


@validated
def linear(
    steps: Timesteps = 1000, beta_start: Probability = 1e-4, beta_end: Probability = 0.02
) -> NoiseSchedule:
    """Linear schedule: the betas rise linearly. The default ends suit 1,000 steps.

    Args:
        steps: Number of steps, T.
        beta_start: Beta of the first step.
        beta_end: Beta of the last step.

    Raises:
        ValueError: if `steps` is not at least 1, or a beta lies outside [0, 1].
    """
    return NoiseSchedule(np.linspace(beta_start, beta_end, steps))


@validated
def cosine(
    steps: Timesteps = 1000, offset: NonNegative = 0.008, max_beta: Probability = 0.999
) -> NoiseSchedule:
    """Cosine schedule: alpha_bar falls as a squared cosine.

    Args:
        steps: Number of steps, T.
        offset: Offset of the cosine's argument, which keeps the first betas from being too small.
        max_beta: Upper bound of the betas.

    Raises:
        ValueError: if `steps` is not at least 1, or the signal-to-noise ratio is infinite.
    """

    def alpha_bar(t: float) -> float:
        return math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    betas = [1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
    return NoiseSchedule(np.array([min(beta, max_beta) for beta in betas]))


@validated
def make_schedule(
    kind: Kind = "cosine", steps: Timesteps = 1000, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Builds a noise schedule by name.

    Args:
        kind: Name of the schedule, "linear" or "cosine".
        steps: Number of steps, T.
        zero_terminal_snr: Whether the schedule is rescaled to a signal-to-noise ratio of 0 at its
            last step.

    Raises:
        ValueError: if `kind` is unknown, or `steps` is below 1, or below 2 with
            `zero_terminal_snr`.
    """
    builders = {"linear": linear, "cosine": cosine}
    schedule = builders[kind](steps)
    if not zero_terminal_snr:
        return schedule
    if steps < 2:
        raise ValueError(
            f"`steps` must be at least 2 with `zero_terminal_snr`. Received: steps={steps}"
        )
    return schedule.rescale_zero_terminal_snr()


def _from_alphas_cumprod(alphas_cumprod: np.ndarray) -> NoiseSchedule:
    previous = np.concatenate([[1.0], alphas_cumprod[:-1]])
    return NoiseSchedule(1 - alphas_cumprod / previous)
