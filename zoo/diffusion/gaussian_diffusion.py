"""The forward process, and three ways to say what a noisy image hides.

    x_t = signal_t·x_0 + sigma_t·noise             signal² + sigma² = 1

A network that sees x_t may predict the noise, the image x_0, or v = signal_t·noise - sigma_t·x_0.
With x_t, each gives the other two:

    x_0 = signal_t·x_t - sigma_t·v        noise = sigma_t·x_t + signal_t·v

Source: Ho et al., 2020, sections 2 and 3; Salimans and Ho, "Progressive Distillation", 2022
(v); Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023.
"""

from typing import Any, Literal, get_args

import numpy as np
from keras import ops

from zoo.diffusion.noise_schedule import NoiseSchedule

Tensor = Any
Prediction = Literal["noise", "x0", "v"]


class GaussianDiffusion:
    """The forward process of a schedule, and what is predicted of it.

    Images are (B, H, W, C), of about unit variance or in [-1, 1]; t is (B,) int, an index of the
    schedule's tables: 0 is the first step, T - 1 the last.

    Args:
        schedule: how fast an image is lost.
        prediction: what the network says: "noise", "x0" or "v".

    Raises:
        ValueError: for another `prediction`, or "noise" of a schedule that leaves nothing of the
            image, where it does not say what the image was.
    """

    def __init__(self, schedule: NoiseSchedule, prediction: str = "v"):
        if prediction not in get_args(Prediction):
            raise ValueError(
                f"`prediction` must be one of {', '.join(get_args(Prediction))}. "
                f"Received: prediction={prediction}"
            )
        if prediction == "noise" and schedule.has_zero_terminal_snr:
            raise ValueError(
                "`prediction` must be v or x0 with a schedule that ends at a signal to noise ratio "
                "of 0, where the noise does not tell the image. Received: prediction=noise"
            )
        self.schedule = schedule
        self.prediction = prediction

    # -------------------------------------------------------------- forward

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, the first t + 1 steps at once."""
        x0, noise = self._checked(x0, t, noise)
        signal, sigma = self._ratios(x0, t)
        return signal * x0 + sigma * noise

    def q_sample_step(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """One step of the chain: x_t from x_(t-1), or from x_0 at t = 0."""
        x, noise = self._checked(x, t, noise)
        betas = self.schedule.betas
        return _at(np.sqrt(1 - betas), t, x) * x + _at(np.sqrt(betas), t, x) * noise

    # -------------------------------------------------------------- what is hidden

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict of x_t."""
        x0, noise = self._checked(x0, t, noise)
        if self.prediction == "noise":
            return noise
        if self.prediction == "x0":
            return x0
        signal, sigma = self._ratios(x0, t)
        return signal * noise - sigma * x0

    def predict_x0_and_noise(
        self, x: Tensor, t: Tensor, predicted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x_0 and the noise, from x_t and the network's prediction of it.

        At a signal to noise ratio of 0, "x0" does not tell v but does tell the noise: it is x_t.
        """
        x, predicted = self._checked(x, t, predicted)
        signal, sigma = self._ratios(x, t)
        if self.prediction == "noise":
            return (x - sigma * predicted) / signal, predicted
        if self.prediction == "x0":
            return predicted, (x - signal * predicted) / sigma
        return signal * x - sigma * predicted, sigma * x + signal * predicted

    def min_snr_weights(self, t: Tensor, min_snr_gamma: float) -> Tensor:
        """Of each image's loss, (B,), such that no ratio above gamma counts more.

        The loss on x_0 has the weight min(SNR, gamma); those on the noise and on v, which are SNR
        and SNR + 1 times as large for the same mistake, have as much less.
        """
        snr = self.schedule.snr
        clipped = np.minimum(snr, min_snr_gamma)
        divisors = {"noise": snr, "x0": 1.0, "v": snr + 1}
        return _take(clipped / divisors[self.prediction], t, "float32")

    # -------------------------------------------------------------- tables

    def _ratios(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return _at(self.schedule.signal, t, x), _at(self.schedule.sigma, t, x)

    def _checked(self, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(x.shape) != tuple(noise.shape) or t.shape[0] != x.shape[0]:
            raise ValueError(
                "Images, `t` and noise must be of one batch, and noise of the images' shape. "
                f"Received: images {tuple(x.shape)}, t {tuple(t.shape)}, noise "
                f"{tuple(noise.shape)}"
            )
        if isinstance(t, np.ndarray) and t.size:
            low, high = int(t.min()), int(t.max())
            if low < 0 or high >= len(self.schedule):
                raise ValueError(
                    f"`t` must lie in [0, {len(self.schedule)}), the schedule's steps. "
                    f"Received: t={low if low < 0 else high}"
                )
        x = ops.convert_to_tensor(x)
        return x, ops.convert_to_tensor(noise, dtype=x.dtype)


def check_gamma(min_snr_gamma: float | None) -> None:
    """Raises ValueError unless it is None or above 0."""
    if min_snr_gamma is not None and not min_snr_gamma > 0:
        raise ValueError(
            f"`min_snr_gamma` must be above 0. Received: min_snr_gamma={min_snr_gamma}"
        )


def _take(table: np.ndarray, t: Tensor, dtype: Any) -> Tensor:
    return ops.take(ops.convert_to_tensor(table, dtype=dtype), t, axis=0)


def _at(table: np.ndarray, t: Tensor, x: Tensor) -> Tensor:
    """(B, 1, 1, 1): each image's number of a table."""
    return ops.reshape(_take(table, t, x.dtype), (-1, *(1 for _ in x.shape[1:])))
