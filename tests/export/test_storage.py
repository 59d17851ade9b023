"""Weights in float16 and int8, safetensors, and weights in a file of their own."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors import safe_open

import zoo
from tests.export import faults
from tests.export.models import image_classifier
from zoo.export import export, tasks
from zoo.export.storage import store
from zoo.files import tensors
from zoo.parity import Workers


@pytest.mark.once
def test_store_rounds_to_the_nearest_level_of_each_row_or_column() -> None:
    generator = np.random.default_rng(0)
    columns = generator.normal(size=(20, 30)).astype("float32") * 10.0 ** np.arange(-15, 15)
    weights = [columns, columns.T, columns[0], np.zeros((20, 30), "float32"), np.arange(600)]
    stored = store(weights, list("abcde"), "int8")
    for number, axis in ((0, 1), (1, 0)):  # the axis along which the scales differ is found
        assert stored[number].values.dtype == np.int8
        assert np.abs(stored[number].values).max() == 127
        scale = np.abs(weights[number]).max(axis=1 - axis, keepdims=True) / 127
        np.testing.assert_allclose(stored[number].scale, scale, rtol=1e-6)
        errors = np.abs(stored[number].unpacked() - weights[number])
        assert (errors <= 0.501 * scale).all()
    for number in (2, 4):  # vectors and integers
        assert stored[number].scale is None
        np.testing.assert_array_equal(stored[number].unpacked(), weights[number])
    np.testing.assert_array_equal(stored[3].unpacked(), weights[3])
    (half,) = store([columns[:, 10:20]], ["a"], "float16")
    np.testing.assert_array_equal(half.values, columns[:, 10:20].astype("float16"))
    message = r"in which all weights are finite. Received: dtype='float16', but a has values up to"
    with pytest.raises(ValueError, match=message):
        store([columns], ["a"], "float16")


@pytest.mark.once
def test_export_rejects_types_that_a_format_cannot_store(tmp_path: Path) -> None:
    message = r"`dtype` must be float32 or float16 for the format safetensors.*dtype='int8'"
    with pytest.raises(ValueError, match=message):
        export("mlp", tmp_path / "mlp", "safetensors", dtype="int8")
    with pytest.raises(ValueError, match=r"`dtype` must be .*Received: dtype='int4'"):
        export("mlp", tmp_path / "mlp", "safetensors", dtype="int4")  # type: ignore[arg-type]
    message = r"`dtype` must be float32 or float16 for the generation with litert.*dtype='int8'"
    with pytest.raises((ValueError, ImportError), match=f"{message}|Install with"):
        zoo.export.export_generation("gpt", tmp_path / "gpt", "litert", dtype="int8")
    with pytest.raises(ValueError, match=r"`format` must be one that computes.*safetensors"):
        zoo.export.export_generation("gpt", tmp_path / "gpt", "safetensors")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("format_name", "dtype", "share", "change"),
    [
        ("onnx", "int8", 0.27, 1e-2),
        ("saved_model", "float16", 0.55, 1e-3),
        ("litert", "int8", 0.27, 0.05),
        ("pt2", "int8", 0.6, 1e-2),
        ("stablehlo", "float16", 0.55, 1e-3),
    ],
)
def test_export_with_rounded_weights(
    format_name: str, dtype: Any, share: float, change: float, workers: Workers, tmp_path: Path
) -> None:
    for package in zoo.export.FORMATS[format_name].packages:
        pytest.importorskip(package)
    one = workers.only(zoo.export.FORMATS[format_name].backend)
    report = export("mlp-mnist", tmp_path / "mlp", format_name, dtype=dtype, workers=one)
    assert report.proven, report.failures
    assert report.settings["bytes"] < share * 4 * 407_050
    by_format = (format_name, dtype) == ("litert", "int8")
    titles = ["file", "outputs", *(["change"] if not by_format else []), "metrics"]
    assert [rung.title for rung in report.rungs] == titles
    distances = [row.distance for row in report.rungs[1].rows if row.distance is not None]
    assert max(distances) < (change if by_format else 1e-5)
    rounded = report.rungs[1 if by_format else 2].rows
    assert 1e-5 < max(row.distance for row in rounded if row.distance is not None) < change
    metrics = report.settings
    assert metrics["file_metrics"]["test_accuracy"] >= 0.99
    assert metrics["file_metrics"] != metrics["model_metrics"]


@pytest.mark.parity
def test_export_refuses_a_larger_change_than_the_tolerance(
    workers: Workers, tmp_path: Path
) -> None:
    report = export(
        "mlp-mnist", tmp_path / "mlp", "pt2", dtype="int8", tolerance=1e-4,
        workers=workers.only("torch"),
    )  # fmt: skip
    assert [rung.status for rung in report.rungs] == ["agrees", "agrees", "differs", "differs"]
    assert report.exit_status == 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ safetensors


@pytest.mark.once
def test_safetensors_file_holds_weights_and_card(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "mlp.safetensors"
    report = export("mlp-mnist", path, "safetensors", workers=workers.only(zoo.backends.name))
    assert report.proven, report.failures
    (row,) = report.rungs[1].rows
    assert (row.comparison, row.distance, row.tolerance) == ("4 weights", 0, 0)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {
            f"{x}/{y}" for x in ("hidden1", "output") for y in ("kernel", "bias")
        }
    assert json.loads(metadata["card"])["builder"] == metadata["builder"] == "mlp"
    model = zoo.registry.get("mlp").build(**json.loads(metadata["arguments"]), seed=3)
    tensors.load_weights(model, path)
    for one, two in zip(model.get_weights(), zoo.mlp(weights="mnist").get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.once
def test_safetensors_file_with_other_weights_is_refused(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "write", faults.one_weight_moved)
    one = workers.only(zoo.backends.name)
    report = export(image_classifier(), tmp_path / "net", "safetensors", workers=one)
    assert report.exit_status == 1
    assert "at conv/bias" in report.failures[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_save_weights_needs_different_paths() -> None:
    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (keras.layers.Dense(4, name="dense") for _ in range(2))

        def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
            return self.second(self.first(x))

    model = Net(name="net")
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match=r"two weights with the path net/dense/kernel\."):
        tensors.save_weights(model, "float32")


# ------------------------------------------------------------------ ONNX files in two


@pytest.mark.parity
def test_large_onnx_model_has_a_second_file_that_moves_along(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(tasks, "write", faults.onnx_in_two_files)
    path = tmp_path / "net.onnx"
    report = export(image_classifier(), path, "onnx", workers=workers.only("torch"))
    assert report.proven, report.failures
    weights = tmp_path / "net.onnx.data"
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, weights.name}
    assert report.settings["bytes"] == path.stat().st_size + weights.stat().st_size
    import onnx

    onnx.checker.check_model(path, full_check=True)
    locations = [
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    assert set(locations) == {weights.name}
