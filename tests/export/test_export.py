"""Exports of models on several backends, and faulty files, which the proof must refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export import faults, models
from zoo import registry
from zoo.export import FORMATS, ExportReport, export, tasks
from zoo.parity import Workers, html
from zoo.parity.report import read_json, write_json

MODELS = "tests.export.models"

pytestmark = pytest.mark.parity


@pytest.fixture
def onnx() -> Any:
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    return pytest.importorskip("onnx")


def assert_proven(report: ExportReport, path: Path, backends: int = 3) -> None:
    assert report.proven, report.failures
    assert path.exists()
    assert report.verdict == "exported and proven"
    assert len(report.rungs[1].rows) == 3 * backends
    assert all(row.status == "agrees" for row in report.rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "format_name", "arguments"),
    [
        ("rnn_classifier/lstm", "onnx",
         {"units": 4, "input_shape": [None, 3], "bidirectional": True, "mask": True}),
        ("transformer", "onnx", {"num_layers": 1}),
        ("gpt", "saved_model", {"num_layers": 1}),
        ("rnn_language_model/simple_rnn", "litert", {}),
        ("gpt", "litert", {"num_layers": 1}),
        ("gpt/llama", "pt2", {"num_layers": 1}),
        ("unet", "stablehlo", {"channels": [8]}),
    ],
)  # fmt: skip
def test_export_proves_models_of_the_zoo(
    model: str, format_name: str, arguments: dict[str, Any], workers: Workers, tmp_path: Path
) -> None:
    for package in FORMATS[format_name].packages:
        pytest.importorskip(package, reason=f"needs the extra `{FORMATS[format_name].extra}`")
    path = tmp_path / "model"
    report = export(model, path, format_name, arguments=arguments, workers=workers)
    assert_proven(report, path)
    has_metadata_beside = not FORMATS[format_name].holds_metadata
    assert {p.name for p in tmp_path.iterdir()} == {"model"} | (
        {"model.json"} if has_metadata_beside else set()
    )
    if has_metadata_beside:
        metadata = json.loads((tmp_path / "model.json").read_text())
        assert metadata["builder"] == model.partition("/")[0]


@pytest.mark.slow
def test_export_of_a_model_with_two_inputs(onnx: Any, workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    report = export(f"{MODELS}:two_inputs", path, "onnx", workers=workers)
    assert_proven(report, path)
    graph = onnx.load(path).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert shapes == {"image": ["batch", 8, 8, 3], "steps": ["batch", "length", 4]}
    assert [value.name for value in graph.output] == ["label", "score"]
    write_json([report], tmp_path / "report.json")
    (read,) = read_json(tmp_path / "report.json")
    assert read.rungs == report.rungs
    assert "exported and proven" in html.page([report], "Export")
    settings = report.settings
    assert settings["bytes"] == path.stat().st_size
    assert set(settings["file_seconds"]) == set(settings["model_seconds"]) == {"1", "32"}
    assert all(seconds > 0 for seconds in settings["file_seconds"].values())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_export_of_models_that_another_backend_created(
    backend: str, onnx: Any, workers: Workers, tmp_path: Path
) -> None:
    """MobileNetV2 and a model with two inputs leave from the process that has made them."""
    reports = workers[backend](models.export_from_here, tmp_path)
    assert len(reports) == 2
    for report in reports:
        assert report.settings["starting_backend"] == backend
        assert_proven(report, tmp_path / f"{report.model}.onnx", 1)
        metadata = onnx.load(tmp_path / f"{report.model}.onnx").metadata_props
        assert {entry.key: entry.value for entry in metadata}["model"] == report.model


@pytest.mark.slow
def test_export_of_mobilenet(onnx: Any, workers: Workers, tmp_path: Path) -> None:
    path, one = tmp_path / "net.onnx", workers.only("torch")
    report = export(models.mobilenet(), path, "onnx", workers=one)
    assert_proven(report, path, 1)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["keras"] == report.environments["torch"]["keras_version"]


@pytest.mark.parametrize(
    ("fault", "model", "reason"),
    [
        (faults.time_frozen, "gru", "INVALID_ARGUMENT"),
        (faults.batch_frozen, "gru", "INVALID_ARGUMENT"),
        (faults.bias_in_wrong_gate, "gru", "distance"),
        (faults.channels_swapped, "image_classifier", "distance"),
        (faults.other_seed, "image_classifier", "distance"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_proof_refuses_faulty_files(
    fault: Callable[..., None],
    model: str,
    reason: str,
    onnx: Any,
    workers: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "write", fault)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier file")
    report = export(f"{MODELS}:{model}", path, "onnx", workers=workers.only("torch"))
    assert report.exit_status == 1
    assert report.verdict == "not exported: the file differs from the model"
    assert reason in report.failures[0]
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"an earlier file"


def test_export_reports_what_a_format_cannot_hold(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    report = export(f"{MODELS}:value_dependent", path, "pt2", workers=workers.only("torch"))
    assert report.exit_status == 2
    assert report.verdict == "not exported: the proof could not be made"
    assert "rung 1 (file): export, torch: failed" in report.failures[0]
    assert "SignOfSum" in report.failures[0]
    assert not list(tmp_path.iterdir())


def test_source_of_trained_weights_has_their_card(tmp_path: Path) -> None:
    from zoo.export.source import describe

    source = describe("mlp-mnist", None, None, None, tmp_path, FORMATS["onnx"])
    assert json.loads(source.metadata["card"])["builder"] == source.metadata["builder"] == "mlp"
    graph = source.graph()
    trained = registry.get("mlp").build(weights="mnist")
    for weight, expected in zip(graph.model.get_weights(), trained.get_weights()):
        np.testing.assert_array_equal(weight, expected)
