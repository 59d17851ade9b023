"""Sampling with the reverse process: DDPM and DDIM, from noise to images.

Each step predicts x_0 and the noise from x_t, and moves to an earlier timestep s < t:

    x_s = signal_s·x_0 + sqrt(sigma_s² - std²)·noise + std·z

where z is fresh standard normal noise. `eta` scales std: 0 is DDIM, which is deterministic given
the initial noise; 1 is the ancestral sampling of DDPM. s need not be t - 1: any number of steps,
evenly spaced over the schedule's T, leads from noise to an image.

x_0 and the noise are linear in x_t and the network's output. Every step is therefore two linear
combinations, whose five coefficients are computed in float64 beforehand:

    x_0 = from_x·x_t + from_output·output            clipped if images are in [-1, 1]
    x_s = to_x0·x_0 + to_x·x_t + to_z·z

Source: Ho et al., 2020, algorithm 2; Song et al., "Denoising Diffusion Implicit Models", 2021,
equation 12; Lin et al., 2023, section 3.3 (spacing of the timesteps).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import backend
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.prompts import empty_prompts
from zoo.validation import (
    MAX_COUNT,
    NonNegative,
    Probability,
    Seed,
    Shape,
    Size,
    Timesteps,
    TokenRows,
    each,
    validated,
    whole,
)

Tensor = Any
StepCallback = Callable[[int, Tensor, Tensor], None]


@validated
def timesteps(total: Timesteps, steps: Timesteps) -> np.ndarray:
    """Timesteps of the sampler, (steps,) int: evenly spaced, descending from total - 1.

    Args:
        total: Number of steps of the noise schedule, T.
        steps: Number of sampling steps.

    Raises:
        ValueError: if `steps` lies outside 1..total.
    """
    if steps > total:
        raise ValueError(
            f"`steps` must lie in 1..{total}, the steps of the schedule. Received: steps={steps}"
        )
    return np.round(np.arange(total, 0, -total / steps)[:steps]).astype(np.int32) - 1


@validated
def coefficients(
    diffusion: GaussianDiffusion, steps: Timesteps, eta: Probability = 0.0
) -> np.ndarray:
    """Coefficients of each sampling step: from_x, from_output, to_x0, to_x and to_z.

    Args:
        diffusion: Forward process and prediction that the model was trained with.
        steps: Number of sampling steps, 1..T.
        eta: Amount of fresh noise: 0 for DDIM, 1 for DDPM, or between.

    Returns:
        (steps, 5) float64.

    Raises:
        ValueError: if `steps` lies outside 1..T or `eta` outside [0, 1].
    """
    schedule = diffusion.schedule
    t = timesteps(len(schedule), steps)
    alpha_bar_t = schedule.alphas_cumprod[t]
    alpha_bar_s = np.append(schedule.alphas_cumprod[t[1:]], 1.0)
    signal, sigma = np.sqrt(alpha_bar_t), np.sqrt(1 - alpha_bar_t)
    std = eta * np.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s))
    # Rounding must not leave a negative number under the root.
    to_x = np.sqrt(np.maximum(1 - alpha_bar_s - std**2, 0)) / sigma
    ones = np.ones_like(alpha_bar_t)
    if diffusion.prediction == "noise":
        from_x, from_output = 1 / signal, -sigma / signal
    elif diffusion.prediction == "x0":
        from_x, from_output = 0 * ones, ones
    else:
        from_x, from_output = signal, -sigma
    to_x0 = np.sqrt(alpha_bar_s) - to_x * signal
    return np.stack([from_x, from_output, to_x0, to_x, std], axis=1)


class Sampler:
    """DDPM and DDIM sampler of a model, whose sampling step is compiled once.

    Args:
        model: A `text_to_image` model or a `unet`.
        diffusion: Forward process and prediction that the model was trained with.
        clip: Whether the predicted x_0 is clipped to [-1, 1]; False if images are the latents of
            an autoencoder.

    Raises:
        ValueError: if the model was built for another number of steps than the schedule has.
    """

    @validated
    def __init__(self, model: keras.Model, diffusion: GaussianDiffusion, clip: bool = True):
        inputs = getattr(model, "input", None)
        if not isinstance(inputs, dict) or not {"image", "time"} <= set(inputs):
            raise ValueError(
                f"`model` must be a text_to_image model or a unet. Received: model={model.name}"
            )
        self.is_text_conditional = "prompt" in inputs
        network = model.get_layer("unet") if self.is_text_conditional else model
        num_steps = network.get_layer("time_embedding").num_steps
        if num_steps != len(diffusion.schedule):
            raise ValueError(
                "The model's `num_steps` must be the schedule's. Received: "
                f"num_steps={num_steps}, a schedule of {len(diffusion.schedule)}"
            )
        self.shape: tuple[int, ...] = tuple(model.input["image"].shape[1:])
        self.diffusion = diffusion
        if self.is_text_conditional:
            encoder = model.get_layer("text_encoder")
            self._encode_text = backend.inference_function(
                encoder, lambda ids: encoder(ops.convert_to_tensor(ids), training=False)
            )

        def step(x: Tensor, t: Tensor, row: Tensor, z: Tensor, *text: Tensor) -> Any:
            x, t, row, z = map(ops.convert_to_tensor, (x, t, row, z))
            output = ops.cast(_guided_output(network, x, t, row[5], *text), x.dtype)
            x0 = row[0] * x + row[1] * output
            if clip:
                x0 = ops.clip(x0, -1.0, 1.0)
            return row[2] * x0 + row[3] * x + row[4] * z, x0

        self._step = backend.sampling_function(network, step)

    @validated
    def sample(
        self,
        count: Size,
        prompts: TokenRows | None = None,
        negative_prompts: TokenRows | None = None,
        guidance_scale: NonNegative = 2.0,
        seed: Seed = 0,
        steps: Timesteps = 50,
        eta: Probability = 0.0,
        batch_size: Size = 64,
        callback_on_step_end: StepCallback | None = None,
    ) -> np.ndarray:
        """Samples images. The noise of an image depends on its index, not on the batch size.

        Args:
            count: Number of images.
            prompts: Token ids of the prompts of a `text_to_image` model, (count, L) int.
            negative_prompts: Token ids of what the images are not to show, (count, L) int; empty
                prompts by default.
            guidance_scale: Weight of classifier-free guidance: 0 ignores the prompt, 1 follows
                the model's own prediction, larger values follow the prompt more closely.
            seed: Seed of all noise; the images are the same on every backend.
            steps: Number of sampling steps, 1..T.
            eta: Amount of fresh noise: 0 for DDIM, 1 for DDPM, or between.
            batch_size: Number of images that are sampled together.
            callback_on_step_end: Function called after each step with the index of the batch's
                first image, x_t and the predicted x_0, each (B, H, W, C).

        Returns:
            (count, H, W, C).

        Raises:
            ValueError: if `guidance_scale` is below 0, `steps` outside 1..T or `eta` outside
                [0, 1]; if the number of prompts is not `count`; if prompts are missing, or given
                to a model without a text encoder.
        """
        texts = self._network_prompts(count, prompts, negative_prompts, guidance_scale)
        table = coefficients(self.diffusion, steps, eta)
        table = np.concatenate([table, np.full((steps, 1), guidance_scale)], axis=1)
        # Batches of one size let the step be compiled once.
        size = -(-count // -(-count // batch_size))
        images = []
        for first in range(0, count, size):
            indices = np.minimum(np.arange(first, first + size), count - 1)
            text = self._encode([ids[indices] for ids in texts])
            for x, x0 in self._steps(indices, table, seed, text):
                if callback_on_step_end is not None:
                    callback_on_step_end(first, x, x0)
            images.append(ops.convert_to_numpy(x))
        return np.concatenate(images)[:count]

    def _steps(
        self, indices: np.ndarray, table: np.ndarray, seed: int, text: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields x_t and the predicted x_0 of one batch after each sampling step."""
        dtype = keras.config.floatx()
        x: Tensor = noise(seed, "first", self.shape, indices)
        zeros = np.zeros_like(x)
        all_t = timesteps(len(self.diffusion.schedule), len(table))
        for number, (t, row) in enumerate(zip(all_t, table.astype(dtype))):
            stochastic = table[number, 4] > 0
            z = noise(seed, f"step {number}", self.shape, indices) if stochastic else zeros
            x, x0 = self._step(x, np.full(len(indices), t, np.int32), row, z, *text)
            yield x, x0

    def _network_prompts(
        self,
        count: int,
        prompts: np.ndarray | None,
        negative_prompts: np.ndarray | None,
        guidance_scale: float,
    ) -> list[np.ndarray]:
        """Selects the prompts that the guidance scale needs: negative, positive or both."""
        if (prompts is not None) != self.is_text_conditional:
            raise ValueError(
                "`prompts` must be given to a text-conditional model, and to no other. Received: "
                f"{'none' if prompts is None else len(prompts)}"
            )
        if prompts is None:
            return []
        if negative_prompts is None:
            negative_prompts = empty_prompts(*prompts.shape)
        for name, ids in (("prompts", prompts), ("negative_prompts", negative_prompts)):
            if len(ids) != count:
                raise ValueError(
                    f"`{name}` must hold one prompt for each image. Received: {len(ids)} for "
                    f"{count} images"
                )
        if guidance_scale == 0:
            return [negative_prompts]
        return [prompts] if guidance_scale == 1 else [negative_prompts, prompts]

    def _encode(self, texts: Sequence[np.ndarray]) -> list[Tensor]:
        """The text encoder's outputs, context and padding mask; nothing without prompts."""
        return list(self._encode_text(np.concatenate(texts))) if texts else []


