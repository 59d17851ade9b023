"""Diffusion pipeline: a trained model, its sampler, tokenizer and autoencoder, ready to sample.

pipeline = DiffusionPipeline.load("runs/digits")
images = pipeline.sample(["a handwritten seven", "the digit 3"], steps=50, seed=3)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
from PIL import Image
from pydantic import Field
from rich.console import Console

from zoo import registry
from zoo.diffusion import plots
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion, Prediction
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.metrics import to_uint8
from zoo.diffusion.noise_schedule import Kind, make_schedule
from zoo.diffusion.prompts import WordTokenizer, check_prompts
from zoo.diffusion.sampler import Sampler, StepCallback
from zoo.files.documents import Document, dump
from zoo.files.weights import open_saved
from zoo.progress import Progress
from zoo.training.checkpoints import atomic_write
from zoo.training.run_directory import RunDirectory
from zoo.validation import (
    FilePath,
    NonNegative,
    Probability,
    Seed,
    Size,
    Source,
    TextList,
    Timesteps,
    validated,
)

Tensor = Any

COLUMNS = 10  # images in a row of a grid
_RECIPES = ("text_to_image", "diffusion")


@validated
@dataclass(frozen=True)
class DiffusionSpec:
    """The forward process and the prediction that a model is trained with.

    Attributes:
        schedule: Name of the noise schedule, "cosine" or "linear".
        num_steps: Number of steps of the schedule, T.
        zero_terminal_snr: Whether the schedule is rescaled to a signal-to-noise ratio of 0 at its
            last step.
        prediction: Quantity that the network predicts: "noise", "x0" or "v".
    """

    schedule: Kind = "cosine"
    num_steps: Timesteps = 1000
    zero_terminal_snr: bool = False
    prediction: Prediction = "v"

    def make_diffusion(self) -> GaussianDiffusion:
        """Builds the forward process.

        Raises:
            ValueError: if an attribute is invalid, or `prediction` is "noise" with
                `zero_terminal_snr`.
        """
        schedule = make_schedule(self.schedule, self.num_steps, self.zero_terminal_snr)
        return GaussianDiffusion(schedule, self.prediction)


_Positive = Annotated[float, Field(gt=0)]


class _Latents(Document):
    """Statistics of the channels of latents in `diffusion.json`."""

    mean: Annotated[list[float], Field(min_length=1, max_length=1024)]
    std: Annotated[list[_Positive], Field(min_length=1, max_length=1024)]


class _DiffusionDocument(Document):
    """Content of `diffusion.json`: the fields of `DiffusionSpec`, and the latents' statistics."""

    schedule: Literal["cosine", "linear"]
    num_steps: Annotated[int, Field(ge=1, le=100_000)]
    zero_terminal_snr: bool
    prediction: Literal["noise", "x0", "v"]
    latents: _Latents | None


