"""Real data in the proof: the inputs and metrics of trained models, and the card's metrics."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.files.test_weights import sign
from zoo.export import export
from zoo.export.evaluation import NoTestDataError, make_evaluation
from zoo.files.runs import FinishedRun
from zoo.files.weights import CARD, PACKED, PART, WeightsFolder, open_saved
from zoo.parity import Workers
from zoo.training.run_directory import RunDirectory


def card_copy(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A weights folder whose card is changed."""
    shutil.copytree(PACKED / name, folder)
    card = json.loads((folder / CARD).read_text())
    change(card)
    sign(folder, card)
    return folder


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("gru-mnist", "300 test images of mnist"),
        ("gpt-shakespeare-subwords", "2,944 test tokens of shakespeare"),
        ("lstm-shakespeare", "2,999 test tokens of shakespeare"),
        ("transformer-eng-spa", "8 test verses of eng-spa"),
    ],
)
def test_evaluation_computes_the_metrics_of_the_card(name: str, examples: str) -> None:
    saved = open_saved(name)
    evaluation = make_evaluation(saved, whole=False)
    assert evaluation.examples == examples
    model = saved.load_model()

    def outputs(batch: list[np.ndarray]) -> list[np.ndarray]:
        names = [tensor.name for tensor in model.inputs]
        inputs = dict(zip(names, batch, strict=True)) if len(names) > 1 else batch[0]
        return [keras.ops.convert_to_numpy(model(inputs, training=False))]

    metrics = evaluation.metrics(map(outputs, evaluation.batches))
    assert isinstance(saved, WeightsFolder)
    expected = saved.card.metrics["torch"].part
    assert evaluation.card == saved.card.metrics["jax"].part
    assert "test_loss" in metrics
    # On another processor, a sum may round otherwise.
    assert metrics == pytest.approx({name: expected[name] for name in metrics}, rel=1e-3)
    assert np.isfinite(outputs(evaluation.sample)[0]).all()


@pytest.mark.once
def test_evaluation_of_a_diffusion_model_is_the_error_of_its_prediction() -> None:
    evaluation = make_evaluation(open_saved("text_to_image-mnist"), whole=False)
    image, prompt, time = evaluation.batches[0]
    assert image.shape[1:] == (28, 28, 1)
    assert prompt.shape[1:] == (7,)
    assert time.min() >= 0
    assert sum(len(batch[0]) for batch in evaluation.batches) == PART["images"]
    zeros = ([np.zeros_like(batch[0])] for batch in evaluation.batches)
    # v of images and noise has about the variance of both, and theirs mix evenly.
    assert evaluation.metrics(zeros)["squared_error"] == pytest.approx(0.95, abs=0.1)
    assert not set(evaluation.card) & {"squared_error"}


@pytest.mark.once
def test_evaluation_needs_the_test_data(tmp_path: Path) -> None:
    def rename(card: dict[str, Any]) -> None:
        card["data"]["name"] = "letters"

    for name, text in (
        ("mlp-mnist", "The test images of letters are not at hand"),
        ("lstm-shakespeare", "The test data of letters are not at hand"),
    ):
        folder = card_copy(tmp_path / name, name, rename)
        with pytest.raises(NoTestDataError, match=text):
            make_evaluation(WeightsFolder(folder), whole=False)


@pytest.mark.once
def test_evaluation_of_a_run_uses_its_data(tmp_path: Path) -> None:
    saved = open_saved("mlp-mnist")
    run = RunDirectory(tmp_path / "run", {"recipe": "mnist", "dataset": "mnist"})
    run.write_config()
    run.save_model(saved.load_model())
    run.write_metrics({"dataset": "mnist", "mean": [0.1307], "std": [0.3081]})
    evaluation = make_evaluation(FinishedRun(tmp_path / "run"), whole=False)
    assert evaluation.examples == "300 test images of mnist"
    assert evaluation.card == {}
    expected = make_evaluation(saved, whole=False)
    for one, two in zip(evaluation.batches, expected.batches, strict=True):
        np.testing.assert_array_equal(one, two)


# ------------------------------------------------------------------ proofs


@pytest.mark.parity
def test_export_compares_real_inputs_and_the_metrics_of_the_card(
    workers: Workers, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra `litert`")
    report = export("mlp-mnist", tmp_path / "mlp.litert", "litert", workers=workers)
    assert report.proven, report.failures
    assert [rung.title for rung in report.rungs] == ["file", "outputs", "metrics"]
    real = [
        row for row in report.rungs[1].rows if row.comparison == "test images of mnist, batch 17"
    ]
    assert {row.between[1] for row in real} == {"torch", "jax", "tensorflow"}
    metrics = report.rungs[2].rows
    assert [(row.comparison, row.between[1]) for row in metrics] == [
        ("test_loss", "tensorflow"), ("test_accuracy", "tensorflow"),
        ("test_loss", "card"), ("test_accuracy", "card"),
    ]  # fmt: skip
    settings = report.settings
    card = WeightsFolder(PACKED / "mlp-mnist").card.metrics["jax"].part
    assert settings["card_metrics"] == card
    assert settings["file_metrics"] == pytest.approx(card, rel=1e-3)
    assert settings["model_metrics"] == pytest.approx(card, rel=1e-3)
    assert any("on 300 test images of mnist" in note for note in report.notes)


@pytest.mark.parity
def test_export_refuses_a_file_without_the_metrics_of_the_card(
    workers: Workers, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra `litert`")

    def lower(card: dict[str, Any]) -> None:
        for metrics in card["metrics"].values():
            metrics["part"]["test_accuracy"] = 0.98

    folder = card_copy(tmp_path / "weights", "mlp-mnist", lower)
    report = export(folder, tmp_path / "mlp.litert", "litert", workers=workers.only("tensorflow"))
    assert report.exit_status == 1
    assert [rung.status for rung in report.rungs] == ["agrees", "agrees", "differs"]
    (failure,) = report.failures
    assert "test_accuracy, LiteRT and card" in failure
    assert "0.996667, and 0.98 of card" in failure
    assert not (tmp_path / "mlp.litert").exists()
