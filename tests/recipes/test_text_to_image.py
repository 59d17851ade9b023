"""Tests of the recipes `text_to_image` and `diffusion` on a few digits, and of `zoo draw`."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from benchmarks import weights
from benchmarks.hardship import sign
from recipes import diffusion, text_to_image
from tests import recipe
from zoo import __main__ as command_line
from zoo import datasets, registry
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.files.runs import load_model
from zoo.training import Interrupted
from zoo.training.run_directory import RunDirectory

UNCONDITIONAL: dict[str, Any] = {
    "image_size": 8, "channels": (8,), "train_examples": 64, "epochs": 2, "batch_size": 32,
    "samples": 20, "steps": 4,
}  # fmt: skip
SMALL = {**UNCONDITIONAL, "text_dim": 16}
CLASSIFIER = {
    "recipe": "mnist", "dataset": "mnist", "model": "mlp", "mean": [0.1307], "std": [0.3081],
}  # fmt: skip
PLOTS = ["denoising.gif", "loss.png", "samples-01.png", "samples-02.png", "samples.png"]
FILES = [
    "checkpoints", "config.json", "diffusion.json", "history.csv", "manifest.json",
    "metrics.json", "model.json", "model.weights.h5",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _few_test_images() -> Iterator[None]:
    """Data sets have 64 test images."""
    load = datasets.load
    datasets.load = lambda *args, **options: load(*args, **{"test_examples": 64, **options})
    yield
    datasets.load = load


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of recipes/mnist.py with an untrained network."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    directory = RunDirectory(folder, {"recipe": "mnist"})
    directory.write_config()
    directory.save_model(
        registry.get_classifier("mlp").build(num_classes=10, input_shape=(28, 28, 1))
    )
    directory.write_metrics(CLASSIFIER)
    return folder


def run(folder: Path, classifier: Path, **changes: Any) -> tuple[dict, str]:
    return recipe.run(text_to_image, {**SMALL, "classifier": classifier, **changes}, folder)


@pytest.fixture(scope="module")
def finished(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """Run directory, metrics and output of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder, classifier, prompt="a handwritten seven")