class DiffusionPipeline:
    """Samples images from prompts; the sampling step is compiled once.

    Args:
        model: A `text_to_image` model or a `unet`.
        spec: Forward process and prediction that the model was trained with.
        tokenizer: Tokenizer of the prompts of a `text_to_image` model; None for a `unet`.
        latent_scaler: Scaler and autoencoder of a model of latents; None for a model of pixels.
    """

    @validated
    def __init__(
        self,
        model: keras.Model,
        spec: DiffusionSpec,
        tokenizer: WordTokenizer | None = None,
        latent_scaler: LatentScaler | None = None,
    ):
        self.model = model
        self.spec = spec
        self.tokenizer = tokenizer
        self.latent_scaler = latent_scaler
        self.sampler = Sampler(model, spec.make_diffusion(), clip=latent_scaler is None)

    @validated
    def sample(
        self,
        prompts: TextList | Size,
        steps: Timesteps = 50,
        guidance_scale: NonNegative = 2.0,
        seed: Seed = 0,
        eta: Probability = 0.0,
        negative_prompt: str = "",
        batch_size: Size = 64,
        verbose: bool = False,
        callback_on_step_end: StepCallback | None = None,
    ) -> np.ndarray:
        """Samples one image for each prompt.

        Args:
            prompts: Texts, or the number of images for a model without a text encoder.
            steps: Number of sampling steps, 1..T.
            guidance_scale: Weight of classifier-free guidance: 0 ignores the prompt, 1 follows
                the model's own prediction, larger values follow the prompt more closely.
            seed: Seed of all noise. The images are the same on every backend, up to rounding; the
                noise of an image depends on the index of its prompt.
            eta: Amount of fresh noise: 0 for DDIM, 1 for DDPM, or between.
            negative_prompt: Text of what the images are not to show.
            batch_size: Number of images that are sampled together.
            verbose: Whether to print the progress.
            callback_on_step_end: Function called after each step with the index of the batch's
                first image, x_t and the predicted x_0, each (B, H, W, C) and decoded to pixels.

        Returns:
            (N, H, W, C), in [-1, 1].

        Raises:
            ValueError: if `prompts` is empty, or a prompt is empty or has unknown words; if
                `steps` lies outside 1..T, `guidance_scale` is below 0, or `eta` lies outside
                [0, 1].
        """
        if self.tokenizer is None:
            if not isinstance(prompts, int) or negative_prompt:
                raise ValueError(
                    "`prompts` must be a number of images and `negative_prompt` empty for a "
                    f"model without a text encoder. Received: {prompts!r}, "
                    f"negative_prompt={negative_prompt!r}"
                )
            count, token_ids = prompts, {}
        else:
            token_ids = self.encode_prompts(prompts, negative_prompt)
            count = len(token_ids["prompts"])
        batches = -(-count // batch_size)
        progress = Progress("sampling", steps * batches, quiet=not verbose)

        def on_step_end(first: int, *images: Tensor) -> None:
            progress.advance()
            if callback_on_step_end is not None:
                arrays = (keras.ops.convert_to_numpy(x) for x in images)
                callback_on_step_end(first, *(self._to_pixels(array) for array in arrays))

        images = self.sampler.sample(
            count, guidance_scale=guidance_scale, seed=seed, steps=steps, eta=eta,
            batch_size=batch_size, callback_on_step_end=on_step_end, **token_ids,
        )  # fmt: skip
        return self._to_pixels(images)

    def encode_prompts(self, prompts: Any, negative_prompt: str = "") -> dict[str, np.ndarray]:
        """Encodes prompts and as many copies of the negative prompt.

        Args:
            prompts: Non-empty list of texts.
            negative_prompt: Text of what the images are not to show.

        Returns:
            Token ids, (N, L) int32 each, as the sampler's arguments "prompts" and
            "negative_prompts".

        Raises:
            ValueError: if `prompts` is empty, or a prompt is empty or has unknown words.
        """
        assert self.tokenizer is not None
        check_prompts(prompts)
        return {
            "prompts": self.tokenizer.encode(prompts),
            "negative_prompts": self.tokenizer.encode([negative_prompt] * len(prompts)),
        }

    def _to_pixels(self, images: np.ndarray) -> np.ndarray:
        if self.latent_scaler is not None:
            images = self.latent_scaler.decode(images)
        return np.asarray(np.clip(images, -1, 1))

    # -------------------------------------------------------------- files

    def save(self, run: RunDirectory) -> None:
        """Saves the pipeline to a run directory, for `load`."""
        config: dict[str, Any] = {**vars(self.spec), "latents": None}
        if self.latent_scaler is not None:
            scaler = self.latent_scaler
            config["latents"] = {"mean": scaler.mean, "std": scaler.std}
            run.save_model(scaler.model, "autoencoder")
        if self.tokenizer is not None:
            run.write("prompts.json", self.tokenizer.to_json())
        run.write("diffusion.json", dump(config))
        run.save_model(self.model)

    @classmethod
    def load(cls, source: Source) -> "DiffusionPipeline":
        """Loads a pipeline.

        Args:
            source: Directory of a finished run, a weights folder, or the name of weights in the
                package.

        Raises:
            ValueError: if there is no such diffusion model, or a file of it has changed, is
                damaged, or does not fit the model; the error names the file.
            OSError: if a file cannot be read.
        """
        run = open_saved(source, _RECIPES, ("diffusion.json",))
        folder = run.folder
        config = run.read("diffusion.json", _DiffusionDocument)
        spec = DiffusionSpec(**config.model_dump(exclude={"latents"}))
        tokenizer = latent_scaler = None
        if "prompts.json" in run:
            content = run.read_bytes("prompts.json")
            tokenizer = WordTokenizer.from_json(content, f"{folder}/prompts.json")
        if (config.latents is None) == ("autoencoder.json" in run):
            raise ValueError(
                f"{folder}/diffusion.json: `latents` must be given with an autoencoder, and not "
                f"without one. Received: {config.latents}. Train the run again"
            )
        if config.latents:
            autoencoder = run.load_model("autoencoder", ["autoencoder"])
            latent_scaler = LatentScaler(autoencoder, config.latents.mean, config.latents.std)
        builder = "unet" if tokenizer is None else "text_to_image"
        model = run.load_model(builders=[builder])
        _check_fit(folder, model, spec, tokenizer, latent_scaler)
        return cls(model, spec, tokenizer, latent_scaler)


def _check_fit(
    folder: Path,
    model: keras.Model,
    spec: DiffusionSpec,
    tokenizer: WordTokenizer | None,
    latent_scaler: LatentScaler | None,
) -> None:
    """Raises ValueError unless what was loaded beside a model belongs to it."""
    _, arguments = registry.origin(model)
    sizes: dict[str, dict[str, Any]] = {"diffusion.json": {"num_steps": spec.num_steps}}
    if tokenizer is not None:
        sizes["prompts.json"] = {
            "vocabulary_size": len(tokenizer), "max_length": tokenizer.max_length,
        }  # fmt: skip
    if latent_scaler is not None:
        encoder = latent_scaler.model.get_layer("encoder")
        sizes["autoencoder.json"] = {"input_shape": tuple(encoder.output.shape[1:])}
        for name in ("mean", "std"):
            channels = len(getattr(latent_scaler, name))
            if channels != encoder.output.shape[-1]:
                raise ValueError(
                    f"{folder / 'diffusion.json'}: `latents.{name}` must have a number for each of "
                    f"{encoder.output.shape[-1]} channels. Received: {channels} numbers. Train the "
                    "run again"
                )
    for file, received in sizes.items():
        for name, value in received.items():
            if arguments[name] != value:
                raise ValueError(
                    f"{folder / file} must fit the model, whose `{name}` is {arguments[name]}. "
                    f"Received: {name}={value}. Train the run again"
                )


@validated
def check_out(out: FilePath) -> None:
    """Raises ValueError unless the path has the suffix of an image format that Pillow can write."""
    image_format = Image.registered_extensions().get(out.suffix.lower())
    if image_format not in Image.SAVE:
        raise ValueError(
            f"`out` must have the suffix of an image format, such as .png. Received: {out}"
        )


@validated
def sample_to_file(
    pipeline: DiffusionPipeline,
    prompts: TextList | Size,
    out: FilePath,
    console: Console,
    **options: Any,
) -> None:
    """Samples images and saves them as one grid.

    Args:
        pipeline: Pipeline to sample from.
        prompts: Texts, or the number of images for a model without a text encoder.
        out: Path of the image file; its directory is created if necessary.
        console: Console for the path of the file; a quiet one prints no progress, either.
        **options: Further arguments of `DiffusionPipeline.sample`.

    Raises:
        ValueError: if `out` has no suffix of an image format, or an argument of
            `DiffusionPipeline.sample` is invalid.
        OSError: if the file cannot be written.
    """
    check_out(out)
    images = to_uint8(pipeline.sample(prompts, verbose=not console.quiet, **options))
    out.parent.mkdir(parents=True, exist_ok=True)
    scale = 8 if len(images) == 1 else 2
    try:
        with atomic_write(out) as file:
            grid = plots.grid(images, min(len(images), COLUMNS), scale)
            grid.save(file, Image.registered_extensions()[out.suffix.lower()])
    except OSError as error:
        raise OSError(error.errno, f"Could not write {out}: {error.strerror}") from error
    console.print(f"Drawn: {out}", soft_wrap=True)
