"""Training of diffusion models: the noise of a step, its loss, and averages of the weights.

A training step draws a time step and noise for each image; the network sees the noisy images, and
the squared error of its prediction is the loss. One prompt in ten is dropped, so that the network
also learns images without a prompt, as classifier-free guidance needs.

Source: Ho et al., 2020, algorithm 1; Ho and Salimans, 2022, algorithm 1; Kingma et al.,
"Variational Diffusion Models", 2021, appendix I.1 (stratified time steps).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops

from zoo import random
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.prompts import empty_prompts
from zoo.training.losses import OutputLoss, at_least_float32
from zoo.training.trainer import Trainer
from zoo.validation import Count, Positive, Seed, Timesteps, TokenRows, array, validated

Tensor = Any

PROMPT_DROPOUT = 0.1  # fraction of the training images without a prompt
_MAX_LATENT = 20  # standard deviations


class DiffusionTrainer(random.DrawCounter, Trainer):
    """Trainer of a network that predicts noise, v or x_0 of noisy images.

    `fit` takes dictionaries: "image", (B, H, W, C) uint8 or, as they are, float; and "label", (B,),
    for a network with prompts. Noise, time steps and prompts depend on the seed and the number of
    training steps before. `evaluate` takes "image", "time", "noise" and, for a network with
    prompts, "prompt", so that the loss of two evaluations can be compared: see `held_out_examples`.
    There is no loss to compile: the model's output is the squared error of each image, (B,).

    Args:
        network: `text_to_image`, or a `unet`, which learns images without their labels.
        diffusion: Forward process, which says what the network predicts.
        seed: Seed of time steps, noise and prompts.
        prompts: Token ids of the prompts of each class, (classes, prompts, L) int; None for a
            network without prompts.
        min_snr_gamma: Largest signal-to-noise ratio that counts fully in the loss: see
            `GaussianDiffusion.min_snr_weights`. By default all count alike.

    Raises:
        ValueError: If `min_snr_gamma` is not above 0.
    """

    @validated
    def __init__(
        self,
        network: keras.Model,
        diffusion: GaussianDiffusion,
        seed: Seed = 0,
        prompts: Annotated[np.ndarray, array("iu", "(classes, prompts, L)")] | None = None,
        min_snr_gamma: Positive | None = None,
    ):
        super().__init__(network)
        self._diffusion = diffusion
        self._prompts = prompts
        self._min_snr_gamma = min_snr_gamma
        self._mean_loss = OutputLoss()
        names = ("t", "noise", "prompt", "left")
        self._keys = {name: random.key(seed, "diffusion", name) for name in names}
        self.create_counter()

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """Squared error of the network's prediction for each image, (B,)."""
        x0 = pixels(inputs["image"])
        if "noise" in inputs:
            t, noise, prompt = inputs["time"], inputs["noise"], inputs.get("prompt")
        else:
            t, noise, prompt = self._draw(x0, inputs.get("label"))
        network_inputs = {"image": self._diffusion.q_sample(x0, t, noise), "time": t}
        if prompt is not None:
            network_inputs["prompt"] = prompt
        predicted = self.network(network_inputs, training=training)
        error = at_least_float32(predicted) - self._diffusion.target(x0, t, noise)
        losses = ops.mean(ops.square(error), axis=(1, 2, 3))
        if training and self._min_snr_gamma is not None:
            losses = losses * self._diffusion.min_snr_weights(t, self._min_snr_gamma)
        return losses

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        return self._mean_loss(y_pred, y_pred)

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(
            "A DiffusionTrainer cannot be saved as a model. Save its `network`, as "
            "`DiffusionPipeline.save` does, or its weights with `save_weights`"
        )

    def _draw(self, x0: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Time steps, noise and prompts of a training step."""
        step = self.next_draw()
        keys = {name: random.fold_in(key, step) for name, key in self._keys.items()}
        size = ops.shape(x0)[0]
        start = random.uniform(keys["t"], 1)
        t = stratified_timesteps(start, size, len(self._diffusion.schedule))
        noise = random.normal(keys["noise"], ops.shape(x0), batch_axis=0)
        if self._prompts is None:
            return t, noise, None
        prompt = _draw_prompts(self._prompts, labels, keys["prompt"])
        dropped = random.bernoulli(keys["left"], PROMPT_DROPOUT, (size, 1), batch_axis=0)
        return t, noise, ops.where(dropped, empty_prompts(1, prompt.shape[-1]), prompt)


@validated
def held_out_examples(
    images: Annotated[np.ndarray, array("uif", "(N, H, W, C)")],
    num_steps: Timesteps,
    prompts: TokenRows | None = None,
    seed: Seed = 0,
) -> dict[str, np.ndarray]:
    """Examples for `DiffusionTrainer.evaluate`, with time steps and noise that stay the same.

    Args:
        images: Images, (N, H, W, C): uint8, numbers in [-1, 1], or latents.
        num_steps: Number of time steps T of the schedule.
        prompts: Token ids of a prompt for each image, (N, L); None for a network without prompts.
        seed: Seed of time steps and noise.

    Raises:
        ValueError: If `images` are neither pixels nor latents of about unit variance.
    """
    check_range(images)
    start = random.uniform(random.key(seed, "diffusion", "held out", "t"), 1)
    t = ops.convert_to_numpy(stratified_timesteps(start, len(images), num_steps))
    noise = random.normal(random.key(seed, "diffusion", "held out", "noise"), images.shape)
    examples = {"image": images, "time": t, "noise": noise}
    return examples if prompts is None else {**examples, "prompt": prompts}


def pixels(images: Tensor) -> Tensor:
    """Scales uint8 images to [-1, 1]; other numbers stay as they are."""
    images = ops.convert_to_tensor(images)
    if keras.backend.standardize_dtype(images.dtype) != "uint8":
        return images
    return ops.cast(images, keras.config.floatx()) / 127.5 - 1.0


def check_range(images: np.ndarray) -> None:
    """Raises ValueError for numbers that are neither pixels nor latents of about unit variance."""
    if images.dtype != np.uint8 and not np.abs(images).max() <= _MAX_LATENT:
        raise ValueError(
            "`images` must be uint8, numbers in [-1, 1], or latents of about variance 1. Received: "
            f"{images.dtype} from {images.min()} to {images.max()}"
        )


def stratified_timesteps(start: Tensor, size: Any, total: int) -> Tensor:
    """Time steps at even distances from a random start: all are as likely, early and late ones.

    Within `random.rows` they are those of the rows, at the distances of the whole batch.

    Args:
        start: Uniform random number in [0, 1), (1,).
        size: Number of time steps to give.
        total: Number of time steps of the schedule, T.

    Returns:
        (size,) int32 in [0, total).
    """
    rows = random.current_rows() or random.Rows(0, size, size)
    if rows.is_host and isinstance(size, int):
        numbers = np.arange(rows.start, rows.start + size, dtype=np.float32)
        offsets = ops.convert_to_tensor(numbers / np.float32(rows.total))
    else:
        numbers = ops.cast(ops.arange(size, dtype="int32") + rows.start, "float32")
        offsets = numbers / ops.cast(rows.total, "float32")
    fractions = ops.convert_to_tensor(start) + offsets
    fractions = ops.where(fractions >= 1, fractions - 1, fractions)
    return ops.minimum(ops.cast(fractions * total, "int32"), total - 1)


def _draw_prompts(prompts: np.ndarray, labels: Tensor, key: random.Key) -> Tensor:
    """One of the prompts of each label, (B, L)."""
    classes, per_class, length = prompts.shape
    draws = random.uniform(key, (ops.shape(labels)[0],), batch_axis=0) * per_class
    number = ops.minimum(ops.cast(draws, "int32"), per_class - 1)
    rows = ops.convert_to_tensor(prompts.reshape(classes * per_class, length))
    return ops.take(rows, ops.cast(labels, "int32") * per_class + number, axis=0)


@validated
@contextmanager
def ema_weights(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within the context the model has the averages of its weights that the optimizer keeps."""
    variables = model.trainable_variables
    weights = [ops.copy(variable.value) for variable in variables]
    optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, weights):
            variable.assign(value)


@validated
def ema_momentum(steps: Count) -> float:
    """Momentum of the weights' average, which covers about the last twentieth of `steps`."""
    return 1 - 20 / max(steps, 40)
