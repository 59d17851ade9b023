"""Tests of files of arrays: damaged and malicious ones are refused before anything is allocated."""

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from benchmarks.hardship import sign
from tests.files.conftest import digests
from zoo import mlp, registry, rnn_language_model
from zoo.files import arrays
from zoo.files.runs import load_model
from zoo.training import checkpoints
from zoo.training.callbacks import TrainingState

LIMIT = 1 << 25  # bytes that a refused file may take


@pytest.fixture
def model() -> keras.Model:
    return mlp((4,), 2, (3,))


@pytest.mark.parametrize("name", ["gpt", "rnn_language_model", "unet"])
def test_load_weights_restores_bfloat16(name: str, tmp_path: Path) -> None:
    """HDF5 stores it in a type of its own."""
    entry = registry.get(name)
    arguments, build = next(iter(entry.examples.values())), entry.build
    model, other = (build(**{**arguments, "dtype": "bfloat16", "seed": seed}) for seed in (0, 1))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    arrays.load_weights(other, path)
    for one, two in zip(model.variables, other.variables):
        values = (keras.ops.cast(variable.value, "float32") for variable in (one, two))
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, values))
    model.weights[0].assign(keras.ops.full(model.weights[0].shape, float("inf"), "bfloat16"))
    model.save_weights(path)
    with pytest.raises(ValueError, match="must hold finite numbers"):
        arrays.load_weights(other, path)


@pytest.mark.once
def test_load_weights_restores_a_stateful_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {"units": 8, "embedding_dim": 8, "stateful": True, "batch_size": 4}
    model, other = (rnn_language_model(20, **options, seed=seed) for seed in (0, 1))
    model.save_weights(tmp_path / "model.weights.h5")
    arrays.load_weights(other, tmp_path / "model.weights.h5")
    for expected, restored in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(restored, expected)


def replace_dataset(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Replaces a dataset by one that `create_dataset` makes of the options."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


KERNEL = "layers/dense/vars/0"


def set_kernel(value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[KERNEL][0, 0] = value

    return change


def link(kind: Any, *arguments: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[KERNEL]
        file[KERNEL] = kind(*arguments)

    return change


def circle(file: h5py.File) -> None:
    file["layers/again"] = file["layers"]


def virtual(file: h5py.File) -> None:
    del file[KERNEL]
    layout = h5py.VirtualLayout((4, 3), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 3))
    file.create_virtual_dataset(KERNEL, layout)


def rename(file: h5py.File) -> None:
    file.move("layers/dense", "layers/other")


HUGE = (1 << 16, 1 << 16)
WEIGHTS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "NaN": (set_kernel(np.nan), f"finite numbers. Received: a NaN or an infinity in /{KERNEL}"),
    "infinity": (set_kernel(np.inf), "must hold finite numbers"),
    "shape": (replace_dataset(KERNEL, data=np.zeros((3, 4), "float32")), r"of shape \(3, 4\)"),
    "range": (
        replace_dataset(KERNEL, data=np.full((4, 3), 1e300)),
        "of mlp. Received: numbers outside the range of float32 for hidden1/kernel",
    ),
    "integers": (
        replace_dataset(KERNEL, data=np.full((4, 3), 7)),
        r"1 arrays too many, .* \(4, 3\) of integers; 1 arrays too few, .* \(4, 3\) of floats",
    ),
    "truth values": (replace_dataset(KERNEL, data=np.ones((4, 3), bool)), "of truth values"),
    "missing": (lambda file: file.pop(KERNEL), r"1 arrays too few, such as one of shape \(4, 3\)"),
    "surplus": (lambda file: file.create_dataset("x", data=[1.0]), r"too many, .*shape \(1,\)"),
    "other names": (rename, "must hold the weights of mlp"),
    "text": (replace_dataset(KERNEL, data="code"), f"an array of type object at /{KERNEL}"),
    "raw bytes": (replace_dataset(KERNEL, data=np.zeros((4, 3), "V2")), r"type \|V2 at"),
    "complex": (replace_dataset(KERNEL, data=np.zeros((4, 3), complex)), "type complex128"),
    "bomb": (
        replace_dataset(KERNEL, shape=HUGE, dtype="float32", compression="gzip", chunks=(64, 64)),
        "compressed or elsewhere",
    ),
    "hole": (replace_dataset(KERNEL, shape=HUGE, dtype="float32"), "an array without its bytes"),
    "external": (
        replace_dataset(KERNEL, shape=(4, 3), dtype="float32", external=[("other", 0, 48)]),
        "compressed or elsewhere",
    ),
    "virtual": (virtual, "compressed or elsewhere"),
    "soft link": (link(h5py.SoftLink, "/layers/dense_1/vars/0"), f"a link at /{KERNEL}"),
    "external link": (link(h5py.ExternalLink, "other.h5", "x"), f"a link at /{KERNEL}"),
    "circle": (circle, "an object that occurs twice at"),
    "type": (lambda file: file.__setitem__("x", np.dtype("float32")), "no array at /x"),
    "empty array": (lambda file: file.create_dataset("x", data=h5py.Empty("f")), "no array at /x"),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("damage", WEIGHTS)
def test_load_weights_refuses_what_keras_does_not_write(
    model: keras.Model, tmp_path: Path, damage: str
) -> None:
    change, text = WEIGHTS[damage]
    path = tmp_path / "model.weights.h5"
    mlp((4,), 2, (3,), seed=1).save_weights(path)
    with h5py.File(path, "r+") as file:
        change(file)
    original, files = model.get_weights(), digests(tmp_path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=text) as caught:
        arrays.load_weights(model, path)
    assert tracemalloc.get_traced_memory()[1] < LIMIT
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert digests(tmp_path) == files
    for one, two in zip(original, model.get_weights()):
        np.testing.assert_array_equal(one, two)


class Steps(keras.layers.Layer):
    """Layer with integers."""

    def build(self, shape: Any) -> None:
        self.steps = self.add_weight(shape=(2,), dtype="int32", trainable=False)

    def call(self, x: Any) -> Any:
        return x


@pytest.mark.once
def test_load_weights_refuses_integers_outside_the_range(tmp_path: Path) -> None:
    """They would be other integers after the cast to 32 bits."""
    path = tmp_path / "model.weights.h5"
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Steps(name="layer")(inputs))
    steps = model.get_layer("layer").steps
    for value in (7, 2**40):
        model.save_weights(path)
        with h5py.File(path, "r+") as file:
            replace_dataset("layers/steps/vars/0", data=np.array([value, 0]))(file)
        if value == 7:
            arrays.load_weights(model, path)
    with pytest.raises(ValueError, match=r"to 1099511627776, outside the range of .*int32: /l"):
        arrays.load_weights(model, path)
    assert keras.ops.convert_to_numpy(steps.value).tolist() == [7, 0]


@pytest.mark.once
@pytest.mark.parametrize("length", [0, 8, 700, -9])
def test_load_weights_refuses_truncated_files(
    model: keras.Model, tmp_path: Path, length: int
) -> None:
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"must be an undamaged weights file of Keras"):
        arrays.load_weights(model, path)


