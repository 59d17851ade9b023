"""`recipes/shakespeare.py` on two works and the first pages of those held out."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import zoo
from recipes import shakespeare
from recipes.shakespeare import Config
from tests import recipe
from zoo import __main__ as command_line
from zoo.backends import backend
from zoo.generation import completion
from zoo.training import trainer

pytestmark = pytest.mark.usefixtures("small_corpus")

SMALL = {
    "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "length": 32, "steps": 200,
    "batch_size": 16, "learning_rate": 1e-2, "dropout": 0.1,
}  # fmt: skip


def run(folder: Path, **changes: object) -> tuple[dict, str]:
    return recipe.run(shakespeare, SMALL, folder, **changes)


@pytest.fixture(scope="module")
def finished(small_corpus: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


def test_it_learns_and_writes(finished: tuple[Path, dict, str]) -> None:
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
    }
    assert {name: metrics[name] for name in expected} == expected
    assert {"backend_version", "keras_version", "parameters", "wall_seconds"} <= set(metrics)
    assert metrics["examples_per_second"] > 0
    assert metrics["test_loss"] < 3.0  # 3.3 by the characters' frequencies; measured: 2.87
    assert metrics["test_bits_per_character"] == pytest.approx(
        metrics["test_loss"] / np.log(2), rel=1e-3
    )
    assert "Test loss " in output
    assert output.split("Results are in")[1].count("\n") > 1
    assert "ROMEO" in output
    assert sorted(os.listdir(folder)) == [
        "checkpoints", "config.json", "history.csv", "loss.png", "metrics.json", "model.json",
        "model.weights.h5", "vocabulary.json",
    ]  # fmt: skip


def test_a_finished_run_writes_on(
    finished: tuple[Path, dict, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics, _ = finished
    again, output = run(folder, prompt="KING", temperature=0.0)
    assert again == metrics
    assert f"is finished: test loss {metrics['test_loss']:.4f}" in output
    arguments = ["--run-dir", str(folder), "--prompt", "KING", "--tokens", "300"]
    command_line.main(["generate", *arguments, "--temperature", "0"])
    written = capsys.readouterr().out
    assert written.startswith("KING")
    assert len(written) == len("KING") + 300 + 1
    assert output.endswith(written)


def test_writing_refuses(finished: tuple[Path, dict, str], tmp_path: Path) -> None:
    folder, *_ = finished
    with pytest.raises(ValueError, match=r"must hold a finished run of .*has no metrics.json"):
        command_line.main(["generate", "--run-dir", str(tmp_path), "--prompt", "KING"])
    with pytest.raises(ValueError, match="`prompt` must not be empty"):
        command_line.main(["generate", "--run-dir", str(folder), "--prompt", ""])
    arguments = ["--run-dir", str(folder), "--prompt", "KING", "--tokens", "0"]
    with pytest.raises(ValueError, match="`max_new_tokens` must be a whole number of at least 1"):
        command_line.main(["generate", *arguments])


def test_it_goes_on_where_it_was_interrupted(
    finished: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, metrics, _ = finished
    taken = recipe.interrupt_after(25, monkeypatch)
    with pytest.raises(trainer.Interrupted, match="Stopped after step 25"):
        run(tmp_path / "run")
    resumed, output = run(tmp_path / "run")
    assert "Going on after step 25 of 200" in output
    assert taken == list(range(1, 201))
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], abs=1e-3)


def test_subwords_the_modern_block_and_the_last_tenth(tmp_path: Path) -> None:
    changes = {
        "tokens": "subwords", "vocabulary_size": 300, "modern": True, "split": "first_90",
    }  # fmt: skip
    metrics, _ = run(tmp_path / "run", **changes)
    assert metrics["test_loss"] < 5.0
    assert metrics["test_loss"] == metrics["validation_loss"]
    model, vocabulary = completion.load_run(tmp_path / "run")
    assert len(vocabulary) == 300
    assert not any("bias" in variable.path or "beta" in variable.path for variable in model.weights)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"prompt": ""}, "`prompt` must not be empty"),
        ({"prompt": "façade"}, "Received: 'ç' at index 2"),
        ({"num_heads": 3}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=3"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_wrong_arguments_leave_nothing(arguments: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run" / "config.json").exists()


def test_every_flag_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    recipe.help_of(Config, capsys)
    assert Config(quick=True).steps == 300
    assert Config().steps == 2000
