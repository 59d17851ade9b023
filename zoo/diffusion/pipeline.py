"""A trained model with all it needs to draw.

painter = Painter.load("runs/digits")
images = painter.generate(["a handwritten seven", "the digit 3"], steps=50, seed=3)
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from zoo.diffusion import plots
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.metrics import to_uint8
from zoo.diffusion.noise_schedule import make_schedule
from zoo.diffusion.prompts import WordTokenizer, check_prompts
from zoo.diffusion.sampler import Sampler
from zoo.training.run_directory import RunDirectory
from zoo.validation import check_sizes

Tensor = Any
Show = Callable[[int, np.ndarray, np.ndarray], None]

COLUMNS = 10  # of images side by side
_FILES = ("metrics.json", "model.json", "model.weights.h5", "diffusion.json")


@dataclass(frozen=True)
class DiffusionSpec:
    """What a model was trained with.

    Attributes:
        schedule, num_steps, zero_terminal_snr: see `zoo.diffusion.noise_schedule.make_schedule`.
        prediction: see `zoo.diffusion.gaussian_diffusion.GaussianDiffusion`.
    """

    schedule: str = "cosine"
    num_steps: int = 1000
    zero_terminal_snr: bool = False
    prediction: str = "v"

    def process(self) -> GaussianDiffusion:
        schedule = make_schedule(self.schedule, self.num_steps, self.zero_terminal_snr)
        return GaussianDiffusion(schedule, self.prediction)


class DiffusionPipeline:
    """Draws with a model; it is compiled once.

    Args:
        model: a `text_to_image`, or a `unet`.
        about: what it was trained with.
        vocabulary: of its prompts, if it reads any.
        latents: whose latents its images are, if they are.
    """

    def __init__(
        self,
        model: keras.Model,
        about: DiffusionSpec,
        vocabulary: WordTokenizer | None = None,
        latents: LatentScaler | None = None,
    ):
        self.model = model
        self.about = about
        self.vocabulary = vocabulary
        self.latents = latents
        self.sampler = Sampler(model, about.process(), clip=latents is None)

    def generate(
        self,
        prompts: Sequence[str] | int,
        steps: int = 50,
        guidance_scale: float = 3.0,
        seed: int = 0,
        eta: float = 0.0,
        negative_prompt: str = "",
        batch_size: int = 64,
        console: Console | None = None,
        show: Show | None = None,
    ) -> np.ndarray:
        """Draws an image for each prompt.

        Args:
            prompts: texts; or, for a model that reads none, how many images.
            steps: how often the network is asked, 1..T.
            guidance_scale: 0 does not ask for the prompt, 1 asks for it, more insists.
            seed: of all noise; the same images on every backend, up to rounding. Which noise an
                image is made of depends on its place among the prompts.
            eta: 0 for DDIM, 1 for DDPM's steps, or between.
            negative_prompt: what the images are not to be.
            batch_size: images that are drawn side by side.
            console: where a bar shows how far it is.
            show: is called after each step with the number of the batch's first image, the batch as
                it is by then, and what the network takes it for, (B, H, W, C) each.

        Returns:
            (N, H, W, C), in [-1, 1].

        Raises:
            ValueError: for no prompts, one that is empty or has unknown words, `steps` outside
                1..T, `guidance_scale` below 0, or `eta` outside [0, 1]; the text says which.
        """
        check_sizes(batch_size=batch_size)
        if self.vocabulary is None:
            if not isinstance(prompts, int) or negative_prompt:
                raise ValueError(
                    "`prompts` must be a number of images and `negative_prompt` empty, for this "
                    f"model reads no texts. Received: {prompts!r}, "
                    f"negative_prompt={negative_prompt!r}"
                )
            count, texts = prompts, {}
        else:
            texts = self.encoded(prompts, negative_prompt)
            count = len(texts["prompts"])
        batches = -(-count // batch_size)
        with Progress(console=console, transient=True, disable=console is None) as progress:
            task = progress.add_task("drawing", total=steps * batches)

            def after_a_step(first: int, *images: Tensor) -> None:
                progress.advance(task)
                if show is not None:
                    show(first, *(self._decoded(keras.ops.convert_to_numpy(x)) for x in images))

            drawn = self.sampler.sample(
                count, guidance_scale=guidance_scale, seed=seed, steps=steps, eta=eta,
                batch_size=batch_size, show=after_a_step, **texts,
            )  # fmt: skip
        return self._decoded(drawn)

    def encoded(self, prompts: Any, negative_prompt: str = "") -> dict[str, np.ndarray]:
        """The ids of prompts and of as many negative ones.

        Raises:
            ValueError: for no prompts, one that is empty, or unknown words.
        """
        assert self.vocabulary is not None
        check_prompts(prompts)
        return {
            "prompts": self.vocabulary.encode(prompts),
            "negative": self.vocabulary.encode([negative_prompt] * len(prompts)),
        }

    def _decoded(self, images: np.ndarray) -> np.ndarray:
        if self.latents is not None:
            images = self.latents.decode(images)
        return np.asarray(np.clip(images, -1, 1))

    # -------------------------------------------------------------- files

    def save(self, run: RunDirectory) -> None:
        """Writes what `load` reads into a run directory."""
        about: dict[str, Any] = dict(vars(self.about))
        if self.latents is not None:
            about |= {"latent_mean": self.latents.mean, "latent_std": self.latents.std}
            run.write("autoencoder.json", self.latents.model.to_json(indent=2).encode())
            self.latents.model.save_weights(run.path / "autoencoder.weights.h5")
        if self.vocabulary is not None:
            run.write("prompts.json", self.vocabulary.to_json())
        run.write("diffusion.json", (json.dumps(about, indent=2) + "\n").encode())
        run.write("model.json", self.model.to_json(indent=2).encode())
        self.model.save_weights(run.path / "model.weights.h5")

    @classmethod
    def load(cls, folder: str | Path) -> "DiffusionPipeline":
        """From the directory of a finished run.

        Raises:
            ValueError: if it holds no such run; the text names the file that is missing.
        """
        folder = Path(folder)
        for name in _FILES:
            if not (folder / name).exists():
                raise ValueError(
                    "`run_dir` must hold a finished run of recipes/text_to_image.py or "
                    f"recipes/diffusion.py. Received: {folder}, which has no {name}"
                )
        about = json.loads((folder / "diffusion.json").read_text())
        latents = vocabulary = None
        if "latent_mean" in about:
            statistics = (tuple(about.pop(f"latent_{name}")) for name in ("mean", "std"))
            latents = LatentScaler(_model(folder, "autoencoder"), *statistics)
        if (folder / "prompts.json").exists():
            vocabulary = WordTokenizer.from_json((folder / "prompts.json").read_bytes())
        return cls(_model(folder, "model"), DiffusionSpec(**about), vocabulary, latents)


def _model(folder: Path, name: str) -> keras.Model:
    model = keras.models.model_from_json((folder / f"{name}.json").read_text())
    model.load_weights(folder / f"{name}.weights.h5")
    return model


def check_out(out: Path) -> None:
    """Raises ValueError unless it ends like an image that can be written."""
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"`out` must end like an image, such as .png. Received: {out}")


def draw(
    painter: DiffusionPipeline,
    prompts: Sequence[str] | int,
    out: Path,
    console: Console,
    **options: Any,
) -> None:
    """Draws, and writes the images side by side to a file; options as of `Painter.generate`."""
    check_out(out)
    images = to_uint8(painter.generate(prompts, console=console, **options))
    out.parent.mkdir(parents=True, exist_ok=True)
    scale = 8 if len(images) == 1 else 2
    plots.grid(images, min(len(images), COLUMNS), scale).save(out)
    console.print(f"Drawn: {out}")
