"""Trains a diffusion model on images, and draws others like them.

    KERAS_BACKEND=jax python recipes/diffusion.py --quick

`--quick` takes some six minutes on two cores; `--latent` draws in an autoencoder's latent space.
A classifier, trained by recipes/mnist.py, says how like they are. The same `--run-dir` goes on
where it stopped; then `python -m zoo draw --run-dir DIR --out images.png` draws more.

Source: the document's section "Modèles de Diffusion"; Ho et al., 2020.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from zoo import backends, cli, unet
from zoo.diffusion.config import DiffusionConfig, train
from zoo.training.run_directory import open_run


@dataclass(frozen=True, kw_only=True)
class Config(DiffusionConfig):
    """Train a model that draws images like those of a data set."""


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, and returns the metrics."""
    console = cli.console()
    run = open_run("diffusion", config, "data_dir", "classifier")
    if run.metrics:
        found = run.metrics["frechet_distance"]
        console.print(f"The run in {run.path} is finished: Fréchet distance {found:.2f}")
        return run.metrics
    if config.deterministic:
        backends.backend.make_deterministic()
    return train(
        "diffusion", config, run, config.load_data(), unet,
        Path(__file__).with_name("mnist.py"), console,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
