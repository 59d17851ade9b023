"""Tests of `recipes/next_word.py` on two works and the first pages of those held out."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import zoo
from recipes import next_word
from recipes.next_word import Config
from tests import recipe
from zoo.backends import backend
from zoo.datasets import shakespeare
from zoo.datasets.tokenizer import Tokenizer
from zoo.generation import completion
from zoo.training import Interrupted

pytestmark = pytest.mark.usefixtures("small_corpus")

SMALL: dict[str, Any] = {
    "cell": "gru", "vocabulary_size": 400, "units": 32, "dropout": 0.1, "length": 32, "epochs": 2,
    "batch_size": 16, "learning_rate": 1e-2, "train_examples": 640, "schedule": "constant",
}  # fmt: skip


def run(folder: Path, **changes: object) -> tuple[dict, str]:
    return recipe.run(next_word, SMALL, folder, **changes)


@pytest.fixture(scope="module")
def finished(
    small_corpus: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


@pytest.mark.slow
def test_main_learns_and_prints_scores(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "next_word",
        "model": "rnn_language_model",
        "cell": "gru",
        "backend": zoo.backends.name,
        "backend_version": backend.version(),
        "keras_version": keras.__version__,
        "device": backend.device(),
        "seed": 0,
        "epochs": 2,
        "train_examples": 640,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert {"parameters", "wall_seconds"} <= set(metrics)
    assert metrics["examples_per_second"] > 0
    assert metrics["test_perplexity"] == pytest.approx(np.exp(metrics["test_loss"]))
    scores = [metrics[f"{name}test_perplexity"] for name in ("trigram_", "bigram_", "", "unigram_")]
    assert scores[0] < scores[1] < scores[3]
    assert scores[2] < 0.9 * scores[3]  # measured: 0.83
    assert f"{scores[2]:.1f}: the model" in output
    assert "Epoch 2/2" in output
    assert "After 'To be, or not to': " in output
    assert output.rpartition("After ")[2].count("%") == 5
    assert "\n\nTo be, or not to" in output


@pytest.mark.slow
def test_main_writes_the_run_directory(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, _ = finished
    assert sorted(os.listdir(folder)) == [
        "checkpoints", "config.json", "history.csv", "inputs.json", "manifest.json", "metrics.json",
        "model.json", "model.weights.h5", "perplexity.png", "vocabulary.json",
    ]  # fmt: skip
    model, _ = completion.load_run(folder)
    assert model.count_params() == metrics["parameters"]
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert header == "epoch,loss,val_loss,val_perplexity"


@pytest.mark.slow
def test_finished_run_answers_another_prompt(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, first_output = finished
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, output = run(folder, prompt="My lord, I ", temperature=0.5)
    assert again == metrics
    assert "is finished: test perplexity" in output
    assert "After 'My lord, I': " in output
    assert "\n\nMy lord, I" in output
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    _, output = run(folder)
    assert output.partition("After ")[2] == first_output.partition("After ")[2]


@pytest.mark.once
@pytest.mark.slow
def test_main_finishes_a_run_with_no_other_vocabulary(
    finished: tuple[Path, dict, str], tmp_path: Path
) -> None:
    """Not even with a valid one of the same size; what is said to do leads to the same results."""
    finished_folder, metrics, _ = finished
    folder = Path(shutil.copytree(finished_folder, tmp_path / "run"))
    vocabulary = folder / "vocabulary.json"
    content = vocabulary.read_bytes()
    other = Tokenizer.train(shakespeare.split("test"), SMALL["vocabulary_size"])
    assert len(other) == len(Tokenizer.from_json(content))
    vocabulary.write_bytes(other.to_json())
    text = r"vocabulary\.json has changed .*, or remove it and .*manifest\.json and run `zoo"
    with pytest.raises(ValueError, match=text):
        run(folder)
    (folder / "manifest.json").unlink()
    contents = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    text = r"vocabulary\.json must be the file that the run was begun with.* or remove it, so"
    with pytest.raises(ValueError, match=text):
        run(folder)
    assert {path: path.read_bytes() for path in contents} == contents
    vocabulary.unlink()
    again, _ = run(folder)
    assert again["test_loss"] == metrics["test_loss"]
    assert vocabulary.read_bytes() == content


@pytest.mark.once
@pytest.mark.slow
def test_packed_weights_of_a_run_have_its_metrics(
    finished: tuple[Path, dict, str], tmp_path: Path
) -> None:
    folder, metrics, _ = finished
    command = (
        "python recipes/next_word.py --cell gru --vocabulary-size 400 --units 32 --dropout 0.1 "
        "--length 32 --epochs 2 --train-examples 640 --batch-size 16 --schedule constant"
    )
    recipe.assert_packed(folder, "gru-small", tmp_path, metrics, {"test_perplexity"}, command)
    words = zoo.load(tmp_path / "gru-small").next_words("To be, or not to")
    assert words == zoo.load(folder).next_words("To be, or not to")


@pytest.mark.slow
def test_main_rejects_another_configuration(finished: tuple[Path, dict, str]) -> None:
    folder, _, _ = finished
    with pytest.raises(ValueError, match="cell was 'gru' and is 'lstm'"):
        run(folder, cell="lstm")


@pytest.mark.slow
def test_main_resumes_an_interrupted_run_and_extends_a_finished_one(
    finished: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits; TensorFlow sums gradients in no fixed order unless told to."""
    folder, metrics, _ = finished
    longer = tmp_path / "longer"
    monkeypatch.setattr(next_word.NextWordDemo, "print_text", lambda *_: None)
    taken = recipe.interrupt_after(25, monkeypatch)
    with pytest.raises(Interrupted, match="Stopped after step 25; "):
        run(longer, epochs=1)
    shorter, _ = run(longer, epochs=1)
    assert shorter["epochs"] == 1
    extended, _ = run(longer)
    assert taken == list(range(1, 81))  # 40 an epoch, none twice
    with pytest.raises(ValueError, match=r"`epochs` must be at least 2, .* Received: epochs=1"):
        run(longer, epochs=1)
    rounding = 1e-3 if zoo.backends.name == "tensorflow" else 0  # measured: mostly 0
    assert extended["test_loss"] == pytest.approx(metrics["test_loss"], rel=rounding, abs=0)
    assert extended["test_loss"] < shorter["test_loss"]
    for name in ("bigram_test_loss", "epochs", "train_examples"):
        assert extended[name] == metrics[name]
    models = [completion.load_run(path)[0] for path in (folder, longer)]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding)
    if not rounding:
        histories = [(path / "history.csv").read_text() for path in (folder, longer)]
        assert histories[0] == histories[1]


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": " "}, r"`prompt` must not be empty\. Received: ''"),
        ({"prompt": "a naïve man"}, r"`prompt` must be made of .* 'ï' at index 4, in 'naïve'"),
        ({"temperature": -1.0}, "`temperature` must be a finite number of at least 0. Received"),
        ({"vocabulary_size": -5}, "at least 1. Received: vocabulary_size=-5"),
        ({"vocabulary_size": 70_000}, "at most 65536. Received: vocabulary_size=70000"),
        ({"vocabulary_size": 20}, "Received: vocabulary_size=20, texts with"),
        ({"train_examples": 10**6}, "32 tokens in the text. Received: train_examples=1000000"),
        ({"train_examples": 0}, "at least 1. Received: train_examples=0"),
        ({"length": 10**6}, "the tokens of the text. Received: length=1000000"),
        ({"epochs": 0}, "Received: epochs=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"units": 0}, "Received: units=0"),
        ({"dropout": 1.0}, "Received: dropout=1.0"),
        ({"learning_rate": -1.0}, "Received: learning_rate=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_main_rejects_invalid_arguments(tmp_path: Path, changes: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path / "run", **changes)
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.once
def test_config_explains_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    output = recipe.help_of(Config, capsys)
    assert output.count("default") >= len(Config.__dataclass_fields__) - 1


@pytest.mark.once
def test_config_quick_sets_what_is_not_set() -> None:
    assert (Config(quick=True).epochs, Config(quick=True).train_examples) == (1, 8000)
    assert (Config(quick=True, epochs=3).epochs, Config().epochs) == (3, 4)
