"""Weights in float16 and int8, safetensors, and weights in a file of their own."""

import json
from pathlib import Path

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
    factors = 4.0 ** (np.arange(30) % 3)
    columns = (generator.normal(size=(200, 30)) * factors).astype("float32")
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
    (half,) = store([columns], ["a"], "float16")
    np.testing.assert_array_equal(half.values, columns.astype("float16"))
    message = r"in which all weights are finite. Received: dtype='float16', but a has values up to"
    with pytest.raises(ValueError, match=message):
        store([columns * 1e4], ["a"], "float16")


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
@pytest.mark.parametrize(("format_name", "share"), [("onnx", 0.27), ("litert", 0.27)])
def test_export_in_int8_has_a_quarter_of_the_bytes_and_the_metrics(
    format_name: str, share: float, workers: Workers, tmp_path: Path
) -> None:
    entry = zoo.export.FORMATS[format_name]
    for package in entry.packages:
        pytest.importorskip(package)
    one = workers.only(entry.backend)
    report = export("mlp-mnist", tmp_path / "mlp", format_name, dtype="int8", workers=one)
    assert report.proven, report.failures
    assert report.settings["bytes"] < share * 4 * 407_050
    rungs = {rung.title: [row.distance or 0 for row in rung.rows] for rung in report.rungs}
    if entry.rounds_activations:
        assert list(rungs) == ["file", "outputs", "metrics"]
        assert 1e-3 < max(rungs["outputs"]) < 3e-2
    else:
        assert list(rungs) == ["file", "outputs", "change", "metrics"]
        assert max(rungs["outputs"]) < 1e-5
        assert 1e-3 < max(rungs["change"]) < 3e-2
    assert 1e-5 < max(rungs["metrics"]) < 1e-2
    assert report.settings["file_metrics"]["test_accuracy"] >= 0.99


@pytest.mark.parity
@pytest.mark.parametrize("format_name", ["saved_model", "stablehlo", "litert"])
def test_export_in_float16_states_the_change(
    format_name: str, workers: Workers, tmp_path: Path
) -> None:
    entry = zoo.export.FORMATS[format_name]
    for package in entry.packages:
        pytest.importorskip(package)
    model, one = zoo.mlp((8,), 3, (200,)), workers.only(entry.backend)
    sizes, rungs = [], []
    for dtype in ("float32", "float16"):
        report = export(model, tmp_path / dtype, format_name, dtype=dtype, workers=one)
        assert report.proven, report.failures
        sizes.append(report.settings["bytes"])
        rungs.append(
            {rung.title: [row.distance or 0 for row in rung.rows] for rung in report.rungs}
        )
    assert sizes[0] - sizes[1] > 1.5 * model.count_params()
    assert list(rungs[0]) == ["file", "outputs"]
    assert list(rungs[1]) == ["file", "outputs", "change"]
    assert max(rungs[1]["outputs"]) < 1e-5
    assert 1e-5 < max(rungs[1]["change"]) < 1e-3


@pytest.mark.parity
def test_export_refuses_a_larger_change_than_the_tolerance(
    workers: Workers, tmp_path: Path
) -> None:
    report = export(
        zoo.mlp((8,), 3, (200,)), tmp_path / "mlp", "saved_model", dtype="int8", tolerance=1e-4,
        workers=workers.only("tensorflow"),
    )  # fmt: skip
    assert [rung.status for rung in report.rungs] == ["agrees", "agrees", "differs"]
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
    model = zoo.registry.get("mlp").build(**{**json.loads(metadata["arguments"]), "seed": 3})
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
            super().__init__(name="net")
            self.first, self.second = (keras.layers.Dense(4, name="dense") for _ in range(2))

        def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
            return self.second(self.first(x))

    model = Net()
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
