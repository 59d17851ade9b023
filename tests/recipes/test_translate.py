"""Tests of `recipes/translate.py` on short verses."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

import zoo
from recipes import translate
from recipes.translate import Config
from tests import recipe
from zoo import __main__ as command_line
from zoo.evaluation import translation
from zoo.training import Interrupted

pytestmark = pytest.mark.usefixtures("small_parallel_corpus")

SMALL: dict[str, Any] = {
    "vocabulary_size": 600, "num_layers": 1, "num_heads": 2, "hidden_dim": 32,
    "intermediate_dim": 64, "epochs": 5, "max_length": 24, "batch_tokens": 512,
    "learning_rate": 1e-2, "test_pairs": 3, "num_beams": 2,
}  # fmt: skip


def run(folder: Path, **changes: object) -> tuple[dict, str]:
    return recipe.run(translate, SMALL, folder, **changes)


@pytest.fixture(scope="module")
def finished(
    small_parallel_corpus: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


@pytest.mark.slow
def test_main_learns_and_translates(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "translate", "model": "transformer", "backend": zoo.backends.name, "seed": 0,
        "epochs": 5, "test_pairs": 3,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["test_loss"] < metrics["unigram_test_loss"]
    assert metrics["examples_per_second"] > 0
    for name in ("", "copied_source_", "most_frequent_word_", "word_by_word_"):
        assert 0 <= metrics[f"{name}bleu"] <= 100
        assert 0 <= metrics[f"{name}chrf"] <= 100
    rows = (folder / "translations.tsv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[1].split("\t")[0] in output
    assert rows[0] == "verse\tsource\ttarget\tmodel"
    assert sorted(os.listdir(folder)) == [
        "attention.png", "checkpoints", "config.json", "history.csv", "inputs.json",
        "manifest.json",
        "metrics.json", "model.json", "model.weights.h5", "perplexity.png", "translations.tsv",
        "vocabulary.json",
    ]  # fmt: skip
    history = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert set(history[0]) == {"epoch", "loss", "nats", "val_loss", "val_nats"}
    assert float(history[-1]["val_nats"]) < float(history[0]["val_nats"])
    assert float(history[-1]["nats"]) < float(history[-1]["loss"])  # without label smoothing


@pytest.mark.slow
def test_finished_run_reports_scores_and_translates(
    finished: tuple[Path, dict, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics, _ = finished
    again, output = run(folder)
    assert again == metrics
    assert f"is finished: BLEU {metrics['bleu']:.1f}, chrF {metrics['chrf']:.1f}" in output
    command_line.main(["translate", "the house", "--run-dir", str(folder)])
    (translation,) = zoo.load(folder).translate(["the house"])
    assert capsys.readouterr().out == f"{translation}\n"
    with pytest.raises(ValueError, match=r"must hold a model for `zoo generate`.*transformer"):
        command_line.main(["generate", "the house", "--run-dir", str(folder)])


@pytest.mark.once
@pytest.mark.slow
def test_packed_weights_of_a_run_have_its_metrics(
    finished: tuple[Path, dict, str], tmp_path: Path
) -> None:
    folder, metrics, _ = finished
    command = (
        "python recipes/translate.py --vocabulary-size 600 --num-layers 1 --num-heads 2 "
        "--hidden-dim 32 --intermediate-dim 64 --epochs 5 --max-length 24 --batch-tokens 512 "
        "--learning-rate 0.01 --num-beams 2 --test-pairs 3"
    )
    recipe.assert_packed(folder, "transformer-small", tmp_path, metrics, {"bleu", "chrf"}, command)
    translations = zoo.load(tmp_path / "transformer-small").translate(["the house", "he went"])
    assert translations == zoo.load(folder).translate(["the house", "he went"])


@pytest.mark.slow
def test_main_resumes_an_interrupted_run(
    finished: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits; TensorFlow sums gradients in no fixed order unless told to."""
    folder, metrics, _ = finished
    report = {"unigram_test_loss": metrics["unigram_test_loss"]}
    monkeypatch.setattr(translation, "write_report", lambda *_: report)
    taken = recipe.interrupt_after(5, monkeypatch)
    with pytest.raises(Interrupted, match="Stopped after step 5; "):
        run(tmp_path / "run")
    resumed, _ = run(tmp_path / "run")
    assert taken == list(range(1, len(taken) + 1))
    rounding = 1e-3 if zoo.backends.name == "tensorflow" else 0
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], rel=0, abs=rounding)
    if not rounding:
        histories = [(path / "history.csv").read_text() for path in (folder, tmp_path / "run")]
        assert histories[0] == histories[1]


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"num_heads": 3}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=3"),
        ({"vocabulary_size": 20}, "`vocabulary_size` must be above the number of different bytes"),
        ({"max_length": 3}, "`max_length` must leave a pair at least"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be a number in \[0, 1\)"),
        ({"test_pairs": 0}, "`test_pairs` must be a whole number of at least 1"),
        ({"num_beams": 0}, "`num_beams` must be a whole number of at least 1"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1"),
    ],
)
def test_main_rejects_invalid_arguments(arguments: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.once
def test_config_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    recipe.help_of(Config, capsys)
    assert Config(quick=True).max_length == 24
    assert Config().max_length == 64
