"""Finished runs of untrained models, which take no training, and the signing of changed ones."""

import hashlib
import shutil
from pathlib import Path

import pytest

from zoo import autoencoder, gpt, registry, text_to_image, unet
from zoo.datasets.tokenizer import Tokenizer
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer
from zoo.files import runs
from zoo.training.run_directory import RunDirectory

SPEC = DiffusionSpec(num_steps=20)
CLASSIFIER = {
    "recipe": "mnist", "dataset": "mnist", "model": "mlp", "mean": [0.1307], "std": [0.3081],
}  # fmt: skip


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four finished runs: text, prompts, latents and classifier."""
    folder = tmp_path_factory.mktemp("finished")

    def begin(name: str) -> RunDirectory:
        run = RunDirectory(folder / name, {"recipe": name, "epochs": 2}, "epochs")
        run.write_config()
        return run

    run = begin("text")
    tokenizer = Tokenizer.train(["to be, or not to be"], 20)
    run.write("vocabulary.json", tokenizer.to_json())
    run.save_model(gpt(len(tokenizer), 8, 1, 2, 8))
    run.write_metrics({"test_loss": 3.0})

    run = begin("prompts")
    words = WordTokenizer(["a seven", "the digit 3"])
    model = text_to_image(
        len(words), words.max_length, hidden_dim=8, input_shape=(4, 4, 1), channels=(8,),
        num_steps=20,
    )  # fmt: skip
    DiffusionPipeline(model, SPEC, words).save(run)
    run.write_metrics({"prompt_accuracy": 0.1})

    run = begin("latents")
    scaler = LatentScaler(autoencoder((8, 8, 1), (8, 16)), (0.5, -0.5), (2.0, 3.0))
    model = unet((4, 4, 2), (8,), num_steps=20)
    DiffusionPipeline(model, SPEC, latent_scaler=scaler).save(run)
    run.write_metrics({"frechet_distance": 100.0})

    run = begin("classifier")
    run.save_model(registry.get_classifier("mlp").build(num_classes=10, input_shape=(28, 28, 1)))
    run.write_metrics(CLASSIFIER)
    return folder


@pytest.fixture
def run_folder(finished_runs: Path, tmp_path: Path) -> Path:
    """Copies of the finished runs, to be damaged."""
    return Path(shutil.copytree(finished_runs, tmp_path / "runs", copy_function=shutil.copyfile))


def sign(folder: Path) -> None:
    """Writes a manifest that fits the files as they are, as a forger would."""
    (folder / runs.MANIFEST).write_bytes(runs.describe(folder))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every regular file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
