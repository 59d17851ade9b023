"""The reverse process: from noise to an image, a step at a time.

Each step asks the network what x_t hides, and goes on to an earlier x_s as if that were so:

    x_s = signal_s·x_0 + sqrt(sigma_s² - spread²)·noise + spread·z

with z drawn anew. `eta` says how much is: 0 is DDIM, which draws nothing after the first noise, and
1 is DDPM's ancestral step. s needs not be t - 1: any number of steps, evenly spread over the
schedule's, lead from T to an image.

x_0 and the noise are linear in x_t and the network's output, so every step is two lines, whose five
numbers are worked out in float64 beforehand:

    x_0 = from_x·x_t + from_output·output            clipped, if images are in [-1, 1]
    x_s = to_x0·x_0 + to_x·x_t + to_z·z

Source: Ho et al., 2020, algorithm 2; Song et al., "Denoising Diffusion Implicit Models", 2021,
equation 12; Lin et al., 2023, section 3.3 (where the steps lie).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import backend
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.prompts import empty_prompts
from zoo.validation import check_sizes

Tensor = Any
StepCallback = Callable[[int, Tensor, Tensor], None]


def timesteps(total: int, steps: int) -> np.ndarray:
    """(steps,) int: the indices t that are visited, from total - 1 down, evenly.

    Raises:
        ValueError: if `steps` lies outside 1..total.
    """
    check_sizes(steps=steps)
    if steps > total:
        raise ValueError(
            f"`steps` must lie in 1..{total}, the steps of the schedule. Received: steps={steps}"
        )
    return np.round(np.arange(total, 0, -total / steps)[:steps]).astype(np.int32) - 1


def coefficients(process: GaussianDiffusion, steps: int, eta: float = 0.0) -> np.ndarray:
    """(steps, 5) float64: from_x, from_output, to_x0, to_x and to_z of each step.

    Raises:
        ValueError: for `steps` outside 1..T or `eta` outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must lie in [0, 1]. Received: eta={eta}")
    schedule = process.schedule
    visited = timesteps(len(schedule), steps)
    here = schedule.alphas_cumprod[visited]
    there = np.append(schedule.alphas_cumprod[visited[1:]], 1.0)
    signal, sigma = np.sqrt(here), np.sqrt(1 - here)
    spread = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
    # How much of x_t's noise stays; rounding must not make a root of less than 0.
    kept = np.sqrt(np.maximum(1 - there - spread**2, 0)) / sigma
    ones = np.ones_like(here)
    if process.prediction == "noise":
        from_x, from_output = 1 / signal, -sigma / signal
    elif process.prediction == "x0":
        from_x, from_output = 0 * ones, ones
    else:
        from_x, from_output = signal, -sigma
    return np.stack([from_x, from_output, np.sqrt(there) - kept * signal, kept, spread], axis=1)


def check_guidance(guidance_scale: float) -> None:
    """Raises ValueError unless it is a number of at least 0."""
    if not 0 <= guidance_scale < np.inf:
        raise ValueError(
            "`guidance_scale` must be a number of at least 0. "
            f"Received: guidance_scale={guidance_scale}"
        )


