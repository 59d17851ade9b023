"""What recipes/diffusion.py and recipes/text_to_image.py share: settings, training, the report."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from PIL.Image import Image
from rich.console import Console

from zoo import datasets
from zoo.datasets.images import ImageDataset
from zoo.diffusion import plots
from zoo.diffusion.companions import HELD_OUT, train_classifier, train_latents
from zoo.diffusion.gaussian_diffusion import check_gamma
from zoo.diffusion.losses import diffusion_loss, diffusion_objective, ema_momentum, ema_weights
from zoo.diffusion.metrics import FeatureExtractor, evaluate_samples, to_uint8
from zoo.diffusion.pipeline import COLUMNS, DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer
from zoo.diffusion.sampler import StepCallback, check_guidance, coefficients
from zoo.evaluation import plots as evaluation_plots
from zoo.models.autoencoder import autoencoder
from zoo.training import batches, trainer
from zoo.training.optimizers import Adam
from zoo.training.optimizers import learning_rate_schedule as rate_over_steps
from zoo.training.run_directory import RunDirectory, TrainingConfig, set_defaults
from zoo.validation import check_sizes

NUM_STEPS = 1000  # T
PREVIEWS = 40  # images of each epoch; as many at once at the end, so that one step is compiled
PREVIEW_STEPS = 20
FRAMES = 25  # of the animation, at most


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(TrainingConfig):
    """What both recipes can be told."""

    dataset: str = "mnist"
    """mnist, or a name of TensorFlow Datasets such as fashion_mnist."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data; by default its own folder."""
    image_size: int | None = None
    """Height and width to resize images to; by default as they are."""
    classifier: Path | None = None
    """A finished run of recipes/mnist.py that judges what is drawn; by default one is trained."""
    classifier_model: str | None = None
    """Its network, if it is trained; by default cnn_48x48, with --quick mlp."""
    channels: tuple[int, ...] | None = None
    """Of each level of the network, which halves the image; by default 32 64 128, with --quick
    24 48 96; with --latent, which halves it already, 32 64."""
    num_blocks: int = 1
    """Residual blocks of each level, on the way down and on the way up."""
    dropout: float = 0.0
    """Fraction dropped within a residual block."""
    latent: bool = False
    """Draw in the latent space of an autoencoder, which is trained first."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How fast noise takes over."""
    zero_terminal_snr: bool = False
    """Rescale the schedule, so that nothing is left of an image at its end."""
    prediction: Literal["v", "noise", "x0"] = "v"
    """What the network predicts."""
    min_snr_gamma: float | None = None
    """No signal to noise ratio above this counts for more in the loss; 5 is usual."""
    epochs: int | None = None
    """Passes over the training images; by default 3, with --quick 4."""
    train_examples: int | None = None
    """Training images, the first so many; by default all, with --quick 6,400."""
    batch_size: int | None = None
    """Images of a training step; by default 64, with --quick 32."""
    learning_rate: float = 2e-3
    """Adam's step size at its largest; it rises for 100 steps and falls to a tenth."""
    steps: int = 50
    """Steps from noise to an image."""
    eta: float = 0.0
    """0 draws with DDIM, 1 with DDPM's steps."""
    samples: int | None = None
    """Images that are drawn and judged at the end; by default 1,000, with --quick 200."""
    quick: bool = False
    """A short run with a smaller network, where not set otherwise."""

    def __post_init__(self) -> None:
        if self.latent:
            set_defaults(self, channels=(32, 64))
        quick = {"channels": (24, 48, 96), "epochs": 4, "train_examples": 6400, "batch_size": 32,
                 "samples": 200, "classifier_model": "mlp"}  # fmt: skip
        full = {"channels": (32, 64, 128), "epochs": 3, "batch_size": 64, "samples": 1000,
                "classifier_model": "cnn_48x48"}  # fmt: skip
        set_defaults(self, **(quick if self.quick else full))
        check_sizes(
            epochs=self.epochs, batch_size=self.batch_size, checkpoint_steps=self.checkpoint_steps
        )
        check_gamma(self.min_snr_gamma)
        check_sizes(samples=self.samples)

    @property
    def about(self) -> DiffusionSpec:
        return DiffusionSpec(self.schedule, NUM_STEPS, self.zero_terminal_snr, self.prediction)

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of the builders."""
        return {
            "channels": self.channels, "num_blocks": self.num_blocks, "num_steps": NUM_STEPS,
            "dropout": self.dropout, "seed": self.seed, "dtype": self.dtype_policy,
        }  # fmt: skip

    def load_data(self) -> ImageDataset:
        return datasets.load(
            self.dataset, self.image_size, self.train_examples, data_dir=self.data_dir
        )


@dataclass(frozen=True)
class Prompts:
    """What is asked for in training and at the end.

    Attributes:
        vocabulary: the words.
        phrases: for each class the prompts that ask for it, as many of each.
    """

    vocabulary: WordTokenizer
    phrases: Sequence[Sequence[str]]

    @property
    def ids(self) -> np.ndarray:
        """(classes, phrasings, L) int32."""
        return np.stack([self.vocabulary.encode(prompts) for prompts in self.phrases])

    def ask(self, classes: np.ndarray) -> list[str]:
        """A prompt for each of these classes, all phrasings in turn."""
        asked = [0] * len(self.phrases)
        prompts = []
        for label in classes:
            prompts.append(self.phrases[label][asked[label] % len(self.phrases[label])])
            asked[label] += 1
        return prompts


def train(
    recipe: str,
    settings: DiffusionConfig,
    run: RunDirectory,
    data: ImageDataset,
    build: Callable[..., keras.Model],
    mnist: Path,
    console: Console,
    prompts: Prompts | None = None,
    guidance_scale: float = 1.0,
) -> dict[str, Any]:
    """Trains a model, or goes on with it; draws, judges, and writes all that a run leaves.

    Args:
        recipe: its name.
        settings: of the recipe.
        run: its directory.
        data: its images.
        build: makes the network, of `input_shape` and what `Settings.network` gives.
        mnist: recipes/mnist.py, which trains a classifier where `settings` names none.
        console: where progress is shown.
        prompts: if the network reads any.
        guidance_scale: of what is drawn.

    Returns:
        The metrics.

    Raises:
        ValueError: as the builders and `Judge` do, before anything is written.
        Interrupted, Diverged, OSError: as `zoo.training.trainer.fit` does.
    """
    height, width, depth = data.x_train.shape[1:]
    shape = height, width, depth
    coder = None
    if settings.latent:
        coder = autoencoder(shape, seed=settings.seed, dtype=settings.dtype_policy)
        shape = tuple(coder.get_layer("encoder").output.shape[1:])
    model = build(input_shape=shape, **settings.network)
    # What these refuse, they refuse before anything is written.
    coefficients(settings.about.make_diffusion(), settings.steps, settings.eta)
    check_guidance(guidance_scale)
    rate_over_steps("constant", settings.learning_rate, 0)
    if _known(settings.samples) < 2 * data.num_classes:
        raise ValueError(
            f"`samples` must be at least {2 * data.num_classes}, two images of each of "
            f"{data.num_classes} classes. Received: samples={settings.samples}"
        )
    judge = (
        None if settings.classifier is None else FeatureExtractor.load(settings.classifier, data)
    )
    run.write_config()
    console.print(
        f"{model.count_params():,} parameters, {len(data.x_train):,} images of {data.name}, "
        f"{keras.config.backend()}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    if judge is None:
        with _as_of(run, "classifier") as folder:
            train_classifier(mnist, settings, folder)
        judge = FeatureExtractor.load(folder, data)
    latents = None
    if coder is not None:
        with _as_of(run, "autoencoder") as folder:
            latents = train_latents(coder, settings, folder, data, console)
    vocabulary = None if prompts is None else prompts.vocabulary
    painter = DiffusionPipeline(model, settings.about, vocabulary, latents)
    order = _Order(settings, prompts, data.num_classes, guidance_scale)
    state = _train_painter(settings, run, data, painter, order, console)
    painter.save(run)

    started = time.perf_counter()
    film = _Film()
    classes, drawn = order.draw(
        painter, _known(settings.samples), settings.steps, console, film.keep
    )
    run.write("samples.png", plots.png(plots.grid(drawn[: 10 * COLUMNS], COLUMNS)))
    run.write("denoising.gif", film.developed())
    curves = evaluation_plots.plot_losses(state.losses, state.history[-1], "squared error")
    curves.savefig(run.path / "loss.png", dpi=120)
    scores = evaluate_samples(judge, drawn, None if prompts is None else classes, data)
    metrics = trainer.metrics(
        recipe, model, state, seed=settings.seed, train_examples=len(data.x_train),
        epochs=settings.epochs, test_loss=state.history[-1]["validation_loss"],
        samples=len(drawn), drawing_seconds=time.perf_counter() - started, **scores,
    )  # fmt: skip
    run.write_metrics(metrics)
    console.print(_summary(scores))
    console.print(f"Results are in {run.path}")
    return metrics


@contextmanager
def _as_of(run: RunDirectory, part: str) -> Iterator[Path]:
    """A directory within the run's; who stops what is trained there is told how to go on."""
    try:
        yield run.path / part
    except trainer.Interrupted as error:
        raise trainer.Interrupted(
            f"Stopped while the {part} was in training; the same command with "
            f"`--run-dir {run.path}` goes on"
        ) from error


