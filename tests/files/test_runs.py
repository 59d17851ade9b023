"""Tests of finished runs: their manifest, the model's builder, and what has changed since."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from tests.files.conftest import digests
from tests.files.test_malformed import MNIST
from zoo import gpt, mlp, registry
from zoo.diffusion.metrics import FeatureExtractor
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.files import models, runs
from zoo.files.runs import FinishedRun, load_model
from zoo.generation import completion
from zoo.training.run_directory import RunDirectory

TEXT = {"recipe": "text", "epochs": 2}


def test_load_model_builds_the_model_of_the_run(finished_runs: Path) -> None:
    model = load_model(finished_runs / "text")
    assert model.name == "gpt"
    content = json.loads((finished_runs / "text" / "model.json").read_text())
    assert content["builder"] == "gpt"
    assert content["arguments"]["hidden_dim"] == 8
    assert content["arguments"]["dtype"] == keras.config.dtype_policy().name
    original = gpt(**content["arguments"])
    for loaded, built in zip(model.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, built)  # the run's model is untrained
    for name in ("prompts", "latents"):
        assert DiffusionPipeline.load(finished_runs / name).spec.num_steps == 20


EXAMPLES = {
    name: arguments
    for builder in registry.models
    for name, arguments in registry.examples(builder).items()
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_run_directory_saves_every_builder(name: str, tmp_path: Path) -> None:
    model = registry.get(name.partition("/")[0]).build(**EXAMPLES[name], seed=3)
    run = RunDirectory(tmp_path, {})
    run.write_config()
    run.save_model(model)
    run.write_metrics({})
    loaded = load_model(tmp_path)
    assert registry.origin(loaded)[0] == registry.origin(model)[0]
    assert [v.path for v in loaded.variables] == [v.path for v in model.variables]
    for one, two in zip(loaded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(one, two)


@pytest.mark.once
def test_manifest_lists_what_belongs_to_the_model(finished_runs: Path) -> None:
    manifest = json.loads((finished_runs / "text" / runs.MANIFEST).read_text())
    assert sorted(manifest["files"]) == [
        "config.json", "metrics.json", "model.json", "model.weights.h5", "vocabulary.json",
    ]  # fmt: skip


@pytest.mark.once
def test_write_metrics_leaves_what_is_not_finite_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, {})
    run.write_config()
    run.write_metrics({"loss": float("nan"), "by_word": {"a": [float("inf"), 1.5]}})
    assert RunDirectory(tmp_path, {}).metrics == {"loss": None, "by_word": {"a": [None, 1.5]}}


@pytest.mark.once
def test_save_model_refuses_models_from_elsewhere_and_weights_that_are_not_finite(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path, {})
    run.write_config()
    model = mlp((4,), 2, (3,))
    copy = keras.models.clone_model(model)
    with pytest.raises(ValueError, match=r"`model` must be made by one of autoencoder.*elsewhere"):
        run.save_model(copy)
    model.get_layer("output").enable_lora(1)
    with pytest.raises(ValueError, match=r"must have the 23 parameters .*Received: 2\d parameters"):
        models.describe(model)
    model = mlp((4,), 2, (3,))
    model.layers[-1].bias.assign([0.0, float("nan")])
    with pytest.raises(ValueError, match=r"must have finite weights.*NaN or an infinity in .*bias"):
        run.save_model(model)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".lock-holder", "config.json"}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = [
    ("text", "config.json"), ("text", "metrics.json"), ("text", "model.json"),
    ("text", "model.weights.h5"), ("text", "vocabulary.json"), ("prompts", "diffusion.json"),
    ("prompts", "prompts.json"), ("latents", "autoencoder.json"),
    ("latents", "autoencoder.weights.h5"),
]  # fmt: skip


def load(folder: Path) -> Any:
    """As the commands and the recipe load a run."""
    if folder.name == "text":
        completion.load_run(folder)
    else:
        DiffusionPipeline.load(folder)


@pytest.mark.once
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_flipped_bit_is_refused_by_name(run_folder: Path, name: str, file: str) -> None:
    folder = run_folder / name
    flip_bit(folder / file)
    original_digests = digests(folder)
    text = rf"{file} has changed since the run was finished: it must have the SHA-256 \w{{64}}"
    if file != "config.json":  # which decides nothing there
        with pytest.raises(ValueError, match=text):
            load(folder)
    if file == "config.json":  # which a run directory reads first
        text = r"config\.json must be valid JSON.*Restore the file, or give another `--run-dir`"
    with pytest.raises(ValueError, match=text):
        RunDirectory(folder, {"recipe": name, "epochs": 2}, "epochs")
    assert digests(folder) == original_digests


@pytest.mark.once
def test_changes_that_fit_are_refused_by_name(run_folder: Path) -> None:
    """Another schedule of as many steps, exchanged words, and weights of another seed."""
    folder = run_folder / "prompts"
    original = folder.with_name("original")
    shutil.copytree(folder, original)

    def replace(name: str, original_digests: str, after: str) -> None:
        text = (folder / name).read_text()
        assert original_digests in text
        (folder / name).write_text(text.replace(original_digests, after))

    replace("diffusion.json", "cosine", "linear")
    with pytest.raises(ValueError, match=r"diffusion.json has changed since the run was finished"):
        DiffusionPipeline.load(folder)
    shutil.copy(original / "diffusion.json", folder)
    replace("prompts.json", "seven", "sevem")
    with pytest.raises(ValueError, match=r"prompts.json has changed since the run was finished"):
        DiffusionPipeline.load(folder)
    shutil.copy(original / "prompts.json", folder)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        datasets = [file[name] for name in names if isinstance(file[name], h5py.Dataset)]
        datasets[0][...] = -datasets[0][...]
    with pytest.raises(ValueError, match=r"model.weights.h5 has changed .*call its `load_weights`"):
        DiffusionPipeline.load(folder)


@pytest.mark.once
@pytest.mark.parametrize(
    "name", ["metrics.json", "model.json", "model.weights.h5", "manifest.json"]
)
def test_finished_run_names_the_missing_file(run_folder: Path, name: str) -> None:
    folder = run_folder / "text"
    (folder / name).unlink()
    text = (
        rf"`run_dir` must hold a finished run of a recipe\. Received: .*text, which has no {name}"
        r"\. .*un `zoo train text` with the same flags and `--run-dir` again, which finishes the"
    )
    with pytest.raises(ValueError, match=text):
        load_model(folder)


@pytest.mark.once
def test_finished_run_names_another_recipe(run_folder: Path) -> None:
    """Also one that lacks the files, and none of whose results fit: the run itself is whole."""
    with RunDirectory(run_folder / "other", {"recipe": "next_word"}) as other:
        other.write_metrics({"recipe": "next_word", "test_loss": 1.0})
    original_digests = digests(run_folder)
    text = (
        r"`{}` must hold a finished run of {}\. Received: .*other, a finished run of `zoo train "
        "next_word`$"
    )
    classifier = text.format("classifier", "`zoo train mnist`")
    with pytest.raises(ValueError, match=classifier):
        FeatureExtractor.load(other.path, MNIST)
    pipeline = text.format("run_dir", "`zoo train text_to_image` or `zoo train diffusion`")
    with pytest.raises(ValueError, match=pipeline):
        DiffusionPipeline.load(other.path)
    assert digests(run_folder) == original_digests


@pytest.mark.once
def test_finished_run_names_the_command_of_the_outer_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, {"recipe": "diffusion"}) as outer:
        outer.write_config()
        with outer.nested("classifier", {"recipe": "mnist"}) as run:
            run.write_config()
    with pytest.raises(ValueError, match=r"no metrics\.json\. Run `zoo train diffusion` with"):
        FinishedRun(run.path)
    with pytest.raises(ValueError, match=r"no metrics\.json\. Give another directory$"):
        FinishedRun(tmp_path / "none")


@pytest.mark.once
def test_run_directory_follows_its_own_advice(run_folder: Path) -> None:
    """Without the manifest a damaged run is not finished, so that its recipe goes on."""
    folder = run_folder / "text"
    assert RunDirectory(folder, TEXT, "epochs").metrics == {"test_loss": 3.0}
    flip_bit(folder / "model.weights.h5")
    with pytest.raises(ValueError, match=r"or remove it and .*manifest\.json and run `zoo train t"):
        RunDirectory(folder, TEXT, "epochs")
    (folder / runs.MANIFEST).unlink()
    run = RunDirectory(folder, TEXT, "epochs")
    assert run.metrics is None
    run.save_model(gpt(12, 8, 1, 2, 8))
    run.write_metrics({"test_loss": 2.0})
    assert RunDirectory(folder, TEXT, "epochs").metrics == {"test_loss": 2.0}


@pytest.mark.once
def test_a_longer_run_is_not_finished_before_its_end(run_folder: Path) -> None:
    folder = run_folder / "text"
    longer = RunDirectory(folder, {**TEXT, "epochs": 3}, "epochs")
    assert longer.metrics is None
    longer.write_config()
    with pytest.raises(ValueError, match=r"which has no metrics\.json"):
        FinishedRun(folder)
    assert not (folder / runs.MANIFEST).exists()


@pytest.mark.once
def test_load_weights_of_a_run_fills_a_model_of_the_same_configuration(run_folder: Path) -> None:
    run = RunDirectory(run_folder / "text", TEXT, "epochs")
    content = json.loads((run.path / "model.json").read_text())
    model = gpt(**{**content["arguments"], "seed": 5})
    run.load_weights(model)
    for one, two in zip(model.get_weights(), load_model(run.path).get_weights()):
        np.testing.assert_array_equal(one, two)
    flip_bit(run.path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"model\.weights\.h5 has changed"):
        run.load_weights(model)
