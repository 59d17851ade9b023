"""Times text-to-image diffusion: the same network in plain PyTorch, and the zoo's on each backend.

    python -m benchmarks.diffusion_speed --task train
    python -m benchmarks.diffusion_speed --task sample

Images of 28×28, channels 24, 48 and 96; a training step of 64 images, the zoo's within `fit`, or 16
images sampled in 50 steps of guided DDIM. benchmarks/native_diffusion.py is the plain code.
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
EXAMPLES = 1024  # training images
MOMENTUM = 0.999  # of the weights' average


@dataclass(frozen=True)
class Config:
    """Time a diffusion model; the contenders take turns."""

    task: Literal["train", "sample"] = "train"
    """Task that is timed."""
    rounds: int = 10
    """Number of timed turns of each contender."""
    steps: int = 4
    """Number of timed training steps in a turn, after one that is not timed."""
    warmup: int = 2
    """Number of turns of each contender before the timed ones."""
    batch_size: int = 64
    """Number of images in a training step."""
    samples: int = 16
    """Number of images to sample."""
    sampling_steps: int = 50
    """Number of sampling steps from noise to an image."""
    guidance_scale: float = 2.0
    """Weight of the prompt."""
    only: tuple[str, ...] = BACKENDS
    """Backends that take part, beside plain PyTorch."""
    worker: str | None = None
    """Internal: the contender that this process is."""
    json: Path | None = None
    """JSON file to which the figures are added."""

    @property
    def images(self) -> int:
        """Number of images in a call."""
        return self.batch_size if self.task == "train" else self.samples


def data() -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of the network, training images, their labels, and the prompts of each label."""
    from zoo.diffusion.prompts import WordTokenizer, prompts_by_class

    tokenizer = WordTokenizer([prompt for prompts in prompts_by_class() for prompt in prompts])
    arguments = {
        "vocabulary_size": len(tokenizer), "max_length": tokenizer.max_length,
        "channels": CHANNELS, "input_shape": (SIZE, SIZE, 1),
    }  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, SIZE, SIZE, 1)).astype(np.uint8)
    labels = (np.arange(EXAMPLES) % 10).astype(np.int32)
    prompts = np.stack([tokenizer.encode(of_class) for of_class in prompts_by_class()])
    return arguments, images, labels, prompts


def requested_prompts(config: Config, prompts: np.ndarray) -> np.ndarray:
    """Token ids of the prompts to sample, the digits in turn: (samples, L)."""
    return prompts[np.arange(config.samples) % len(prompts), 0]


def native(config: Config) -> Callable[[], Any]:
    """Training step or sampling in plain PyTorch."""
    import torch

    from benchmarks import native_diffusion

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments, *arrays = data()
    model = native_diffusion.TextToImage(**arguments).to(device)
    if config.task == "sample":
        ids = torch.tensor(requested_prompts(config, arrays[-1]), device=device).long()

        def sample() -> np.ndarray:
            noise = torch.randn(config.samples, 1, SIZE, SIZE, device=device)
            images = native_diffusion.sample(
                model, ids, noise, config.sampling_steps, config.guidance_scale
            )
            return images.cpu().numpy()

        return sample

    images, labels, prompts = (torch.tensor(array, device=device) for array in arrays)
    images, labels, prompts = images.permute(0, 3, 1, 2).contiguous(), labels.long(), prompts.long()
    indices = torch.arange(config.batch_size, device=device)
    trainer = native_diffusion.Trainer(model, momentum=MOMENTUM)

    def step() -> float:
        total = len(model.signal)
        batch = native_diffusion.training_inputs(images[indices], labels[indices], prompts, total)
        return trainer.step(*batch)

    return step


def zoo_sampling(config: Config) -> Callable[[], Any]:
    """Sampling of the zoo's model."""
    from zoo import text_to_image
    from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
    from zoo.diffusion.noise_schedule import cosine
    from zoo.diffusion.sampler import Sampler

    arguments, _, _, prompts = data()
    sampler = Sampler(text_to_image(**arguments), GaussianDiffusion(cosine()))
    ids = requested_prompts(config, prompts)
    options = {"guidance_scale": config.guidance_scale, "steps": config.sampling_steps}
    return lambda: sampler.sample(config.samples, ids, **options)


def zoo_training(config: Config) -> tuple[Any, Any]:
    """Compiled trainer of the zoo's model, and batches of random images."""
    from zoo import text_to_image
    from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
    from zoo.diffusion.losses import DiffusionTrainer
    from zoo.diffusion.noise_schedule import cosine
    from zoo.training import Adam, Batches

    arguments, images, labels, prompts = data()
    trainer = DiffusionTrainer(
        text_to_image(**arguments), GaussianDiffusion(cosine()), prompts=prompts
    )
    trainer.compile(Adam(1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=MOMENTUM))
    return trainer, Batches({"image": images, "label": labels}, config.batch_size, seed=0)


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from benchmarks.step_timer import serve_fit
        from zoo.backends import backend

        backend.keep_malloc_pages()  # in each contender
        steps, skip = (config.steps, 1) if config.task == "train" else (1, 0)
        if config.worker == "native":
            serve(native(config), steps, skip)
        elif config.task == "sample":
            serve(zoo_sampling(config), steps, skip)
        else:
            serve_fit(*zoo_training(config), steps, skip)
        return {}
    command = ["-m", "benchmarks.diffusion_speed", "--task", config.task]
    command += ["--batch-size", str(config.batch_size), "--samples", str(config.samples)]
    command += ["--sampling-steps", str(config.sampling_steps), "--steps", str(config.steps)]
    command += ["--guidance-scale", str(config.guidance_scale), "--worker"]
    contenders = {"native torch": Contender([*command, "native"], "torch")}
    for name in config.only:
        if importlib.util.find_spec(name):
            contenders[f"zoo {name}"] = Contender([*command, "zoo"], name)
    results = race(contenders, "native torch", config.warmup, config.rounds, config.images)
    if config.json:
        write_json(config.json, {config.task: results})
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