@dataclass(frozen=True)
class _Order:
    """What is to be drawn, of all classes in turn, and how."""

    settings: DiffusionConfig
    prompts: Prompts | None
    num_classes: int
    guidance_scale: float

    def draw(
        self,
        painter: DiffusionPipeline,
        count: int,
        steps: int,
        console: Console | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The classes that were asked for, (count,), and (count, H, W, C) uint8."""
        classes = np.arange(count) % self.num_classes
        images = painter.sample(
            count if self.prompts is None else self.prompts.ask(classes), steps,
            self.guidance_scale, self.settings.seed, self.settings.eta, batch_size=PREVIEWS,
            console=console, callback_on_step_end=callback_on_step_end,
        )  # fmt: skip
        return classes, to_uint8(images)


def _train_painter(
    settings: DiffusionConfig,
    run: RunDirectory,
    data: ImageDataset,
    painter: DiffusionPipeline,
    order: _Order,
    console: Console,
) -> trainer.State:
    """Afterwards the model's weights are their averages."""
    model, process = painter.model, painter.sampler.diffusion
    epochs = _known(settings.epochs)
    steps_per_epoch = -(-len(data.x_train) // _known(settings.batch_size))
    steps = epochs * steps_per_epoch
    rate = rate_over_steps("warmup_cosine", settings.learning_rate, steps)
    optimizer = Adam(rate, global_clipnorm=1.0, use_ema=True, ema_momentum=ema_momentum(steps))
    images, held_out = data.x_train, data.x_test[:HELD_OUT]
    if painter.latent_scaler is not None:
        images = painter.latent_scaler.encode(images)
        held_out = painter.latent_scaler.encode(held_out)
    prompts = None if order.prompts is None else order.prompts.ids
    asked = None if prompts is None else prompts[data.y_test[:HELD_OUT], 0]
    loss = diffusion_loss(model, process, held_out, asked)

    def evaluate() -> dict[str, float]:
        with ema_weights(model, optimizer):
            count = min(PREVIEWS, _known(settings.samples))
            _, drawn = order.draw(painter, count, min(PREVIEW_STEPS, settings.steps))
            epoch = int(optimizer.iterations) // steps_per_epoch
            run.write(f"samples-{epoch:02d}.png", plots.png(plots.grid(drawn, COLUMNS)))
            return {"validation_loss": loss()}

    state = trainer.fit(
        model, optimizer,
        diffusion_objective(model, process, settings.seed, prompts, settings.min_snr_gamma),
        batches.InMemory(images, data.y_train), run,
        epochs=epochs, batch_size=_known(settings.batch_size), seed=settings.seed,
        evaluate=evaluate, checkpoint_steps=settings.checkpoint_steps, console=console,
    )  # fmt: skip
    optimizer.finalize_variable_values(model.trainable_variables)
    return state


def _known(value: int | None) -> int:
    """What `Settings` has filled in."""
    assert value is not None
    return value


def _summary(scores: Mapping[str, float | None]) -> str:
    asked = scores["prompt_accuracy"]
    return (
        ("" if asked is None else f"{asked:.1%} of the images are what was asked for. ")
        + f"Fréchet distance {scores['frechet_distance']:.2f}, of real images "
        f"{scores['frechet_real']:.2f}, of noise {scores['frechet_noise']:.2f}; "
        f"{scores['intra_class_diversity'] or 0:.2f} times as varied as real images"
    )


class _Film:
    """The first images as they are after each step, and below what the network takes them for."""

    def __init__(self) -> None:
        self._frames: list[Image] = []

    def keep(self, first: int, images: np.ndarray, seen: np.ndarray) -> None:
        if first == 0:
            shown = np.concatenate([images[:COLUMNS], seen[:COLUMNS]])
            self._frames.append(plots.grid(to_uint8(shown), COLUMNS))

    def developed(self) -> bytes:
        count = len(self._frames)
        chosen = np.unique(np.linspace(0, count - 1, min(FRAMES, count)).round())
        return plots.animation([self._frames[int(number)] for number in chosen])
