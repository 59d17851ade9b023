"""The README: its code runs, its tables match results/, and the files that it names exist."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import zoo
from benchmarks import results
from zoo.interop import pytorch

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.once
def test_readme_tables_match_the_results() -> None:
    assert results.with_tables(README) == README


@pytest.mark.once
def test_mnist_results_reach_the_promised_accuracy() -> None:
    """The accuracies of each backend, on every machine."""
    runs = [run for run, _ in results.runs("mnist") if run["dataset"] == "mnist"]

    def scores(model: str, images: int, epochs: int) -> list[float]:
        """Test accuracies after the first epochs, of runs that are as long or longer."""
        matching = [
            run
            for run in runs
            if (run["model"], run["train_examples"]) == (model, images) and run["epochs"] >= epochs
        ]
        assert {run["backend"] for run in matching} == set(zoo.backends.NAMES)
        return [run["history"][epochs - 1]["val_accuracy"] for run in matching]

    assert all(run["parameters"] == 9_536_074 for run in runs if run["model"] == "cnn_48x48")
    assert min(scores("cnn_48x48", 60_000, 1)) >= 0.983
    quick = scores("cnn_48x48", 12_800, 1)
    assert min(quick) >= 0.96
    assert max(quick) - min(quick) <= 0.01
    for model in ("mlp", "lstm", "gru"):
        assert min(scores(model, 12_800, 3)) >= 0.94
    assert min(scores("simple_rnn", 12_800, 3)) >= 0.88
    assert min(scores("mlp", 60_000, 5)) >= 0.975


@pytest.mark.once
def test_next_word_results_are_better_than_bigrams() -> None:
    """The full setting beats bigrams, and the quick setting beats unigrams by far."""
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


@pytest.mark.once
def test_shakespeare_results_reach_the_loss_of_nanogpt() -> None:
    """1.891 nats is the loss of benchmarks/nanogpt.py, the same setting in plain PyTorch."""
    losses = {
        run["backend"]: run["validation_loss"]
        for run, _ in results.runs("shakespeare")
        if run["settings"]["split"] == "first_90" and run["steps"] == 2000
    }
    assert set(losses) == set(zoo.backends.NAMES)
    assert max(losses.values()) <= 1.02 * 1.891


@pytest.mark.once
def test_translation_results_are_better_than_the_baselines() -> None:
    full = [run for run, _ in results.runs("translate") if run["settings"]["max_length"] == 64]
    assert full
    for run in full:
        assert run["test_loss"] < run["unigram_test_loss"] - 2
        assert run["wall_seconds"] < 60 * 60
        assert run["test_pairs"] == 464
        for metric in ("bleu", "chrf"):
            for name in ("copied_source", "most_frequent_word"):
                assert run[metric] > run[f"{name}_{metric}"]


@pytest.mark.once
def test_text_to_image_results_show_their_prompts() -> None:
    """Most samples of the quick setting on each backend, and nearly all of the full setting."""
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
        excess, noise_excess = (
            run[f"frechet_{name}"] - run["frechet_real"] for name in ("distance", "noise")
        )
        assert 10 * excess <= noise_excess
    for run in runs:
        assert run["intra_class_diversity"] >= 0.5


@pytest.mark.once
def test_accuracies_of_backends_are_equivalent() -> None:
    """Five seeds for each backend, within half a point."""
    models = json.loads((ROOT / "results" / "accuracy.json").read_text())
    assert set(models) == {"cnn_48x48", "lstm", "mlp"}
    for result in models.values():
        assert result["margin"] == 0.005
        assert {len(seeds) for seeds in result["test_accuracy"].values()} == {5}
        for pair in result["pairs"]:
            assert pair["equivalent"]


@pytest.mark.slow
def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytorch.save(zoo.cnn_48x48(10), "my_net.safetensors")
    x, y = np.zeros((4, 48, 48, 1), np.uint8), np.arange(4)
    names: dict[str, Any] = {
        "images": np.zeros((4, 48, 48, 3), np.float32),
        "labels": y,
        **{"x_train": x, "y_train": y, "x_test": x, "y_test": y},
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "def test_" not in block]  # tests/parity runs those
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["model"].built
    history = names["history"].history
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history)
    assert len(history["loss"]) == 5
    assert list(Path("checkpoints").iterdir())
    assert keras.models.load_model("network.keras").count_params() == 9_536_074


@pytest.mark.once
def test_texts_advise_packages_that_an_index_has() -> None:
    """The package itself may not be on an index: a clone installs its extras with `pip -e`."""
    files = [ROOT / "README.md", *(ROOT / "zoo").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    texts = {path: path.read_text("utf-8") for path in files}
    assert any("`pip install jax`" in text for text in texts.values())
    for path, text in texts.items():
        assert not re.search(r"pip install[^`]*keras-zoo", text), path


@pytest.mark.once
def test_readme_names_existing_files() -> None:
    names = re.findall(r"\b((?:tests|recipes|benchmarks|zoo|results)/[\w/.]+\.\w+)", README)
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.once
def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"```\n(python3 -m venv .*?)\n```", README)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.once
def test_readme_commands_have_existing_recipes_and_flags(in_process: Run) -> None:
    """Checks `zoo COMMAND --FLAG` in code blocks and tables against the help texts."""
    names = "train|classify|generate|next-word|translate|draw|weights|card|check|show|list"
    commands = re.findall(rf"\bzoo ((?:{names})\b[^`#\n]*)", README)
    assert len(commands) > 20
    for command in commands:
        words = command.split()
        if words[0] == "train" and words[1].startswith("-"):
            continue
        positional = 2 if words[0] in ("train", "show") else 1
        if words[1:2] == ["finetune_llm"]:  # imports KerasHub, an optional dependency
            continue
        result = in_process("zoo", *words[:positional], "--help")
        assert result.returncode == 0, command
        for flag in re.findall(r"--[a-z-]+", command):
            assert flag in result.stdout, command
