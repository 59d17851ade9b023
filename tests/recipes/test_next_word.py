"""`recipes/next_word.py` on two works, and the first pages of those held out."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tyro

import zoo
from recipes import next_word
from recipes.next_word import Config
from tests import recipe
from zoo.backends import backend
from zoo.datasets import tokenizer
from zoo.generation import completion
from zoo.training import trainer

pytestmark = pytest.mark.usefixtures("small_corpus")

SMALL = {
    "cell": "gru", "vocabulary_size": 400, "units": 32, "dropout": 0.1, "length": 32, "epochs": 2,
    "batch_size": 16, "learning_rate": 1e-2, "train_examples": 640,
}  # fmt: skip


def run(folder: Path, **changes: object) -> tuple[dict, str]:
    return recipe.run(next_word, SMALL, folder, **changes)


@pytest.fixture(scope="module")
def finished(small_corpus: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


def test_it_learns_and_says_so(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "next_word",
        "model": "rnn_language_model",
        "cell": "gru",
        "backend": zoo.backends.name,
        "backend_version": backend.version(),
        "device": backend.device(),
        "seed": 0,
        "epochs": 2,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert {"keras_version", "parameters", "train_examples", "wall_seconds"} <= set(metrics)
    assert metrics["examples_per_second"] > 0
    assert metrics["test_perplexity"] == pytest.approx(np.exp(metrics["test_loss"]))
    scores = [metrics[f"{name}test_perplexity"] for name in ("trigram_", "bigram_", "", "unigram_")]
    assert scores[0] < scores[1] < scores[3]
    assert scores[2] < 0.9 * scores[3]  # measured: 0.83
    assert f"{scores[2]:.1f}: the model" in output
    assert "epoch 2/2  loss" in output
    assert "After 'To be, or not to': " in output
    assert output.count("%") == 5
    assert "\n\nTo be, or not to" in output


def test_the_run_directory_is_complete(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, _ = finished
    assert sorted(os.listdir(folder)) == [
        "checkpoints", "config.json", "history.csv", "metrics.json", "model.json",
        "model.weights.h5", "perplexity.png", "vocabulary.json",
    ]  # fmt: skip
    model, _ = completion.load_run(folder)
    assert model.count_params() == metrics["parameters"]
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert header == "epoch,loss,validation_loss,validation_perplexity"


def test_a_finished_run_answers_another_prompt(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, before = finished
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, output = run(folder, prompt="My lord, I ", temperature=0.5)
    assert again == metrics
    assert "is finished: test perplexity" in output
    assert "After 'My lord, I': " in output
    assert "\n\nMy lord, I" in output
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    _, output = run(folder)
    assert output.partition("After ")[2] == before.partition("After ")[2]


def test_another_configuration_is_refused(finished: tuple[Path, dict, str]) -> None:
    folder, _, _ = finished
    with pytest.raises(ValueError, match="cell was 'gru' and is 'lstm'"):
        run(folder, cell="lstm")


def test_ctrl_c_saves_and_the_run_goes_on(
    finished: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits; TensorFlow adds gradients up in no fixed order unless it is told to."""
    folder, metrics, _ = finished
    take_step = trainer._Loop.step

    def interrupted(self: trainer._Loop, indices: np.ndarray) -> None:
        take_step(self, indices)
        if self._state.step == 40:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Loop, "step", interrupted)
        with pytest.raises(trainer.Interrupted, match="Stopped after step 40; "):
            run(tmp_path / "stopped")
    again, output = run(tmp_path / "stopped")
    assert "Going on after step 40" in output
    rounding = 1e-3 if zoo.backends.name == "tensorflow" else 0  # measured: mostly 0
    assert again["test_loss"] == pytest.approx(metrics["test_loss"], rel=rounding, abs=0)
    assert again["bigram_test_loss"] == metrics["bigram_test_loss"]
    vocabulary = tokenizer.Tokenizer.load(folder / "vocabulary.json")
    weights = []
    for path in (folder, tmp_path / "stopped"):
        model = zoo.rnn_language_model(len(vocabulary), "gru", 32, 32)
        model.load_weights(path / "model.weights.h5")
        weights.append(model.get_weights())
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": " "}, r"`prompt` must not be empty\. Received: ''"),
        ({"prompt": "a naïve man"}, r"`prompt` must be made of .* 'ï' at index 4, in 'naïve'"),
        ({"temperature": -1.0}, "`temperature` must be 0 or more. Received: temperature=-1.0"),
        ({"vocabulary_size": -5}, "at least 2 and at most 65536. Received: vocabulary_size=-5"),
        ({"vocabulary_size": 70_000}, "at most 65536. Received: vocabulary_size=70000"),
        ({"vocabulary_size": 20}, "Received: vocabulary_size=20, texts with"),
        ({"train_examples": 10**6}, "of 32 tokens in the text. Received: train_examples=1000000"),
        ({"length": 10**6}, "the tokens of the text. Received: length=1000000"),
        ({"epochs": 0}, "Received: epochs=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"units": 0}, "Received: units=0"),
        ({"dropout": 1.0}, "Received: dropout=1.0"),
        ({"learning_rate": -1.0}, "Received: learning_rate=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_begin_no_run(tmp_path: Path, changes: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path / "run", **changes)
    assert not list(tmp_path.glob("run/*"))


def test_help_explains_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    output = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in output
    assert output.count("default") >= len(Config.__dataclass_fields__) - 1


def test_quick_chooses_what_was_not_chosen() -> None:
    assert (Config(quick=True).epochs, Config(quick=True).train_examples) == (1, 8000)
    assert (Config(quick=True, epochs=3).epochs, Config().epochs) == (3, 4)