@pytest.mark.once
def test_load_model_bounds_the_model_by_its_weights(run_folder: Path) -> None:
    """Arguments of a model of gigabytes do not build one."""
    folder = run_folder / "classifier"
    content = json.loads((folder / "model.json").read_text())
    content["arguments"]["hidden_units"] = [1 << 15] * 4
    (folder / "model.json").write_text(json.dumps(content))
    sign(folder)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a model of 3,247,\d+,\d+ parameters, but 407,050"):
        load_model(folder)
    assert tracemalloc.get_traced_memory()[1] < LIMIT
    tracemalloc.stop()


# ------------------------------------------------------------------ checkpoints


class Part:
    """What has variables, as a checkpoint saves it."""

    def __init__(self, dtype: str = "float32") -> None:
        zeros, trainable = np.zeros((2, 3)), "float" in dtype
        self.variables = [keras.Variable(zeros, dtype=dtype, trainable=trainable, name="x")]


CASTS: dict[str, tuple[np.ndarray, str, str]] = {
    "float64": (
        np.full((2, 3), 1e300),
        "float32",
        r"from 1e\+300 to 1e\+300, outside the range of float32",
    ),
    "float16": (
        np.full((2, 3), -1e5),
        "float16",
        "from -100000.0 to -100000.0, outside the range of float16",
    ),
    "bfloat16": (np.full((2, 3), 3.4e38), "bfloat16", "outside the range of bfloat16"),
    "integers": (np.full((2, 3), 7), "float32", "is of type int64 instead of float32"),
    "truth values": (np.ones((2, 3), bool), "float32", "is of type bool instead of float32"),
    "floats": (np.ones((2, 3), np.float32), "int32", "is of type float32 instead of int32"),
    "large integers": (np.full((2, 3), 2**40), "int32", "to 1099511627776, outside the range"),
    "negative integers": (np.full((2, 3), -1), "uint32", "outside the range of uint32"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", CASTS)
def test_restore_refuses_numbers_that_the_variables_cannot_hold(tmp_path: Path, name: str) -> None:
    array, dtype, text = CASTS[name]
    part = Part(dtype)
    path = checkpoints.save(tmp_path, 2, {}, part=part)
    np.savez(path, **{**np.load(path), "part/x": array})
    with pytest.raises(ValueError, match=f"does not fit this model: part/x .*{text}"):
        checkpoints.restore(tmp_path, part=part)
    value = keras.ops.cast(part.variables[0].value, "float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(value), 0 * array)
    assert path.exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "bool"])
def test_restore_converts_numbers_of_the_same_kind(tmp_path: Path, dtype: str) -> None:
    """A checkpoint of another backend or policy may have another width."""
    part, kind = Part(dtype), {"int32": np.int64, "bool": bool}.get(dtype, np.float32)
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(kind)
    path = checkpoints.save(tmp_path, 2, {}, part=part)
    np.savez(path, **{**np.load(path), "part/x": array})
    checkpoints.restore(tmp_path, part=part)
    value = keras.ops.cast(part.variables[0].value, "float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(value), array)


def npy(array: np.ndarray, **header: Any) -> bytes:
    """An array as a file, whose header may lie."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {**np.lib.format.header_data_from_array_1_0(array), **header}
    )
    return stream.getvalue() + array.tobytes()


ARRAY = np.ones((2, 3), np.float32)
PROGRESS = {"step": 2, "history": [], "backends": ["torch"]}


def progress(**changes: Any) -> bytes:
    return npy(np.frombuffer(json.dumps({**PROGRESS, **changes}).encode(), np.uint8))


MEMBERS: dict[str, tuple[dict[str, bytes], int, str]] = {
    "bomb": ({"x": npy(np.zeros(1 << 26, np.uint8))}, zipfile.ZIP_DEFLATED, "larger than the file"),
    "compressed": ({"x": npy(np.random.default_rng(0).random(99))}, zipfile.ZIP_DEFLATED, "compr"),
    "lying header": ({"x": npy(ARRAY, shape=(1 << 20, 1 << 20))}, 0, "has shape .* but 24 bytes"),
    "negative shape": ({"x": npy(ARRAY, shape=(-2, -3))}, 0, "has shape"),
    "objects": ({"x": npy(ARRAY, descr="|O")}, 0, "is of type object"),
    "text": ({"x": npy(np.array(["code"]))}, 0, "is of type <U4"),
    "NaN": ({"x": npy(ARRAY * np.nan)}, 0, "holds a NaN or an infinity"),
    "no array": ({"x": b"code"}, 0, "magic"),
    "no progress": ({"x": npy(ARRAY), "progress.json": b""}, 0, "magic"),
    "progress of NaN steps": ({"progress.json": progress(step=float("nan"))}, 0, "`step` must be"),
    "negative step": ({"progress.json": progress(step=-1)}, 0, "`step` must be 0 or more"),
    "rows without epoch": ({"progress.json": progress(history=[{"loss": 1.0}])}, 0, "an epoch"),
    "history of text": ({"progress.json": progress(history="x")}, 0, "`history` must be a valid"),
    "surplus": ({"progress.json": progress(code="x")}, 0, "`code` must not be given"),
    "deep": ({"progress.json": npy(np.frombuffer(b"[" * 99_999, np.uint8))}, 0, "so deeply"),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("damage", MEMBERS)
def test_restore_sets_malicious_checkpoints_aside(tmp_path: Path, damage: str) -> None:
    """The last good one is restored, and the other stays as a file."""
    members, compression, text = MEMBERS[damage]
    part = Part()
    part.variables[0].assign(ARRAY)
    checkpoints.save(tmp_path, 1, {}, part=part)
    path = tmp_path / "step-000000002.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"part/x": npy(ARRAY), "progress.json": progress(), **members}.items():
            archive.writestr(f"{name}.npy", content)
    part.variables[0].assign(0 * ARRAY)
    tracemalloc.start()
    with pytest.warns(UserWarning, match=f"is damaged.*{text}.* set aside"):
        state = checkpoints.restore(tmp_path, TrainingState, part=part)
    assert tracemalloc.get_traced_memory()[1] < LIMIT
    tracemalloc.stop()
    assert state == TrainingState(step=1)
    np.testing.assert_array_equal(part.variables[0].numpy(), ARRAY)
    assert {item.name for item in tmp_path.iterdir()} == {
        "step-000000001.npz", "step-000000002.npz.damaged",
    }  # fmt: skip
