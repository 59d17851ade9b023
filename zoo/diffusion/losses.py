"""What a training step lowers, and the average of the weights that is used afterwards.

A step takes images, a time step for each, and noise; the network sees the noisy images, and its
prediction's squared error is the loss. One prompt in ten is left out, so that the network also
learns what images are like that nobody asked for.

Source: Ho et al., 2020, algorithm 1; Ho and Salimans, 2022, algorithm 1; Kingma et al.,
"Variational Diffusion Models", 2021, appendix I.1 (time steps that are spread evenly).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.backends import Objective, backend
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion, check_gamma
from zoo.diffusion.prompts import empty_prompts
from zoo.training.losses import at_least_float32

Tensor = Any


def reconstruction_objective(model: keras.Model) -> Objective:
    """The squared error of what comes back, for `fit` over `InMemory` images.

    Returns:
        A function of (images, indices, step): all images (N, H, W, C) uint8 on the device.
    """

    def objective(images: Tensor, indices: Tensor, step: Tensor) -> Any:
        image = pixels(ops.take(images, indices, axis=0))
        returned = at_least_float32(model(image, training=True))
        return ops.mean(ops.square(returned - image)), {}

    return objective


UNPROMPTED = 0.1  # of the images, in training


_FARTHEST = 20  # standard deviations of a latent


def diffusion_objective(
    model: keras.Model,
    process: GaussianDiffusion,
    seed: int,
    prompts: np.ndarray | None = None,
    min_snr_gamma: float | None = None,
) -> Objective:
    """The squared error of what the network predicts, for `fit` over `InMemory` images and labels.

    Args:
        model: a `text_to_image`, or a `unet`, which learns images without their labels.
        process: what it is to predict.
        seed: of time steps, noise, and which prompt stands for a label; with the step's number.
        prompts: (classes, phrasings, L) int, the prompts for each label.
        min_snr_gamma: see `Process.weights`.

    Returns:
        A function of (images, labels, indices, step): all images (N, H, W, C), uint8 or, as they
        are, float, and labels (N,) on the device, the batch's indices (B,) and the step's number.
    """
    check_gamma(min_snr_gamma)
    keys = {name: random.key(seed, "diffusion", name) for name in ("t", "noise", "prompt", "left")}

    def objective(images: Tensor, labels: Tensor, indices: Tensor, step: Tensor) -> Any:
        x0 = pixels(ops.take(images, indices, axis=0))
        now = {name: random.fold_in(key, step) for name, key in keys.items()}
        size = x0.shape[0]
        t = stratified_timesteps(random.uniform(now["t"], 1), size, len(process.schedule))
        noise = random.normal(now["noise"], tuple(x0.shape))
        inputs = {"image": process.q_sample(x0, t, noise), "time": t}
        if prompts is not None:
            asked = _chosen(prompts, ops.take(labels, indices, axis=0), now["prompt"])
            left_out = random.bernoulli(now["left"], UNPROMPTED, (size, 1))
            inputs["prompt"] = ops.where(left_out, empty_prompts(1, prompts.shape[-1]), asked)
        return _loss(model(inputs, training=True), process, x0, t, noise, min_snr_gamma), {}

    return objective


def diffusion_loss(
    model: keras.Model,
    process: GaussianDiffusion,
    images: np.ndarray,
    prompts: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Callable[[], float]:
    """Compiles the mean loss on images that stay the same, with time steps and noise that do, too.

    Args:
        model: as for `diffusion_objective`.
        process: likewise.
        images: (N, H, W, C), uint8, or numbers in [-1, 1], or latents.
        prompts: (N, L) int, one for each image.
        seed: of time steps and noise.
        batch_size: images that are read at once; it changes the memory, not the loss.

    Raises:
        ValueError: for numbers that are neither pixels in [-1, 1] nor latents of variance 1.
    """
    check_range(images)
    count = len(images)
    start = random.uniform(random.key(seed, "diffusion", "held out", "t"), 1)
    t = ops.convert_to_numpy(stratified_timesteps(start, count, len(process.schedule)))
    noise = random.normal(random.key(seed, "diffusion", "held out", "noise"), images.shape)

    def losses(images: Tensor, t: Tensor, noise: Tensor, *prompt: Tensor) -> Tensor:
        x0, t, noise = pixels(images), ops.convert_to_tensor(t), ops.convert_to_tensor(noise)
        inputs = {"image": process.q_sample(x0, t, noise), "time": t}
        if prompt:
            inputs["prompt"] = ops.convert_to_tensor(prompt[0])
        return _loss(model(inputs, training=False), process, x0, t, noise, None)

    forward = backend.inference_function(model, losses)
    arrays = [images, t, noise, *([] if prompts is None else [prompts])]

    def mean_loss() -> float:
        total = 0.0
        for first in range(0, count, batch_size):
            batch = [array[first : first + batch_size] for array in arrays]
            total += float(forward(*batch)) * len(batch[0])
        return total / count

    return mean_loss


def pixels(images: Tensor) -> Tensor:
    """Bytes as numbers in [-1, 1]; other numbers as they are."""
    images = ops.convert_to_tensor(images)
    if keras.backend.standardize_dtype(images.dtype) != "uint8":
        return images
    return ops.cast(images, keras.config.floatx()) / 127.5 - 1.0


def check_range(images: np.ndarray) -> None:
    """Raises ValueError for numbers that are no pixels in [-1, 1], nor latents of variance 1."""
    if images.dtype != np.uint8 and not np.abs(images).max() <= _FARTHEST:
        raise ValueError(
            "`images` must be uint8, numbers in [-1, 1], or latents of about variance 1. Received: "
            f"{images.dtype} from {images.min()} to {images.max()}"
        )


def stratified_timesteps(start: Tensor, size: int, total: int) -> Tensor:
    """(size,) int32 time steps in [0, total): one drawn number, in [0, 1), and even steps from it.

    Each is as likely as any other, and a batch has early and late ones.
    """
    even = np.arange(size, dtype=np.float32) / np.float32(size)
    places = ops.convert_to_tensor(start) + ops.convert_to_tensor(even)
    places = ops.where(places >= 1, places - 1, places)
    return ops.minimum(ops.cast(places * total, "int32"), total - 1)


def _chosen(prompts: np.ndarray, labels: Tensor, key: random.Key) -> Tensor:
    """(B, L): for each label one of its prompts."""
    classes, phrasings, length = prompts.shape
    drawn = random.uniform(key, (labels.shape[0],)) * phrasings
    phrasing = ops.minimum(ops.cast(drawn, "int32"), phrasings - 1)
    rows = ops.convert_to_tensor(prompts.reshape(classes * phrasings, length))
    return ops.take(rows, ops.cast(labels, "int32") * phrasings + phrasing, axis=0)


def _loss(
    predicted: Tensor,
    process: GaussianDiffusion,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    min_snr_gamma: float | None,
) -> Tensor:
    missed = at_least_float32(predicted) - process.target(x0, t, noise)
    losses = ops.mean(ops.square(missed), axis=(1, 2, 3))
    if min_snr_gamma is not None:
        losses = losses * process.min_snr_weights(t, min_snr_gamma)
    return ops.mean(losses)


@contextmanager
def ema_weights(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within it the model's weights are the averages that the optimizer keeps (`use_ema`)."""
    variables = model.trainable_variables
    kept = [ops.copy(variable.value) for variable in variables]
    optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, kept):
            variable.assign(value)


def ema_momentum(steps: int) -> float:
    """Of the average of the weights over a run: it looks back over about a twentieth of it."""
    return 1 - 20 / max(steps, 40)
