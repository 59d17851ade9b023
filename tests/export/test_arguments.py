"""Arguments that an export refuses before any work, and code that is traced for files."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import zoo
from zoo.backends import backend
from zoo.backends.exporting import Axes, Graph, exporting, is_exporting
from zoo.export import ExportReport, export, formats
from zoo.export.formats import Format
from zoo.export.proof import relative_distance
from zoo.layers.recurrent import LAYERS
from zoo.parity.report import Row, RungReport, read_json

MODELS = "tests.export.models"


def own_format() -> Format:
    """A format that this environment can write."""
    entries = formats.FORMATS.values()
    return next(f for f in entries if f.backend == zoo.backends.name and not f.packages)


def test_export_rejects_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`format` must be one of onnx, .*Received: format='h5'"):
        export("mlp", tmp_path / "mlp", "h5")


@pytest.mark.once
def test_export_names_missing_packages(tmp_path: Path) -> None:
    if importlib.util.find_spec("jax"):
        pytest.skip("JAX is installed")
    message = r"Received: format='stablehlo', which needs jax\. Install with `pip install jax`, or"
    with pytest.raises(ImportError, match=message):
        export("mlp", tmp_path / "mlp", "stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (3, None, r"`model` must be an instance of Model or a name or a path. Received: model=3"),
        ("mpl", None, r"`model` must be one of mlp, .*mlp-mnist.*Received: model='mpl'"),
        ("mlp-mnist", {"seed": 1}, r"`arguments` must not be given for a trained model"),
        (f"{MODELS}:fixed_batch", None, r"`model` must take batches of any size"),
    ],
)
def test_export_rejects_models(
    model: Any,
    arguments: dict[str, Any] | None,
    message: str,
    tmp_path: Path,
) -> None:
    entry = own_format()
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "file", entry.name, arguments=arguments)
    assert not list(tmp_path.iterdir())


def test_export_keeps_directories_that_hold_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    entry = own_format()
    with pytest.raises(ValueError, match=r"`path` must not be a directory that holds files"):
        export("mlp", tmp_path, entry.name)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_recurrent_layers_traced_for_files_agree(cell: str, masked: bool) -> None:
    layer = LAYERS[cell](5, return_sequences=True, return_state=True)
    inputs = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    mask = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    arrays = (inputs, mask) if masked else (inputs,)
    expected = layer(inputs, mask=keras.ops.convert_to_tensor(mask) if masked else None)

    def call(inputs: Any, mask: Any = None) -> Any:
        assert is_exporting()
        return layer(inputs, mask=mask)

    with exporting():
        tensors = map(keras.ops.convert_to_tensor, arrays)
        traced = backend.inference_function(layer, call)(*tensors)
    assert not is_exporting()
    for x, y in zip(traced, expected, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(y), atol=1e-6
        )


@pytest.mark.parametrize("model", ["gpt", "cnn_48x48"])
def test_models_traced_for_files_agree(model: str) -> None:
    name, arguments = next(iter(zoo.registry.examples(model).items()))
    built = zoo.registry.get(model).build(**arguments)
    shape = [2, *(7 if size is None else size for size in built.input_shape[1:])]
    inputs = np.random.default_rng(0).integers(0, 5, shape).astype(built.inputs[0].dtype)
    expected = keras.ops.convert_to_numpy(built(inputs, training=False))
    with exporting():
        traced = keras.ops.convert_to_numpy(built(inputs, training=False))
    assert relative_distance(traced, expected) < 1e-6, name


def test_graph_traces_with_sizes_of_their_own_within_the_limits() -> None:
    inputs = {"ids": Axes("int32", ("batch", "length")), "image": Axes("float32", ("batch", 8))}
    graph = Graph(None, lambda *_: [], inputs, ("output",), {"length": 2})
    assert graph.axes == ["batch", "length"]
    assert [array.shape for array in graph.example()] == [(20, 2), (20, 8)]


def test_relative_distance_finds_numbers_that_are_not_finite() -> None:
    assert relative_distance(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0
    assert relative_distance(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == np.inf
    assert relative_distance(np.array([2.0, 3.9]), np.array([2.0, 4.0])) == pytest.approx(0.025)


@pytest.mark.once
def test_export_command_refuses_before_any_work(
    in_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = str(tmp_path / "model")
    arguments = ("export", "mlp", "--format", "pt2", "--out", out)
    result = in_process("zoo", *arguments, "--arguments", "[1]")
    assert result.returncode == 2
    assert "`arguments` must be a JSON object" in result.stderr
    result = in_process("zoo", *arguments, "--backends", "numpy")
    assert result.returncode == 2
    assert "`backends` must be among those installed here" in result.stderr
    result = in_process("zoo", "export", "--help")
    assert result.returncode == 0
    for format_name in formats.FORMATS:
        assert format_name in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.once
@pytest.mark.slow
def test_export_command_writes_file_and_reports(
    in_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    path = tmp_path / "files" / "mlp.pt2"
    result = in_process(
        "zoo", "export", "mlp-mnist", "--format", "pt2", "--out", str(path), "--backends", "torch",
        "--json", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "mlp-mnist: exported and proven" in result.stdout
    assert [entry.name for entry in path.parent.iterdir()] == ["mlp.pt2"]
    (report,) = read_json(tmp_path / "report.json")
    assert report.settings["format"] == "pt2"
    assert "<h1>Export</h1>" in (tmp_path / "report.html").read_text()


def test_report_of_a_proof_that_compared_nothing_is_no_proof() -> None:
    file = RungReport(1, "file", "", (Row("export", ("torch",), "", "agrees"),))
    refused = Row("batch 1", ("PyTorch", "torch"), "float32", "ruled out")
    agreeing = Row("batch 3", ("PyTorch", "torch"), "float32", "agrees", 0.0, 1e-5)
    for rows, status in (((refused,), 2), ((), 2), ((refused, agreeing), 0)):
        rungs = file, RungReport(2, "outputs", "", rows)
        report = ExportReport("model", {}, {}, (), rungs)
        assert report.exit_status == status
        assert report.proven == (status == 0)