def _guided_output(
    network: keras.Model, x: Tensor, t: Tensor, guidance_scale: Tensor, *text: Tensor
) -> Tensor:
    """The network's output, with classifier-free guidance if `text` has two rows an image.

    The first half of such a text holds the negative prompts, the second half the prompts.
    """
    inputs = {"image": x, "time": t}
    if not text:
        return network(inputs, training=False)
    context, padding_mask = text
    inputs |= {"context": context, "context_mask": padding_mask}
    if context.shape[0] == x.shape[0]:
        return network(inputs, training=False)
    inputs |= {"image": ops.concatenate([x, x]), "time": ops.concatenate([t, t])}
    negative, positive = ops.split(network(inputs, training=False), 2)
    return negative + ops.cast(guidance_scale, positive.dtype) * (positive - negative)


@validated
def noise(
    seed: Seed,
    stream: str,
    shape: Shape,
    indices: Annotated[Iterable[int], each(whole(0, MAX_COUNT), 1)],
) -> np.ndarray:
    """Standard normal noise of the images with these indices.

    Args:
        seed: Seed of the noise.
        stream: Name of the random stream: "first" for the initial noise, "step N" for a step's.
        shape: Shape of an image, (H, W, C).
        indices: Indices of the images, which alone decide their noise within a stream.

    Returns:
        (B, H, W, C) in Keras' floatx.
    """
    key = random.key(seed, "sampler", stream)
    images = [random.normal(random.fold_in(key, int(index)), shape) for index in indices]
    return np.stack(images).astype(keras.config.floatx())
