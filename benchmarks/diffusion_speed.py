"""Times text-to-image diffusion: the same network in plain PyTorch, and the zoo's on each backend.

    python -m benchmarks.diffusion_speed --task train
    python -m benchmarks.diffusion_speed --task sample

Images of 28×28, channels 24, 48 and 96; a training step of 64 images, or 16 images drawn by 50
steps of guided DDIM. benchmarks/native_diffusion.py is the plain code.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contenders import BACKENDS, Contender, race, serve, write_json

CHANNELS, SIZE = (24, 48, 96), 28
IMAGES = 1024  # to train on
MOMENTUM = 0.999  # of the average of the weights


@dataclass(frozen=True)
class Config:
    """Time a diffusion model, the contenders in turn."""

    task: Literal["train", "sample"] = "train"
    """What is timed."""
    rounds: int = 10
    """Timed calls of each contender."""
    warmup: int = 3
    """Calls before that."""
    batch_size: int = 64
    """Images of a training step."""
    samples: int = 16
    """Images to draw."""
    steps: int = 50
    """From noise to an image."""
    guidance_scale: float = 3.0
    """How much the prompt matters."""
    only: tuple[str, ...] = BACKENDS
    """Backends that take part, beside plain PyTorch."""
    worker: str | None = None
    """Internal: be one contender and do a call for each line of standard input."""
    out: Path | None = None
    """Also write the figures to this file."""

    @property
    def images(self) -> int:
        """Of a call."""
        return self.batch_size if self.task == "train" else self.samples


def data() -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of the network; images, labels and all prompts for each label to train on."""
    from zoo.diffusion.prompts import WordTokenizer, prompts_by_class

    vocabulary = WordTokenizer([prompt for prompts in prompts_by_class() for prompt in prompts])
    arguments = {
        "vocabulary_size": len(vocabulary), "max_length": vocabulary.max_length,
        "channels": CHANNELS, "input_shape": (SIZE, SIZE, 1),
    }  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 1)).astype(np.uint8)
    labels = (np.arange(IMAGES) % 10).astype(np.int32)
    return (
        arguments,
        images,
        labels,
        np.stack([vocabulary.encode(some) for some in prompts_by_class()]),
    )


def asked(config: Config, prompts: np.ndarray) -> np.ndarray:
    """(samples, L): the digits in turn."""
    return prompts[np.arange(config.samples) % len(prompts), 0]


def native(config: Config) -> Callable[[], Any]:
    import torch

    from benchmarks import native_diffusion

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments, *arrays = data()
    model = native_diffusion.TextToImage(**arguments).to(device)
    if config.task == "sample":
        ids = torch.tensor(asked(config, arrays[-1]), device=device).long()

        def draw() -> np.ndarray:
            noise = torch.randn(config.samples, 1, SIZE, SIZE, device=device)
            drawn = native_diffusion.sample(model, ids, noise, config.steps, config.guidance_scale)
            return drawn.cpu().numpy()

        return draw

    images, labels, prompts = (torch.tensor(array, device=device) for array in arrays)
    images, labels, prompts = images.permute(0, 3, 1, 2).contiguous(), labels.long(), prompts.long()
    indices = torch.arange(config.batch_size, device=device)
    trainer = native_diffusion.Trainer(model, momentum=MOMENTUM)

    def step() -> float:
        total = len(model.signal)
        batch = native_diffusion.draw(images[indices], labels[indices], prompts, total)
        return trainer.step(*batch)

    return step


def zoo(config: Config) -> Callable[[], Any]:
    from zoo import text_to_image
    from zoo.backends import backend
    from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
    from zoo.diffusion.losses import diffusion_objective
    from zoo.diffusion.noise_schedule import cosine
    from zoo.diffusion.sampler import Sampler
    from zoo.training.optimizers import Adam

    arguments, images, labels, prompts = data()
    model, process = text_to_image(**arguments), GaussianDiffusion(cosine())
    if config.task == "sample":
        sampler, ids = Sampler(model, process), asked(config, prompts)
        options = {"guidance_scale": config.guidance_scale, "steps": config.steps}
        return lambda: sampler.sample(config.samples, ids, **options)

    optimizer = Adam(1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=MOMENTUM)
    optimizer.build(model.trainable_variables)
    step = backend.train_step(model, optimizer, diffusion_objective(model, process, 0, prompts))
    arrays = backend.on_device(images), backend.on_device(labels)
    indices = np.arange(config.batch_size, dtype=np.int32)
    number = iter(range(10**9))
    return lambda: float(step(*arrays, indices, np.int32(next(number)))["loss"])


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from zoo.backends import backend

        backend.keep_malloc_pages()  # for all alike
        serve(native(config) if config.worker == "native" else zoo(config))
        return {}
    command = ["-m", "benchmarks.diffusion_speed", "--task", config.task]
    command += ["--batch-size", str(config.batch_size), "--samples", str(config.samples)]
    command += ["--steps", str(config.steps), "--guidance-scale", str(config.guidance_scale)]
    contenders = {"native torch": Contender([*command, "--worker", "native"], "torch")}
    for name in config.only:
        if importlib.util.find_spec(name):
            contenders[f"zoo {name}"] = Contender([*command, "--worker", "zoo"], name)
    results = race(contenders, "native torch", config.warmup, config.rounds, config.images)
    if config.out:
        write_json(config.out, {config.task: results})
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
