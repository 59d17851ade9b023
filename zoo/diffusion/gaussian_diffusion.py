"""Gaussian diffusion: the forward process, and three parametrisations of its reverse.

    x_t = signal_t·x_0 + sigma_t·noise             signal² + sigma² = 1

A network that receives x_t may predict the noise, the image x_0, or the velocity
v = signal_t·noise - sigma_t·x_0. Together with x_t, each determines the other two:

    x_0 = signal_t·x_t - sigma_t·v        noise = sigma_t·x_t + signal_t·v

Source: Ho et al., 2020, sections 2 and 3; Salimans and Ho, "Progressive Distillation", 2022
(v); Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023.
"""

from typing import Any, Literal

import numpy as np
from keras import ops

from zoo.diffusion.noise_schedule import NoiseSchedule
from zoo.validation import validated

Tensor = Any
Prediction = Literal["noise", "x0", "v"]


class GaussianDiffusion:
    """The forward process of a noise schedule, and the quantity that the network predicts.

    Images are (B, H, W, C), of about unit variance or in [-1, 1]. Timesteps t are (B,) int,
    indices into the schedule's tables: 0 is the first step, T - 1 the last.

    Args:
        schedule: Noise schedule of the forward process.
        prediction: Quantity that the network predicts: "noise", "x0" or "v".

    Raises:
        ValueError: if `prediction` is unknown, or is "noise" for a schedule with a terminal
            signal-to-noise ratio of 0, where the noise does not determine the image.
    """

    @validated
    def __init__(self, schedule: NoiseSchedule, prediction: Prediction = "v"):
        if prediction == "noise" and schedule.has_zero_terminal_snr:
            raise ValueError(
                "`prediction` must be v or x0 for a schedule with a terminal signal-to-noise "
                "ratio of 0, where the noise does not determine the image. "
                "Received: prediction=noise"
            )
        self.schedule = schedule
        self.prediction = prediction

    # -------------------------------------------------------------- forward process

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Samples x_t given x_0: the first t + 1 steps at once."""
        x0, noise = self._check_batch(x0, t, noise)
        signal, sigma = self._signal_and_sigma(x0, t)
        return signal * x0 + sigma * noise

    def q_sample_step(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Samples x_t given x_(t-1), or given x_0 at t = 0: one step of the forward process."""
        x, noise = self._check_batch(x, t, noise)
        betas = self.schedule.betas
        return _at(np.sqrt(1 - betas), t, x) * x + _at(np.sqrt(betas), t, x) * noise

    # -------------------------------------------------------------- prediction

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The network's training target at x_t: the noise, x_0 or v."""
        x0, noise = self._check_batch(x0, t, noise)
        if self.prediction == "noise":
            return noise
        if self.prediction == "x0":
            return x0
        signal, sigma = self._signal_and_sigma(x0, t)
        return signal * noise - sigma * x0

    def predict_x0_and_noise(self, x: Tensor, t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the predicted x_0 and noise from x_t and the network's output.

        At a signal-to-noise ratio of 0, x_t is the noise, so an "x0" network still gives both.
        """
        x, output = self._check_batch(x, t, output)
        signal, sigma = self._signal_and_sigma(x, t)
        if self.prediction == "noise":
            return (x - sigma * output) / signal, output
        if self.prediction == "x0":
            return output, (x - signal * output) / sigma
        return signal * x - sigma * output, sigma * x + signal * output

    def min_snr_weights(self, t: Tensor, min_snr_gamma: float) -> Tensor:
        """Min-SNR weight of each image's loss, (B,), which clips the SNR at gamma.

        The loss on x_0 has the weight min(SNR, gamma). For the same error, the losses on the noise
        and on v are SNR and SNR + 1 times as large; their weights are divided by these factors.
        """
        snr = self.schedule.snr
        clipped = np.minimum(snr, min_snr_gamma)
        divisors = {"noise": snr, "x0": 1.0, "v": snr + 1}
        return _take(clipped / divisors[self.prediction], t, "float32")

    # -------------------------------------------------------------- tables

    def _signal_and_sigma(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return _at(self.schedule.signal, t, x), _at(self.schedule.sigma, t, x)

    def _check_batch(self, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Converts images and noise to tensors of one dtype, once their shapes have been checked.

        `t` is checked only where its values are known, as a NumPy array.
        """
        if tuple(x.shape) != tuple(noise.shape) or t.shape[0] != x.shape[0]:
            raise ValueError(
                "Images and noise must have the same shape, and `t` one timestep for each image. "
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


def _take(table: np.ndarray, t: Tensor, dtype: Any) -> Tensor:
    return ops.take(ops.convert_to_tensor(table, dtype=dtype), t, axis=0)


def _at(table: np.ndarray, t: Tensor, x: Tensor) -> Tensor:
    """The table's value at each image's timestep, (B, 1, 1, 1), in the dtype of `x`."""
    return ops.reshape(_take(table, t, x.dtype), (-1, *(1 for _ in x.shape[1:])))
