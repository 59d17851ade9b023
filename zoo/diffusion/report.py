"""Samples of a diffusion run: previews, the denoising animation, and the metrics at the end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from PIL.Image import Image
from rich.console import Console

from zoo.datasets.images import ImageDataset
from zoo.diffusion import plots
from zoo.diffusion.losses import ema_weights
from zoo.diffusion.metrics import FeatureExtractor, evaluate_samples, to_uint8
from zoo.diffusion.pipeline import COLUMNS, DiffusionPipeline
from zoo.diffusion.prompts import ClassPrompts
from zoo.diffusion.sampler import StepCallback
from zoo.evaluation.plots import plot_curves
from zoo.training.run_directory import RunDirectory
from zoo.validation import NonNegative, Probability, Seed, Size, Timesteps, validated

_PREVIEWS = 40  # images of each epoch, and of each batch at the end, so that one step is compiled
_PREVIEW_STEPS = 20
_FRAMES = 25  # of the animation, at most


@validated
@dataclass(frozen=True)
class SampleRequest:
    """Images to sample, of all classes in turn.

    Attributes:
        count: Number of images for the metrics.
        num_classes: Number of classes of the data set.
        steps: Number of sampling steps.
        eta: 0 for DDIM, 1 for DDPM's steps.
        seed: Seed of the noise.
        guidance_scale: Weight of the prompt.
        prompts: Prompts of each class; None for a network without prompts.
    """

    count: Size
    num_classes: Size
    steps: Timesteps
    eta: Probability = 0.0
    seed: Seed = 0
    guidance_scale: NonNegative = 1.0
    prompts: ClassPrompts | None = None

    def sample(
        self,
        pipeline: DiffusionPipeline,
        count: int,
        steps: int,
        verbose: bool = False,
        callback_on_step_end: StepCallback | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classes (count,) and sampled images (count, H, W, C) uint8."""
        classes = np.arange(count) % self.num_classes
        images = pipeline.sample(
            count if self.prompts is None else self.prompts.prompts_for(classes), steps,
            self.guidance_scale, self.seed, self.eta, batch_size=_PREVIEWS,
            verbose=verbose, callback_on_step_end=callback_on_step_end,
        )  # fmt: skip
        return classes, to_uint8(images)


class SamplePreviews(keras.callbacks.Callback):  # type: ignore[misc]
    """Samples a few images after each epoch, with the averages of the weights.

    Args:
        run: Run directory, for samples-01.png and so on.
        pipeline: Pipeline with the network that is trained.
        request: Images to sample.
    """

    @validated
    def __init__(self, run: RunDirectory, pipeline: DiffusionPipeline, request: SampleRequest):
        super().__init__()
        self._run = run
        self._pipeline = pipeline
        self._request = request

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        request = self._request
        count, steps = min(_PREVIEWS, request.count), min(_PREVIEW_STEPS, request.steps)
        with ema_weights(self._pipeline.model, self.model.optimizer):
            _, images = request.sample(self._pipeline, count, steps)
        grid = plots.grid(images, COLUMNS)
        self._run.write(f"samples-{epoch + 1:02d}.png", plots.png(grid))


class DenoisingAnimation:
    """Collects x_t and the predicted x_0 of the first images after each sampling step."""

    def __init__(self) -> None:
        self._frames: list[Image] = []

    def __call__(self, first: int, images: np.ndarray, predicted: np.ndarray) -> None:
        """A `callback_on_step_end` of the sampler."""
        if first == 0:
            rows = np.concatenate([images[:COLUMNS], predicted[:COLUMNS]])
            self._frames.append(plots.grid(to_uint8(rows), COLUMNS))

    def to_gif(self) -> bytes:
        """The animation as a GIF of at most 25 frames."""
        count = len(self._frames)
        chosen = np.unique(np.linspace(0, count - 1, min(_FRAMES, count)).round())
        return plots.animation([self._frames[int(number)] for number in chosen])


@validated
def write_report(
    run: RunDirectory,
    history: keras.callbacks.History,
    pipeline: DiffusionPipeline,
    request: SampleRequest,
    extractor: FeatureExtractor,
    data: ImageDataset,
    console: Console,
) -> dict[str, Any]:
    """Samples images with the trained network, computes their metrics, and plots.

    Args:
        run: Run directory, for samples.png, denoising.gif and loss.png.
        history: History of the training.
        pipeline: Pipeline with the trained network.
        request: Images to sample.
        extractor: Classifier for the metrics.
        data: Real images.
        console: Console for the metrics; a quiet one prints no progress, either.

    Returns:
        The metrics, for metrics.json.
    """
    started = time.perf_counter()
    animation = DenoisingAnimation()
    verbose = not console.quiet
    classes, images = request.sample(pipeline, request.count, request.steps, verbose, animation)
    run.write("samples.png", plots.png(plots.grid(images[: 10 * COLUMNS], COLUMNS)))
    run.write("denoising.gif", animation.to_gif())
    curves = plot_curves(history, ["loss"], "training", "validation", ["squared error"])
    run.save_plot("loss.png", curves)
    scores = evaluate_samples(extractor, images, None if request.prompts is None else classes, data)
    console.print(_summary(scores))
    return {"samples": len(images), "drawing_seconds": time.perf_counter() - started, **scores}


def _summary(scores: Mapping[str, float | None]) -> str:
    accuracy = scores["prompt_accuracy"]
    return (
        ("" if accuracy is None else f"{accuracy:.1%} of the images show their prompt. ")
        + f"Fréchet distance {scores['frechet_distance']:.2f}, of real images "
        f"{scores['frechet_real']:.2f}, of noise {scores['frechet_noise']:.2f}; "
        f"{scores['intra_class_diversity'] or 0:.2f} times as varied as real images"
    )