class Sampler:
    """Draws with a network, whose step is compiled once.

    Args:
        model: a `text_to_image`, or a `unet`.
        process: the one it was trained with.
        clip: whether what the network takes for the image is kept within [-1, 1]; not if images are
            an autoencoder's latents.

    Raises:
        ValueError: if the model was made for another number of steps than the schedule has.
    """

    def __init__(self, model: keras.Model, process: GaussianDiffusion, clip: bool = True):
        self.reads_prompts = "prompt" in model.input
        network = model.get_layer("unet") if self.reads_prompts else model
        num_steps = network.get_layer("time_embedding").num_steps
        if num_steps != len(process.schedule):
            raise ValueError(
                "The model's `num_steps` must be the schedule's. Received: "
                f"num_steps={num_steps}, a schedule of {len(process.schedule)}"
            )
        self.shape: tuple[int, ...] = tuple(model.input["image"].shape[1:])
        self.process = process
        if self.reads_prompts:
            encoder = model.get_layer("text_encoder")
            self._read = backend.inference_function(
                encoder, lambda ids: encoder(ops.convert_to_tensor(ids), training=False)
            )

        def step(x: Tensor, t: Tensor, numbers: Tensor, z: Tensor, *text: Tensor) -> Any:
            x, t, numbers, z = map(ops.convert_to_tensor, (x, t, numbers, z))
            output = ops.cast(_guided(network, x, t, numbers[5], *text), x.dtype)
            x0 = numbers[0] * x + numbers[1] * output
            if clip:
                x0 = ops.clip(x0, -1.0, 1.0)
            return numbers[2] * x0 + numbers[3] * x + numbers[4] * z, x0

        self._step = backend.sampling_function(network, step)

    def sample(
        self,
        count: int,
        prompts: np.ndarray | None = None,
        negative: np.ndarray | None = None,
        guidance_scale: float = 3.0,
        seed: int = 0,
        steps: int = 50,
        eta: float = 0.0,
        batch_size: int = 64,
        show: StepCallback | None = None,
    ) -> np.ndarray:
        """Images; which noise each is made of depends on its place among them, not on the batch.

        Args:
            count: how many.
            prompts: (count, L) int, for a `text_to_image`.
            negative: likewise, what they are not to be; by default nothing in particular.
            guidance_scale: 0 does not ask for the prompt, 1 asks for it, more insists.
            seed: of all noise; the same images on every backend.
            steps: how often the network is asked, 1..T.
            eta: 0 for DDIM, 1 for DDPM, or between.
            batch_size: images that are drawn side by side.
            show: is called after each step with the number of the batch's first image, x_t and the
                x_0 that the network sees in it, (B, H, W, C) each.

        Returns:
            (count, H, W, C).

        Raises:
            ValueError: for `guidance_scale` below 0, `steps` outside 1..T, `eta` outside [0, 1],
                other than `count` prompts, or prompts for a model that reads none.
        """
        check_sizes(count=count, batch_size=batch_size)
        check_guidance(guidance_scale)
        texts = self._texts(count, prompts, negative, guidance_scale)
        table = coefficients(self.process, steps, eta)
        table = np.concatenate([table, np.full((steps, 1), guidance_scale)], axis=1)
        size = -(-count // -(-count // batch_size))  # the batches are of one size
        images = []
        for first in range(0, count, size):
            places = np.minimum(np.arange(first, first + size), count - 1)
            text = self._encoded([rows[places] for rows in texts])
            for x, x0 in self._steps(places, table, seed, text):
                if show is not None:
                    show(first, x, x0)
            images.append(ops.convert_to_numpy(x))
        return np.concatenate(images)[:count]

    def _steps(
        self, places: np.ndarray, table: np.ndarray, seed: int, text: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        dtype = keras.config.floatx()
        x: Tensor = noise(seed, "first", self.shape, places)
        zeros = np.zeros_like(x)
        visited = timesteps(len(self.process.schedule), len(table))
        for number, (t, numbers) in enumerate(zip(visited, table.astype(dtype))):
            drawn = table[number, 4] > 0
            z = noise(seed, f"step {number}", self.shape, places) if drawn else zeros
            x, x0 = self._step(x, np.full(len(places), t, np.int32), numbers, z, *text)
            yield x, x0

    def _texts(
        self,
        count: int,
        prompts: np.ndarray | None,
        negative: np.ndarray | None,
        guidance_scale: float,
    ) -> list[np.ndarray]:
        """What the network is to read: what is not asked for, what is, or both."""
        if (prompts is not None) != self.reads_prompts:
            raise ValueError(
                "`prompts` must be given to a model that reads them, and to no other. Received: "
                f"{'none' if prompts is None else len(prompts)}"
            )
        if prompts is None:
            return []
        if negative is None:
            negative = empty_prompts(*prompts.shape)
        for name, rows in (("prompts", prompts), ("negative", negative)):
            if len(rows) != count:
                raise ValueError(
                    f"`{name}` must be as many as the images. Received: {len(rows)} for "
                    f"{count} images"
                )
        if guidance_scale == 0:
            return [negative]
        return [prompts] if guidance_scale == 1 else [negative, prompts]

    def _encoded(self, texts: Sequence[np.ndarray]) -> list[Tensor]:
        return list(self._read(np.concatenate(texts))) if texts else []


def _guided(network: keras.Model, x: Tensor, t: Tensor, scale: Tensor, *text: Tensor) -> Tensor:
    """The network's output; of a text and another, as far from the other as `scale` says."""
    inputs = {"image": x, "time": t}
    if not text:
        return network(inputs, training=False)
    context, padding_mask = text
    inputs |= {"context": context, "context_mask": padding_mask}
    if context.shape[0] == x.shape[0]:
        return network(inputs, training=False)
    inputs |= {"image": ops.concatenate([x, x]), "time": ops.concatenate([t, t])}
    unasked, asked = ops.split(network(inputs, training=False), 2)
    return unasked + ops.cast(scale, asked.dtype) * (asked - unasked)


def noise(seed: int, stream: str, shape: Sequence[int], places: Iterable[int]) -> np.ndarray:
    """(B, H, W, C) in Keras' floatx: standard normal numbers, for each image by its place."""
    key = random.key(seed, "sampler", stream)
    drawn = [random.normal(random.fold_in(key, int(place)), shape) for place in places]
    return np.stack(drawn).astype(keras.config.floatx())
