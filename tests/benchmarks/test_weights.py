"""Packing a run into a weights folder, and its card."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from benchmarks import weights
from recipes import mnist
from tests import recipe
from zoo.files.weights import CARD, WeightsFolder

# Once, and not in PyTorch's environment, whose tests end last.
pytestmark = pytest.mark.skipif(zoo.backends.name != "jax", reason="tested on JAX")

SETTINGS = {"model": "mlp", "train_examples": 640, "epochs": 1, "schedule": "cosine"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    return folder, recipe.run(mnist, SETTINGS, folder)[0]


def test_pack_writes_what_the_run_is_and_measures_what_is_stored(
    finished: tuple[Path, dict], tmp_path: Path
) -> None:
    folder, metrics = finished
    card = weights.pack(
        folder, "mlp-small", "two cores", ["small"], "float16", "1234", into=tmp_path
    )
    assert (card.builder, card.parameters, card.storage_dtype) == ("mlp", 407_050, "float16")
    assert card.arguments["hidden_units"] == [512]
    assert card.training.command == (
        "python recipes/mnist.py --model mlp --epochs 1 --train-examples 640 --schedule cosine"
    )
    assert card.training.backend == f"{zoo.backends.name} {metrics['backend_version']}"
    assert (card.training.commit, card.training.machine) == ("1234", "two cores")
    assert card.normalization is not None
    assert (card.normalization.mean, card.normalization.std) == ([0.1307], [0.3081])
    assert card.labels == list("0123456789")
    assert card.limits == ["small"]
    measured = card.metrics[zoo.backends.name]
    for name in ("test_loss", "test_accuracy"):
        assert measured.whole[name] == pytest.approx(metrics[name], abs=1e-3)
    WeightsFolder(tmp_path / "mlp-small").verify()
    image = np.zeros((28, 28), np.uint8)
    expected = dict(zoo.load(folder).classify(image, 10))
    assert dict(zoo.load(tmp_path / "mlp-small").classify(image, 10)) == pytest.approx(
        expected, abs=1e-3
    )


def test_evaluate_adds_the_metrics_of_another_backend(
    finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights.pack(finished[0], "mlp-small", "two cores", into=tmp_path, commit="1234")
    other = next(name for name in zoo.backends.NAMES if name != zoo.backends.name)
    monkeypatch.setattr(weights.backends, "name", other)
    card = weights.evaluate("mlp-small", into=tmp_path)
    assert list(card.metrics) == sorted([zoo.backends.name, *first.metrics])
    assert card.metrics[other] == next(iter(first.metrics.values()))
    assert card.files == first.files


def test_pack_refuses_float16_that_changes_a_metric(
    finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((finished[0] / "metrics.json").read_text())
    changed = {**content, "test_accuracy": content["test_accuracy"] + 0.001}
    read: Any = weights.FinishedRun.read
    monkeypatch.setattr(
        weights.FinishedRun, "read",
        lambda self, name, schema: changed if name == "metrics.json" else read(self, name, schema),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"`storage_dtype` must leave the metrics .*test_accuracy"):
        weights.pack(finished[0], "mlp-small", "m", None, "float16", "1234", into=tmp_path)
    assert not (tmp_path / "mlp-small" / CARD).exists()
    with pytest.raises(ValueError, match=r"`run_dir` must hold a finished run"):
        weights.pack(tmp_path, "mlp-small", "m", into=tmp_path)


def test_train_runs_the_command_of_the_card_and_compares(
    finished: tuple[Path, dict], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card = weights.pack(finished[0], "mlp-small", "two cores", into=tmp_path, commit="1234")
    weights.train(str(tmp_path / "mlp-small"), tmp_path / "again")
    output = capfd.readouterr().out
    accuracy = f"{finished[1]['test_accuracy']:.4f}"
    assert f"test_accuracy: {accuracy}, in the card {accuracy} ({zoo.backends.name})" in output
    again = (tmp_path / "again" / "model.weights.h5").stat().st_size
    assert again > 4 * card.parameters


def test_measure_writes_what_loading_takes(tmp_path: Path) -> None:
    weights.measure(["mlp-mnist"], tmp_path / "weights.json")
    results = json.loads((tmp_path / "weights.json").read_text())
    assert results["wheel_bytes"] > 1e6
    assert set(results["weights"]) == {"mlp-mnist"}
    assert 0 < results["weights"]["mlp-mnist"]["load_seconds"] < 60


def test_train_rejects_what_has_no_card(finished: tuple[Path, dict], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`name` must be that of weights with a card"):
        weights.train(str(finished[0]), tmp_path)
