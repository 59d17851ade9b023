"""Tests of `recipes/shakespeare.py` on two works and the first pages of those held out."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from recipes import shakespeare
from recipes.shakespeare import Config
from tests import recipe
from zoo import __main__ as command_line
from zoo.backends import backend
from zoo.generation import completion
from zoo.training import Interrupted

pytestmark = pytest.mark.usefixtures("small_corpus")

SMALL: dict[str, Any] = {
    "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "length": 32, "epochs": 2,
    "steps_per_epoch": 100, "batch_size": 16, "learning_rate": 1e-2, "dropout": 0.1,
}  # fmt: skip


def run(folder: Path, **changes: object) -> tuple[dict, str]:
    return recipe.run(shakespeare, SMALL, folder, **changes)


def history(folder: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items()} for row in rows]


@pytest.fixture(scope="module")
def finished(
    small_corpus: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


@pytest.mark.slow
def test_main_learns_and_writes_the_run_directory(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "shakespeare",
        "model": "gpt",
        "tokens": "characters",
        "backend": zoo.backends.name,
        "device": backend.device(),
        "seed": 0,
        "train_examples": 3200,
        "epochs": 2,
        "steps": 200,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert {"backend_version", "keras_version", "parameters", "wall_seconds"} <= set(metrics)
    assert metrics["examples_per_second"] > 0
    assert metrics["test_loss"] < 3.0  # 3.3 by the characters' frequencies; measured: 2.87
    assert metrics["test_bits_per_character"] == pytest.approx(
        metrics["test_loss"] / np.log(2), rel=1e-3
    )
    assert "Epoch 2/2" in output
    assert "Test loss " in output
    assert output.split("Results are in")[1].count("\n") > 1
    assert "ROMEO" in output
    assert sorted(os.listdir(folder)) == [
        "checkpoints", "config.json", "history.csv", "inputs.json", "loss.png",
        "manifest.json", "metrics.json",
        "model.json", "model.weights.h5", "vocabulary.json",
    ]  # fmt: skip
    first, last = history(folder)
    assert set(last) == {"epoch", "loss", "val_loss"}
    assert last["val_loss"] < first["val_loss"]
    assert last["val_loss"] == pytest.approx(metrics["validation_loss"], rel=1e-6)


@pytest.mark.slow
def test_finished_run_continues_another_prompt(
    finished: tuple[Path, dict, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics, _ = finished
    again, output = run(folder, prompt="KING", temperature=0.0)
    assert again == metrics
    assert f"is finished: test loss {metrics['test_loss']:.4f}" in output
    arguments = ["KING", "--run-dir", str(folder), "--tokens", "300"]
    command_line.main(["generate", *arguments, "--temperature", "0"])
    written = capsys.readouterr().out
    assert written.startswith("KING")
    assert len(written) == len("KING") + 300 + 1
    assert output.endswith(written)


@pytest.mark.once
@pytest.mark.slow
def test_packed_weights_of_a_run_have_its_metrics(
    finished: tuple[Path, dict, str], tmp_path: Path
) -> None:
    folder, metrics, _ = finished
    command = (
        "python recipes/shakespeare.py --num-layers 1 --num-heads 2 --hidden-dim 32 --length 32 "
        "--dropout 0.1 --epochs 2 --steps-per-epoch 100 --batch-size 16 --learning-rate 0.01"
    )
    recipe.assert_packed(
        folder, "gpt-small", tmp_path, metrics, {"test_bits_per_character"}, command
    )
    text = zoo.load(tmp_path / "gpt-small").generate("KING", 20)
    assert text == zoo.load(folder).generate("KING", 20)
    assert len(text) == 24


@pytest.mark.slow
def test_generate_rejects_invalid_arguments(
    finished: tuple[Path, dict, str], tmp_path: Path
) -> None:
    folder, *_ = finished
    with pytest.raises(ValueError, match=r"must hold a finished run of .*has no metrics.json"):
        command_line.main(["generate", "KING", "--run-dir", str(tmp_path)])
    with pytest.raises(ValueError, match="`prompt` must not be empty"):
        command_line.main(["generate", "", "--run-dir", str(folder)])
    arguments = ["KING", "--run-dir", str(folder), "--tokens", "0"]
    with pytest.raises(ValueError, match="`tokens` must be a whole number of at least 1"):
        command_line.main(["generate", *arguments])


@pytest.mark.slow
def test_main_resumes_an_interrupted_run(
    finished: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits; TensorFlow sums gradients in no fixed order unless told to."""
    folder, metrics, _ = finished
    monkeypatch.setattr(shakespeare.TextGenerator, "print_text", lambda *_: None)
    taken = recipe.interrupt_after(25, monkeypatch)
    with pytest.raises(Interrupted, match=r"Stopped after step 25; .*--run-dir .* goes on"):
        run(tmp_path / "run")
    resumed, _ = run(tmp_path / "run")
    assert taken == list(range(1, 201))
    rounding = 1e-3 if zoo.backends.name == "tensorflow" else 0
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], rel=0, abs=rounding)
    for row, expected in zip(history(tmp_path / "run"), history(folder), strict=True):
        assert row == pytest.approx(expected, rel=0, abs=rounding)


@pytest.mark.slow
def test_main_subwords_modern_block_and_last_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shakespeare.TextGenerator, "print_text", lambda *_: None)
    changes = {
        "tokens": "subwords", "vocabulary_size": 300, "modern": True, "split": "first_90",
        "epochs": 1,
    }  # fmt: skip
    metrics, _ = run(tmp_path / "run", **changes)
    assert metrics["test_loss"] < 5.0
    assert metrics["test_loss"] == metrics["validation_loss"]
    model, tokenizer = completion.load_run(tmp_path / "run")
    assert len(tokenizer) == 300
    paths = [variable.path for variable in model.weights]
    assert not any("bias" in path or "beta" in path for path in paths)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"prompt": ""}, "`prompt` must not be empty"),
        ({"prompt": "façade"}, "Received: 'ç' at index 2"),
        ({"num_heads": 3}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=3"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a whole number of at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"patience": 0}, "`patience` must be a whole number of at least 1"),
    ],
)
def test_main_rejects_invalid_arguments(arguments: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.once
def test_config_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    recipe.help_of(Config, capsys)
    quick, full = Config(quick=True), Config()
    assert (quick.epochs, quick.steps_per_epoch) == (3, 100)
    assert (full.epochs, full.steps_per_epoch) == (8, 250)
