"""`recipes/translate.py` on six short books."""

import json
import os
from pathlib import Path

import pytest

import zoo
from recipes import translate
from recipes.translate import Config
from tests import recipe
from zoo import __main__ as command_line
from zoo.training import trainer

pytestmark = pytest.mark.usefixtures("small_parallel_corpus")

SMALL = {
    "vocabulary_size": 600, "num_layers": 1, "num_heads": 2, "hidden_dim": 32,
    "intermediate_dim": 64, "epochs": 8, "longest": 48, "batch_tokens": 512,
    "learning_rate": 1e-2, "test_pairs": 5, "num_beams": 2,
}  # fmt: skip


def run(folder: Path, **changes: object) -> tuple[dict, str]:
    return recipe.run(translate, SMALL, folder, **changes)


@pytest.fixture(scope="module")
def finished(small_parallel_corpus: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


def test_it_learns_and_translates(finished: tuple[Path, dict, str]) -> None:
    folder, metrics, output = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "translate", "model": "transformer", "backend": zoo.backends.name, "seed": 0,
        "epochs": 8, "test_pairs": 5,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["test_loss"] < metrics["unigram_test_loss"]
    assert metrics["examples_per_second"] > 0
    for name in ("", "copied_source_", "most_frequent_word_", "word_by_word_"):
        assert 0 <= metrics[f"{name}bleu"] <= 100
        assert 0 <= metrics[f"{name}chrf"] <= 100
    rows = (folder / "translations.tsv").read_text().splitlines()
    assert len(rows) == 6
    assert rows[1].split("\t")[0] in output
    assert rows[0] == "reference\tsource\ttarget\tmodel"
    assert sorted(os.listdir(folder)) == [
        "attention.png", "checkpoints", "config.json", "history.csv", "metrics.json",
        "model.json", "model.weights.h5", "perplexity.png", "translations.tsv", "vocabulary.json",
    ]  # fmt: skip


def test_a_finished_run_says_so_and_translates(
    finished: tuple[Path, dict, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics, _ = finished
    again, output = run(folder)
    assert again == metrics
    assert f"is finished: BLEU {metrics['bleu']:.1f}, chrF {metrics['chrf']:.1f}" in output
    arguments = ["--run-dir", str(folder), "--prompt", "the house", "--tokens", "12"]
    command_line.main(["generate", *arguments])
    written = capsys.readouterr().out
    assert "the house" not in written
    command_line.main(["generate", *arguments])
    assert capsys.readouterr().out == written


def test_it_goes_on_where_it_was_interrupted(
    finished: tuple[Path, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, metrics, _ = finished
    taken = recipe.interrupt_after(5, monkeypatch)
    with pytest.raises(trainer.Interrupted, match="Stopped after step 5"):
        run(tmp_path / "run")
    resumed, output = run(tmp_path / "run")
    assert "Going on after step 5 of" in output
    assert taken == list(range(1, len(taken) + 1))
    assert resumed["test_loss"] == pytest.approx(metrics["test_loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"num_heads": 3}, "divisible by `num_heads`. Received: hidden_dim=32, num_heads=3"),
        ({"vocabulary_size": 20}, "`vocabulary_size` must be above the number of different bytes"),
        ({"longest": 3}, "`longest` must leave a pair at least"),
        ({"label_smoothing": 1.0}, r"`smoothing` must lie in \[0, 1\)"),
        ({"test_pairs": 0}, "`test_pairs` must be a whole number of at least 1"),
        ({"num_beams": 0}, "`num_beams` must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments_leave_nothing(arguments: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run" / "config.json").exists()


def test_every_flag_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    recipe.help_of(Config, capsys)
    assert Config(quick=True).longest == 24
    assert Config().longest == 64