@pytest.mark.slow
def test_text_to_image_writes_metrics_plots_and_model(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "text_to_image", "model": "text_to_image", "backend": zoo.backends.name,
        "seed": 0, "train_examples": 64, "epochs": 2, "samples": 20,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert 0 <= metrics["prompt_accuracy"] <= 1
    assert metrics["intra_class_diversity"] > 0
    for name in ("frechet_distance", "frechet_real", "frechet_noise", "test_loss"):
        assert metrics[name] > 0
    assert metrics["examples_per_second"] > 0
    assert f"{metrics['prompt_accuracy']:.1%} of the images show their prompt" in output
    assert sorted(os.listdir(folder)) == sorted([*FILES, *PLOTS, "prompt.png", "prompts.json"])
    with Image.open(folder / "denoising.gif") as animation:
        assert animation.n_frames == 4
    header, first, last = (folder / "history.csv").read_text().splitlines()
    assert header == "epoch,loss,val_loss"
    assert float(last.split(",")[1]) < float(first.split(",")[1])
    # The validation loss of an epoch and the test loss are those of the averaged weights.
    assert metrics["test_loss"] == pytest.approx(float(last.split(",")[2]), rel=1e-6)


def test_text_to_image_finished_run_draws_another_prompt(
    finished: tuple[Path, dict, str], classifier: Path, tmp_path: Path
) -> None:
    folder, metrics, _ = finished
    original = (folder / "prompt.png").read_bytes()
    repeated, output = run(folder, classifier, prompt="the digit 3", out=tmp_path / "three.png")
    assert repeated == metrics
    assert "is finished" in output
    assert (tmp_path / "three.png").read_bytes() != original
    assert (folder / "prompt.png").read_bytes() == original


def test_draw_command_draws_the_image_of_the_recipe(
    finished: tuple[Path, dict, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seed gives the same image."""
    folder, _, _ = finished
    out = tmp_path / "new" / "seven.png"
    options = ["a handwritten seven", "--steps", "4", "--out", str(out)]
    command_line.main(["draw", "--run-dir", str(folder), *options])
    assert "seven.png" in capsys.readouterr().out
    with Image.open(out) as drawn, Image.open(folder / "prompt.png") as expected:
        difference = np.asarray(drawn, int) - np.asarray(expected, int)
    assert np.abs(difference).max() <= 1
    command_line.main(["draw", "--run-dir", str(folder), *options, "--count", "3"])
    with Image.open(out) as row:
        assert row.width > 2 * row.height


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a purple cat"], "unknown words: purple, cat. The vocabulary is 0, 1, 2"),
        ([], "`prompt` must be given to a model that reads prompts.*prompt=None"),
        (["7", "--steps", "1001"], r"`steps` must lie in 1..1000"),
        (["7", "--count", "0"], "`count` must be a whole number of at least 1"),
        (["7", "--steps", "1", "--out", "seven.doc"], "`out` must have the suffix"),
    ],
)
def test_draw_command_rejects_invalid_arguments(
    finished: tuple[Path, dict, str], arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command_line.main(["draw", "--run-dir", str(finished[0]), *arguments])


@pytest.mark.slow
def test_text_to_image_resumes_after_interruption(
    finished: tuple[Path, dict, str],
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights and their averages are those of a run without interruption."""
    folder, metrics, _ = finished
    steps = recipe.interrupt_after(3, monkeypatch)
    with pytest.raises(Interrupted, match=r"Stopped after step 3; .*`--run-dir .*run` goes on"):
        run(tmp_path / "run", classifier)
    resumed, output = run(tmp_path / "run", classifier)
    assert "Going on after step 3" in output
    assert steps == [1, 2, 3, 4]
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
    weights, expected = (
        DiffusionPipeline.load(path).model.get_weights() for path in (tmp_path / "run", folder)
    )
    for array, expected_array in zip(weights, expected):
        np.testing.assert_allclose(array, expected_array, rtol=0, atol=1e-6)
    histories = (
        np.loadtxt(path / "history.csv", delimiter=",", skiprows=1)
        for path in (tmp_path / "run", folder)
    )
    np.testing.assert_allclose(*histories, rtol=1e-5)


@pytest.mark.once
def test_diffusion_goes_on_if_epochs_are_raised(classifier: Path, tmp_path: Path) -> None:
    settings = {**UNCONDITIONAL, "classifier": classifier, "epochs": 1}
    recipe.run(diffusion, settings, tmp_path / "run")
    first = (tmp_path / "run" / "history.csv").read_text()
    metrics, _ = recipe.run(diffusion, settings, tmp_path / "run", epochs=2)
    history = (tmp_path / "run" / "history.csv").read_text()
    assert history.startswith(first)
    assert len(history.splitlines()) == 3
    assert metrics["epochs"] == 2
    assert (tmp_path / "run" / "samples-02.png").exists()
    with pytest.raises(ValueError, match=r"`epochs` must be at least 2.* Received: epochs=1"):
        recipe.run(diffusion, settings, tmp_path / "run")


@pytest.fixture(scope="module")
def latent_run(
    classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict]:
    """Run directory, settings and metrics of a finished run in the latent space."""
    folder = tmp_path_factory.mktemp("runs") / "latent"
    settings = {**UNCONDITIONAL, "classifier": classifier, "latent": True, "epochs": 1,
                "zero_terminal_snr": True, "min_snr_gamma": 5.0, "eta": 1.0}  # fmt: skip
    metrics, _ = recipe.run(diffusion, settings, folder)
    return folder, settings, metrics


@pytest.mark.slow
def test_diffusion_in_latent_space_writes_metrics_and_models(
    latent_run: tuple[Path, dict[str, Any], dict],
) -> None:
    folder, _, metrics = latent_run
    assert metrics["prompt_accuracy"] is None
    assert metrics["model"] == "unet"
    assert metrics["frechet_distance"] > 0
    autoencoder = ["autoencoder", "autoencoder.json", "autoencoder.weights.h5"]
    files = {*FILES, *PLOTS, *autoencoder, "inputs.json"} - {"samples-02.png"}
    assert set(os.listdir(folder)) == files


@pytest.mark.once
def test_diffusion_in_latent_space_resumes_the_autoencoder(
    latent_run: tuple[Path, dict[str, Any], dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, settings, metrics = latent_run
    steps = recipe.interrupt_after(1, monkeypatch)
    message = r"Stopped while the autoencoder was in training; .*`--run-dir .*run` goes on"
    with pytest.raises(Interrupted, match=message):
        recipe.run(diffusion, settings, tmp_path / "run")
    resumed, _ = recipe.run(diffusion, settings, tmp_path / "run")
    assert steps == [1, 2, 1, 2]  # of the autoencoder and of the U-Net
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)


@pytest.mark.once
def test_diffusion_in_latent_space_goes_on_with_no_other_autoencoder(
    latent_run: tuple[Path, dict[str, Any], dict], tmp_path: Path
) -> None:
    """Not even with one of a finished training, whose latents the network does not know."""
    finished, settings, metrics = latent_run
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    weights = folder / "autoencoder" / "model.weights.h5"
    model = load_model(weights.parent)
    model.set_weights([-weight for weight in model.get_weights()])
    model.save_weights(weights)
    sign(weights.parent)
    (folder / "manifest.json").unlink()
    text = r"autoencoder/model\.weights\.h5 must be the file that the run was begun with"
    with pytest.raises(ValueError, match=text):
        recipe.run(diffusion, settings, folder)
    shutil.rmtree(weights.parent)
    shutil.copytree(finished / "autoencoder", weights.parent)
    again, _ = recipe.run(diffusion, settings, folder)
    assert again["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)


@pytest.mark.once
@pytest.mark.slow
def test_packed_weights_of_runs_sample_as_they_do(
    finished: tuple[Path, dict, str],
    latent_run: tuple[Path, dict[str, Any], dict],
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "SAMPLES", 30)
    load = datasets.load
    few = {"train_examples": 400, "test_examples": 400}
    monkeypatch.setattr(datasets, "load", lambda *args, **_: load(*args, **few))
    for (folder, *_), prompts in ((finished, ["a handwritten seven", "1"]), (latent_run, 2)):
        name = f"{folder.name}-mnist"
        card = weights.pack(
            folder, name, "a machine", commit="1234", classifier=str(classifier), into=tmp_path
        )
        measured = card.metrics[zoo.backends.name]
        assert measured.whole["frechet_distance"] > 0
        assert ("prompt_accuracy" in measured.part) == (folder.name == "finished")
        assert ("autoencoder.safetensors" in card.files) == (folder.name == "latent")
        assert (" --latent" in card.training.command) == (folder.name == "latent")
        task = zoo.load(tmp_path / name)
        images = task.sample(prompts, steps=3, seed=1)
        np.testing.assert_array_equal(images, zoo.load(folder).sample(prompts, steps=3, seed=1))


@pytest.mark.once
def test_diffusion_finished_run_is_drawn_without_a_prompt(
    latent_run: tuple[Path, dict[str, Any], dict], tmp_path: Path
) -> None:
    folder, settings, metrics = latent_run
    repeated, output = recipe.run(diffusion, settings, folder)
    assert repeated == metrics
    assert f"is finished: Fréchet distance {metrics['frechet_distance']:.2f}" in output
    out = tmp_path / "some.png"
    draw = ["draw", "--run-dir", str(folder), "--out", str(out), "--steps", "3"]
    command_line.main([*draw, "--count", "4"])
    with Image.open(out) as row:
        assert row.width > 3 * row.height
    with pytest.raises(ValueError, match="`prompt` must be given to a model that reads prompts"):
        command_line.main([*draw, "a seven"])


@pytest.mark.once
@pytest.mark.parametrize("quick", [True, False])
def test_config_halves_a_latent_image_once_less(quick: bool) -> None:
    """Latents are 14×14, which two levels can halve."""
    config = diffusion.Config(quick=quick, latent=True)
    assert len(config.channels) == 2
    unet = zoo.unet((14, 14, 2), **config.network)
    assert unet.output.shape[1:] == (14, 14, 2)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": 12, "channels": (8, 16, 32, 64)},
            "`input_shape` must have a height and a width divisible",
        ),
        ({"channels": (9,)}, "multiples of `num_groups`=8"),
        ({"samples": 10}, "`samples` must be at least 20, two images of each.* samples=10"),
        ({"samples": 0}, "`samples` must be a whole number of at least 1"),
        ({"out": Path("seven.png")}, "`prompt` must be given for `negative_prompt`, `out`"),
        ({"negative_prompt": "dog"}, "`prompt` must be given for `negative_prompt`, `out`"),
        ({"prompt": "7", "out": Path("seven.doc")}, "`out` must have the suffix.*seven.doc"),
        ({"prompt": "7", "prompt_seed": -1}, "`prompt_seed` must be a whole number"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1"),
        ({"min_snr_gamma": -1.0}, "`min_snr_gamma` must be a finite number above 0"),
        ({"prompt": ""}, "`prompt` must have at least one word"),
        ({"prompt": "a purple cat"}, "unknown words: purple, cat"),
        ({"negative_prompt": "dog", "prompt": "7"}, "unknown words: dog"),
        ({"steps": 1001}, "`steps` must be a whole number of at most 1000"),
        ({"eta": 2.0}, r"`eta` must be a number in \[0, 1\]"),
        ({"guidance_scale": -1.0}, "Received: guidance_scale=-1.0"),
        ({"prediction": "noise", "zero_terminal_snr": True}, "must be v or x0 for a schedule"),
        ({"classifier": Path("nowhere")}, "`classifier` must be one of .*nowhere"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0"),
        ({"classifier": None, "classifier_model": "vgg"}, "Received: model=vgg"),
    ],
)
def test_text_to_image_rejects_invalid_arguments(
    arguments: dict[str, Any], message: str, classifier: Path, tmp_path: Path
) -> None:
    """No run begins."""
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **{"classifier": classifier, **arguments})
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_text_to_image_rejects_a_classifier_of_other_images(
    classifier: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(classifier, tmp_path / "other"))
    RunDirectory(other, {"recipe": "mnist"}).write_metrics({**CLASSIFIER, "dataset": "kmnist"})
    text = "a classifier of mnist, such as a run of `zoo train mnist`.* trained on kmnist"
    with pytest.raises(ValueError, match=text):
        run(tmp_path / "run", other)


@pytest.mark.once
def test_check_digits_rejects_other_classes() -> None:
    data = datasets.load("mnist", train_examples=20, test_examples=20)
    letters = datasets.ImageDataset(
        "letters", data.x_train, data.y_train, data.x_test, data.y_test, 26, data.mean, data.std
    )
    with pytest.raises(ValueError, match=r"10 classes, the digits.* dataset=letters"):
        text_to_image.check_digits(letters)


@pytest.mark.once
def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (text_to_image.Config, diffusion.Config):
        recipe.help_of(kind, capsys)
        assert kind(quick=True).epochs == 4
        assert kind().samples == 1000
