"""How much of an image is left after each of T steps of noise.

Step t keeps sqrt(1 - beta_t) of what the step before left, and adds sqrt(beta_t) of noise. With

    alpha_bar_t = (1 - beta_1)·...·(1 - beta_t)

the first t steps at once are x_t = sqrt(alpha_bar_t)·x_0 + sqrt(1 - alpha_bar_t)·noise, of a signal
to noise ratio of alpha_bar_t/(1 - alpha_bar_t). In the tables step t has the index t - 1.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (linear); Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", 2021 (cosine); Lin et al., "Common Diffusion
Noise Schedules and Sample Steps are Flawed", 2023 (no signal left at the end).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from zoo.validation import check_sizes

Kind = Literal["linear", "cosine"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a schedule, in float64.

    Attributes:
        betas: (T,), the share of noise that each step adds, in [0, 1].
        alphas_cumprod: (T,), the share of the image's variance that is left.
        signal: (T,), its square root.
        sigma: (T,), the noise's: sqrt(1 - alphas_cumprod).
        snr: (T,), the signal to noise ratio.

    Raises:
        ValueError: for betas outside [0, 1], or so small that the ratio is infinite.
    """

    betas: np.ndarray
    alphas_cumprod: np.ndarray = field(init=False)
    signal: np.ndarray = field(init=False)
    sigma: np.ndarray = field(init=False)
    snr: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(
                f"`betas` must be a row of one number at least. Received: shape={betas.shape}"
            )
        wrong = np.flatnonzero(~((betas >= 0) & (betas <= 1)))
        if len(wrong):
            raise ValueError(
                f"`betas` must lie in [0, 1]. Received: {betas[wrong[0]]} at step {wrong[0] + 1}"
            )
        alphas_cumprod = np.cumprod(1 - betas)
        noiseless = np.flatnonzero(alphas_cumprod == 1)
        if len(noiseless):
            step = noiseless[-1]
            raise ValueError(
                "A schedule must add noise from its first step on, or the signal to noise ratio is "
                f"infinite. Received: betas[{step}]={betas[step]}, which leaves alpha_bar=1 after "
                f"step {step + 1}"
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
        """T."""
        return len(self.betas)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether no signal at all is left after the last step."""
        return bool(self.alphas_cumprod[-1] == 0)

    def rescale_zero_terminal_snr(self) -> "NoiseSchedule":
        """The same shape, moved and stretched so that nothing is left after the last step.

        The first step stays as it is.
        """
        first, last = self.signal[0], self.signal[-1]
        alphas_cumprod = ((self.signal - last) * (first / (first - last))) ** 2
        return _from_alphas_cumprod(alphas_cumprod)


def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
    """Betas rise evenly. The default ends suit 1,000 steps.

    Raises:
        ValueError: if `steps` is not at least 1, or a beta lies outside [0, 1].
    """
    check_sizes(steps=steps)
    return NoiseSchedule(np.linspace(first, last, steps))


def cosine(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> NoiseSchedule:
    """The image's share falls as a squared cosine.

    Args:
        steps: T.
        offset: of the cosine's argument, so that the first steps are not too small.
        largest: beta.

    Raises:
        ValueError: if `steps` is not at least 1, or the ratio is infinite.
    """
    check_sizes(steps=steps)

    def left(t: float) -> float:
        return math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    betas = [min(1 - left((i + 1) / steps) / left(i / steps), largest) for i in range(steps)]
    return NoiseSchedule(np.array(betas))


def make_schedule(
    kind: str = "cosine", steps: int = 1000, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """A schedule by its name.

    Args:
        kind: "linear" or "cosine".
        steps: T.
        zero_terminal_snr: whether it is rescale_zero_terminal_snr, so that nothing is left of the image at the end.

    Raises:
        ValueError: for another kind, or `steps` not at least 1 (2 to be rescale_zero_terminal_snr).
    """
    known = {"linear": linear, "cosine": cosine}
    if kind not in known:
        raise ValueError(f"`kind` must be one of {', '.join(known)}. Received: kind={kind}")
    made = known[kind](steps)
    if zero_terminal_snr and steps < 2:
        raise ValueError(
            f"`steps` must be at least 2 to be rescale_zero_terminal_snr. Received: steps={steps}"
        )
    return made.rescale_zero_terminal_snr() if zero_terminal_snr else made


def _from_alphas_cumprod(alphas_cumprod: np.ndarray) -> NoiseSchedule:
    before = np.concatenate([[1.0], alphas_cumprod[:-1]])
    return NoiseSchedule(1 - alphas_cumprod / before)
