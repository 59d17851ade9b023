"""The README says what is so: its code runs, its tables are those of results/, its files exist."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import zoo
from benchmarks import results
from zoo.interop import pytorch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tables_are_made_from_the_results() -> None:
    assert results.with_tables(README) == README


def test_the_results_reach_what_is_promised() -> None:
    """On each backend, on every machine that ran them."""
    runs = [run for run, _ in results.runs("mnist")]

    def scores(model: str, images: int, epochs: int) -> list[float]:
        """After the first epochs, of runs as long or longer."""
        chosen = [
            run
            for run in runs
            if (run["model"], run["train_examples"]) == (model, images) and run["epochs"] >= epochs
        ]
        assert {run["backend"] for run in chosen} == set(zoo.backends.NAMES)
        return [run["history"][epochs - 1]["test_accuracy"] for run in chosen]

    assert all(run["parameters"] == 9_536_074 for run in runs if run["model"] == "cnn_48x48")
    assert min(scores("cnn_48x48", 60_000, 1)) >= 0.983
    quick = scores("cnn_48x48", 12_800, 1)
    assert min(quick) >= 0.96
    assert max(quick) - min(quick) <= 0.01
    for model in ("mlp", "lstm", "gru"):
        assert min(scores(model, 12_800, 3)) >= 0.94
    assert min(scores("simple_rnn", 12_800, 3)) >= 0.88
    assert min(scores("mlp", 60_000, 5)) >= 0.975


def test_words_are_predicted_better_than_by_bigrams() -> None:
    """With the full setting; with the quick one far better than by single tokens' frequencies."""
    runs = [run for run, _ in results.runs("next_word")]
    full = [run for run in runs if run["epochs"] > 1]
    assert {run["cell"] for run in full} >= {"lstm", "gru"}
    for run in full:
        assert run["test_perplexity"] < run["bigram_test_perplexity"]
        assert run["wall_seconds"] < 40 * 60
    quick = [run for run in runs if run["epochs"] == 1]
    assert {run["backend"] for run in quick} == set(zoo.backends.NAMES)
    for run in quick:
        assert run["test_perplexity"] < run["unigram_test_perplexity"] / 4
        assert run["wall_seconds"] < 6 * 60


def test_the_gpt_reaches_the_loss_of_a_plain_one() -> None:
    """1.891 nats is what benchmarks/nanogpt.py, the same setting in plain PyTorch, ended at."""
    found = {
        run["backend"]: run["validation_loss"]
        for run, _ in results.runs("shakespeare")
        if run["settings"]["split"] == "first_90" and run["settings"]["steps"] == 2000
    }
    assert set(found) == set(zoo.backends.NAMES)
    assert max(found.values()) <= 1.02 * 1.891


def test_translations_are_better_than_those_of_who_knows_nothing() -> None:
    full = [run for run, _ in results.runs("translate") if run["settings"]["longest"] == 64]
    assert full
    for run in full:
        assert run["test_loss"] < run["unigram_test_loss"] - 2
        assert run["wall_seconds"] < 60 * 60
        assert run["test_pairs"] == 464
        for metric in ("bleu", "chrf"):
            for name in ("copied_source", "most_frequent_word"):
                assert run[metric] > run[f"{name}_{metric}"]


def test_pictures_are_what_was_asked_for() -> None:
    """With the quick setting on each backend; with the full one nearly all, and close to real."""
    runs = [run for run, _ in results.runs("text_to_image")]
    quick = [run for run in runs if run["train_examples"] == 6400]
    assert {run["backend"] for run in quick} == set(zoo.backends.NAMES)
    for run in quick:
        assert run["samples"] == 200
        assert run["prompt_accuracy"] >= 0.8
        assert run["wall_seconds"] + run["drawing_seconds"] < 10 * 60
    full = [run for run in runs if run["train_examples"] == 60_000]
    assert full
    for run in full:
        assert run["samples"] == 1000
        assert run["prompt_accuracy"] >= 0.95
        beyond = {
            name: run[f"frechet_{name}"] - run["frechet_real"] for name in ("distance", "noise")
        }
        assert 10 * beyond["distance"] <= beyond["noise"]
    for run in runs:
        assert run["intra_class_diversity"] >= 0.5


def test_diffusion_is_as_fast_as_promised() -> None:
    """Against the same network in PyTorch, in one run."""
    measured = [m["diffusion_speed"] for m in results.machines() if "diffusion_speed" in m]
    assert measured
    for figures in (tasks[task] for tasks in measured for task in ("train", "sample")):
        for name in zoo.backends.NAMES:
            assert figures[f"zoo {name}"]["ratio"] >= 0.8
        compiled = max(
            (figures[f"zoo {name}"] for name in ("tensorflow", "jax")), key=lambda one: one["ratio"]
        )
        # As far as the steps of one run can tell.
        for one in (figures["zoo torch"], compiled):
            assert one["ratio_quartiles"][1] >= 1


def test_the_gpt_is_as_fast_as_promised() -> None:
    """Against Hugging Face's on PyTorch, in one run."""
    measured = [m["gpt_speed"] for m in results.machines() if "gpt_speed" in m]
    assert measured
    for tasks in measured:
        ratios = {name: found["ratio"] for name, found in tasks["generate"].items()}
        assert ratios["zoo jax"] > 1.5
        assert ratios["zoo tensorflow"] > 1.3  # see the README's limits
        assert ratios["zoo torch"] > 1.2
        for name in zoo.backends.NAMES:
            assert tasks["train"][f"zoo {name}"]["ratio"] > 1


def test_recurrent_steps_are_as_fast_as_promised() -> None:
    """On PyTorch within 1.1 times PyTorch's own; on the others no slower than stock Keras."""
    measured = [m["recurrent_step"] for m in results.machines() if "recurrent_step" in m]
    assert measured
    for cells in measured:
        assert cells.keys() >= {"lstm", "gru"}
        for found in cells.values():
            assert found["zoo torch"]["ratio"] > 1 / 1.1
            for name in ("jax", "tensorflow"):
                assert found[f"zoo {name}"]["seconds"] < found[f"stock {name}"]["seconds"]


def test_accuracies_are_equivalent() -> None:
    """Five seeds a backend, within half a point."""
    found = json.loads((ROOT / "results" / "accuracy.json").read_text())
    assert set(found) == {"cnn_48x48", "lstm", "mlp"}
    for about in found.values():
        assert about["margin"] == 0.005
        assert {len(seeds) for seeds in about["test_accuracy"].values()} == {5}
        for pair in about["pairs"]:
            assert pair["equivalent"]


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytorch.save(zoo.cnn_48x48(10), "my_net.safetensors")
    names = {
        "images": np.zeros((4, 48, 48, 3), np.float32),
        "labels": np.array([0, 1, 2, 3]),
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "def test_" not in block]  # tests/parity runs those
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["model"].built


def test_the_files_it_names_exist() -> None:
    names = re.findall(r"\b((?:tests|recipes|benchmarks|zoo|results)/[\w/.]+\.\w+)", README)
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists(), name


def test_ci_runs_its_test_command() -> None:
    commands = re.findall(r"```\n(python3 -m venv .*?)\n```", README)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
