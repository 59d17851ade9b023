"""`recipes/text_to_image.py` and `recipes/diffusion.py` on a few digits, and `zoo draw`."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from recipes import diffusion, text_to_image
from tests import recipe
from zoo import __main__ as command_line
from zoo import datasets, registry
from zoo.diffusion import companions, config
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.training import trainer

SMALL: dict[str, Any] = {
    "channels": (8,), "text_dim": 16, "train_examples": 96, "epochs": 2, "batch_size": 32,
    "samples": 20, "steps": 4,
}  # fmt: skip
UNASKED = {name: value for name, value in SMALL.items() if name != "text_dim"}
PLOTS = ["denoising.gif", "loss.png", "samples-01.png", "samples-02.png", "samples.png"]
FILES = [
    "checkpoints", "config.json", "diffusion.json", "history.csv", "metrics.json", "model.json",
    "model.weights.h5",
]  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recipes/mnist.py leaves behind of an untrained network."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"recipe": "mnist", "dataset": "mnist", "model": "mlp"})
    )
    (folder / "metrics.json").write_text(json.dumps({"mean": [0.1307], "std": [0.3081]}))
    model = registry.get_classifier("mlp").build(num_classes=10, input_shape=(28, 28, 1))
    model.save_weights(folder / "model.weights.h5")
    return folder


def run(folder: Path, classifier: Path, **changes: Any) -> tuple[dict, str]:
    settings = {**SMALL, "classifier": classifier}
    return recipe.run(text_to_image, {**settings, **changes}, folder)


@pytest.fixture(scope="module")
def finished(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder, classifier, prompt="a handwritten seven")


def test_it_learns_draws_and_judges(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "text_to_image", "model": "text_to_image", "backend": zoo.backends.name,
        "seed": 0, "train_examples": 96, "epochs": 2, "samples": 20,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert 0 <= metrics["prompt_accuracy"] <= 1
    assert metrics["intra_class_diversity"] > 0
    for name in ("frechet_distance", "frechet_real", "frechet_noise", "test_loss"):
        assert metrics[name] > 0
    assert metrics["examples_per_second"] > 0
    assert f"{metrics['prompt_accuracy']:.1%} of the images are what was asked for" in output
    assert sorted(os.listdir(folder)) == sorted([*FILES, *PLOTS, "prompt.png", "prompts.json"])
    with Image.open(folder / "denoising.gif") as film:
        assert film.n_frames == 4
    rows = (folder / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,loss,validation_loss"
    assert float(rows[2].split(",")[1]) < float(rows[1].split(",")[1])


def test_a_finished_run_says_so_and_draws_another_prompt(
    finished: tuple[Path, dict, str], classifier: Path, tmp_path: Path
) -> None:
    folder, metrics, _ = finished
    before = (folder / "prompt.png").read_bytes()
    again, output = run(folder, classifier, prompt="the digit 3", out=tmp_path / "three.png")
    assert again == metrics
    assert "is finished" in output
    assert (tmp_path / "three.png").read_bytes() != before
    assert (folder / "prompt.png").read_bytes() == before


def test_the_command_line_draws(
    finished: tuple[Path, dict, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same image from the same seed, which the recipe draws, too."""
    folder, _, _ = finished
    out = tmp_path / "new" / "seven.png"
    asked = ["--prompt", "a handwritten seven", "--steps", "4", "--out", str(out)]
    command_line.main(["draw", "--run-dir", str(folder), *asked])
    assert "seven.png" in capsys.readouterr().out
    with Image.open(out) as drawn, Image.open(folder / "prompt.png") as first:
        drawn, first = np.asarray(drawn, int), np.asarray(first, int)
    assert drawn.shape == first.shape
    assert np.abs(drawn - first).max() <= 1
    command_line.main(["draw", "--run-dir", str(folder), *asked, "--count", "3"])
    with Image.open(out) as row:
        assert row.width > 3 * 28


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--prompt", "a purple cat"], "unknown words: purple, cat. The vocabulary is 0, 1, 2"),
        ([], "`prompt` must be given to a model that reads prompts.*prompt=None"),
        (["--prompt", "7", "--steps", "1001"], r"`steps` must lie in 1..1000"),
        (["--prompt", "7", "--count", "0"], "`count` must be a whole number of at least 1"),
        (["--prompt", "7", "--steps", "1", "--out", "seven.doc"], "`out` must have the suffix"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    finished: tuple[Path, dict, str], arguments: list[str], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        command_line.main(["draw", "--run-dir", str(finished[0]), *arguments])


def test_it_goes_on_where_it_was_interrupted(
    finished: tuple[Path, dict, str],
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The averages of the weights, too: the same images come out."""
    folder, metrics, _ = finished
    taken = recipe.interrupt_after(4, monkeypatch)
    with pytest.raises(trainer.Interrupted, match="Stopped after step 4"):
        run(tmp_path / "run", classifier)
    resumed, output = run(tmp_path / "run", classifier)
    assert "Going on after step 4 of 6" in output
    assert taken == list(range(1, 7))
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
    options: dict[str, Any] = {"prompts": ["a seven"], "steps": 4}
    np.testing.assert_allclose(
        DiffusionPipeline.load(tmp_path / "run").sample(**options),
        DiffusionPipeline.load(folder).sample(**options),
        atol=1e-3,
    )


def test_images_without_a_prompt_in_the_latent_space(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**UNASKED, "classifier": classifier, "latent": True, "zero_terminal_snr": True,
                "min_snr_gamma": 5.0, "eta": 1.0}  # fmt: skip
    metrics, output = recipe.run(diffusion, settings, tmp_path / "run")
    assert metrics["prompt_accuracy"] is None
    assert metrics["model"] == "unet"
    assert metrics["frechet_distance"] > 0
    coder = ["autoencoder", "autoencoder.json", "autoencoder.weights.h5"]
    assert sorted(os.listdir(tmp_path / "run")) == sorted([*FILES, *PLOTS, *coder])
    again, output = recipe.run(diffusion, settings, tmp_path / "run")
    assert again == metrics
    assert f"is finished: Fréchet distance {metrics['frechet_distance']:.2f}" in output
    out = tmp_path / "some.png"
    drawing = ["draw", "--run-dir", str(tmp_path / "run"), "--out", str(out), "--steps", "3"]
    command_line.main([*drawing, "--count", "4"])
    with Image.open(out) as row:
        assert row.width > 4 * 28
    with pytest.raises(ValueError, match="`prompt` must be given to a model that reads prompts"):
        command_line.main([*drawing, "--prompt", "a seven"])


def test_the_classifier_is_trained_by_its_recipe(tmp_path: Path) -> None:
    """Which goes on where it was, or says that it is done."""
    script = tmp_path / "mnist.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from typing import Any\n\n"
        "@dataclass\n"
        "class Config:\n"
        "    model: str\n"
        "    epochs: int\n"
        "    dataset: str\n"
        "    data_dir: Any\n"
        "    run_dir: Any\n\n"
        "def main(config):\n"
        "    config.run_dir.write_text(repr(config))\n"
    )
    for quick, asked in ((True, "model='mlp', epochs=5"), (False, "model='cnn_48x48', epochs=1")):
        settings = config.DiffusionConfig(quick=quick)
        companions.train_classifier(script, settings, tmp_path / "classifier")
        assert asked in (tmp_path / "classifier").read_text()


def test_an_autoencoder_that_is_interrupted_says_how_to_go_on(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**UNASKED, "classifier": classifier, "latent": True}
    taken = recipe.interrupt_after(2, monkeypatch)
    goes_on = r"Stopped while the autoencoder was in training; .*`--run-dir .*run` goes on"
    with pytest.raises(trainer.Interrupted, match=goes_on):
        recipe.run(diffusion, settings, tmp_path / "run")
    assert taken == [1, 2]


@pytest.mark.parametrize("quick", [True, False])
def test_a_latent_image_is_halved_once_less(quick: bool) -> None:
    """14×14, with as many levels as that can be halved."""
    config = diffusion.Config(quick=quick, latent=True)
    assert len(config.channels) == 2
    unet = zoo.unet((14, 14, 2), **config.network)
    assert unet.output.shape[1:] == (14, 14, 2)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"channels": (8, 16, 32, 64)}, "`input_shape` must have a height and a width divisible"),
        ({"channels": (9,)}, "multiples of `num_groups`=8"),
        ({"samples": 10}, "`samples` must be at least 20, two images of each.* samples=10"),
        ({"samples": 0}, "`samples` must be a whole number of at least 1"),
        ({"out": Path("seven.png")}, "`prompt` must be given for `negative_prompt`, `out`"),
        ({"negative_prompt": "dog"}, "`prompt` must be given for `negative_prompt`, `out`"),
        ({"prompt": "7", "out": Path("seven.doc")}, "`out` must have the suffix.*seven.doc"),
        ({"prompt": "7", "prompt_seed": -1}, "`seed` must be an integer"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1"),
        ({"min_snr_gamma": -1.0}, "`min_snr_gamma` must be above 0"),
        ({"prompt": ""}, "`prompt` must have at least one word"),
        ({"prompt": "a purple cat"}, "unknown words: purple, cat"),
        ({"negative_prompt": "dog", "prompt": "7"}, "unknown words: dog"),
        ({"steps": 1001}, r"`steps` must lie in 1..1000"),
        ({"eta": 2.0}, r"`eta` must lie in \[0, 1\]"),
        ({"guidance_scale": -1.0}, "Received: guidance_scale=-1.0"),
        ({"prediction": "noise", "zero_terminal_snr": True}, "must be v or x0 for a schedule"),
        ({"classifier": Path("nowhere")}, "`classifier` must hold a finished run.*config.json"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
    ],
)
def test_wrong_arguments_leave_nothing(
    arguments: dict[str, Any], problem: str, classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        recipe.run(
            text_to_image, {**SMALL, "classifier": classifier, **arguments}, tmp_path / "run"
        )
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_classifier_of_other_images_is_refused(classifier: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("metrics.json", "model.weights.h5"):
        (other / name).write_bytes((classifier / name).read_bytes())
    (other / "config.json").write_text('{"recipe": "mnist", "dataset": "kmnist", "model": "mlp"}')
    with pytest.raises(ValueError, match=r"recipes/mnist\.py on mnist\. Received: .*kmnist"):
        run(tmp_path / "run", other)


def test_other_things_than_digits_have_no_prompts() -> None:
    data = datasets.load("mnist", train_examples=20, test_examples=20)
    letters = datasets.ImageDataset(
        "letters", data.x_train, data.y_train, data.x_test, data.y_test, 26, data.mean, data.std
    )
    with pytest.raises(ValueError, match=r"10 classes, the digits.* dataset=letters"):
        text_to_image.check_digits(letters)


def test_every_flag_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (text_to_image.Config, diffusion.Config):
        recipe.help_of(kind, capsys)
        assert kind(quick=True).epochs == 4
        assert kind().samples == 1000
