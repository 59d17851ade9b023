"""`.keras` files of elsewhere: damaged, oversized, or with names that are no parts of a model."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from zoo.training import load_model

pytestmark = pytest.mark.once

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


@keras.saving.register_keras_serializable("tests")
def triple(x: Any) -> Any:
    return 3 * x


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2, "tanh")

    def call(self, x: Any) -> Any:
        return self.dense(x)


class Unregistered(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + 1


def functional(layer: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input((3,))
    return keras.Model(inputs, layer(inputs))


def operations() -> keras.Model:
    def call(x: Any) -> Any:
        x = keras.ops.concatenate([2 * x + 1, keras.ops.relu(x)], axis=1)
        return keras.ops.mean(x[:, 1:], axis=1)

    return functional(call)


def every_kind_of_object() -> keras.Model:
    return keras.Sequential([
        keras.Input((3,)),
        layers.Dense(
            4, keras.activations.gelu, kernel_initializer=keras.initializers.HeNormal(1),
            kernel_regularizer=keras.regularizers.L1L2(0.1), bias_constraint="non_neg",
        ),
        layers.Dense(4, keras.ops.tanh, dtype="mixed_bfloat16"),
        layers.SpectralNormalization(layers.Dense(4, layers.LeakyReLU())),
        layers.ReLU(float("inf")),
        layers.GaussianNoise(0.1, seed=1),
    ])  # fmt: skip


def recurrent() -> keras.Model:
    cells = layers.RNN([layers.GRUCell(2), layers.LSTMCell(3)], return_sequences=True)
    return keras.Sequential([
        keras.Input((3,)), layers.Reshape((3, 1)), layers.Bidirectional(cells),
        layers.TimeDistributed(layers.Dense(2)), layers.Flatten(),
    ])  # fmt: skip


def compiled() -> keras.Model:
    model = Subclassed()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule))
    metrics = ["mae", keras.metrics.MeanSquaredError(), keras.losses.log_cosh, triple_loss]
    model.compile(optimizer, keras.losses.Huber(), metrics=metrics)
    model.train_on_batch(X, X[:, :2])
    return model


@keras.saving.register_keras_serializable("tests")
def triple_loss(y: Any, predicted: Any) -> Any:
    return keras.ops.mean(3 * keras.ops.abs(keras.ops.subtract(y, predicted)), axis=-1)


def quantized() -> keras.Model:
    model = functional(layers.Dense(4))
    model.layers[1].quantize("int8")
    return model


MODELS: dict[str, Callable[[], keras.Model]] = {
    "operations": operations,
    "every kind of object": every_kind_of_object,
    "recurrent": recurrent,
    "compiled": compiled,
    "quantized": quantized,
    "activation as a Lambda": lambda: functional(layers.Lambda(keras.activations.silu)),
    "registered Lambda": lambda: functional(layers.Lambda(triple, arguments={})),
    "nested": lambda: functional(functional(layers.Dense(2, "relu"))),
    "attention": lambda: functional(
        lambda x: layers.MultiHeadAttention(2, 2)(*[layers.Reshape((3, 1))(x)] * 2)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_load_model_takes_what_keras_saves(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    expected = keras.ops.convert_to_numpy(model(X))
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loaded(X)), expected, atol=1e-6)
    assert loaded.compiled == (name == "compiled")


def test_load_model_knows_the_classes_of_the_users_scope(tmp_path: Path) -> None:
    model = functional(Unregistered(name="mine"))
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"Received: .*Unregistered in the layer 'mine'. Register"):
        load_model(tmp_path / "model.keras")
    with keras.saving.custom_object_scope({"Unregistered": Unregistered}):
        loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(X)), X + 1)


# ------------------------------------------------------------------ names


def rewrite(path: Path, change: Callable[[dict[str, bytes]], Any], **options: Any) -> None:
    """Changes the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_config(path: Path, change: Callable[[Any], Any]) -> None:
    def apply(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        change(config)
        members["config.json"] = json.dumps(config).encode()

    rewrite(path, apply)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a model with a Lambda, `lambda`, and a dense layer, `dense`."""
    inputs = keras.Input((3,), name="input")
    x = layers.Lambda(keras.ops.tanh, name="lambda")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="dense")(x), name="model")
    model.compile("adam", "mse")
    model.train_on_batch(X, X[:, :2])
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def path(saved: Path, tmp_path: Path) -> Path:
    """Copy of the saved file, to be changed."""
    return Path(shutil.copy(saved, tmp_path))


@pytest.fixture
def unchanged_settings() -> Iterator[None]:
    settings = keras.config.epsilon(), keras.config.dtype_policy().name
    yield
    assert (keras.config.epsilon(), keras.config.dtype_policy().name) == settings


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def an_object(module: str, name: str, /, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


LAMBDA = {"class_name": "__lambda__", "config": {"code": "4w==", "defaults": None, "closure": None}}
FORBIDDEN = {
    "keras.config.set_epsilon": function("keras.config", "set_epsilon"),
    "keras.config.set_dtype_policy": function("keras.config", "set_dtype_policy"),
    "keras.utils.clear_session": function("keras.utils", "clear_session"),
    "keras.utils.get_file": function("keras.utils", "get_file"),
    "keras.saving.load_model": function("keras.saving", "load_model"),
    "keras.activations.deserialize": function("keras.activations", "deserialize"),
    "builtins.deserialize": function("builtins", "deserialize"),
    "builtins.eval": function("builtins", "eval"),
    "builtins.HeNormal": function("builtins", "HeNormal"),
    "keras.ops.while_loop": function("keras.ops", "while_loop"),
    "keras.ops.vectorized_map": function("keras.ops", "vectorized_map"),
    "os.system": function("os", "system"),
    "keras.config.set_floatx": an_object("keras.config", "set_floatx"),
    "keras.callbacks.CSVLogger": an_object("keras.callbacks", "CSVLogger", filename="x"),
    "keras.layers.TFSMLayer": an_object("keras.layers", "TFSMLayer", filepath="x"),
    "keras.layers.TorchModuleWrapper": an_object("keras.layers", "TorchModuleWrapper", module="x"),
    "keras.src.backend.tensorflow.Trainer": an_object("keras.src.backend.tensorflow", "Trainer"),
    "keras_hub.models.GPT2Backbone": an_object("keras_hub.models", "GPT2Backbone"),
    "subprocess.Popen": an_object("subprocess", "Popen", args=["true"]),
    "'Dense', which is not registered": {"class_name": "Dense", "config": {"units": 1}},
    "a Python lambda": LAMBDA,
    "a Python lambda ": LAMBDA | {"module": "keras.layers", "registered_name": "zoo>Dropout"},
    "the file 'secret.txt'": an_object("keras.layers", "StringLookup", vocabulary="secret.txt"),
    "x.__typespec__": {"class_name": "__typespec__", "spec_name": "A", "module": "x", "config": []},
    "two. lines": function("two", " lines\n"),
    "1, which is not registered": {"class_name": 1, "config": {}},
}  # fmt: skip


@pytest.mark.usefixtures("unchanged_settings")
@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_load_model_refuses_names_that_are_no_parts_of_a_model(
    path: Path, name: str, unsafe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(
        path, lambda c: c["config"]["layers"][1]["config"].update(function=FORBIDDEN[name])
    )
    if unsafe:  # as after `keras.config.enable_unsafe_deserialization()`
        monkeypatch.setattr("keras.src.saving.serialization_lib.in_safe_mode", lambda: False)
    with pytest.raises(ValueError, match="must name layers and other parts") as error:
        load_model(path)
    assert f"Received: {name.strip()} in the layer 'lambda'. Register" in str(error.value)
    assert "\n" not in str(error.value)


PLACES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "activation": (
        lambda c, value: c["config"]["layers"][2]["config"].update(activation=value),
        "layer 'dense'",
    ),
    "argument of a call": (
        lambda c, value: c["config"]["layers"][2]["inbound_nodes"][0]["kwargs"].update(x=value),
        "layer 'dense'",
    ),
    "build_config": (lambda c, value: c.update(build_config={"x": [value]}), "layer 'model'"),
    "loss": (lambda c, value: c["compile_config"].update(loss=[value]), "layer 'model'"),
    "model": (lambda c, value: (c.clear(), c.update(value)), "the model"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_load_model_looks_everywhere_in_the_configuration(path: Path, place: str) -> None:
    change, owner = PLACES[place]
    change_config(path, lambda c: change(c, FORBIDDEN["keras.config.set_epsilon"]))
    with pytest.raises(ValueError, match=f"Received: keras.config.set_epsilon in .*{owner}"):
        load_model(path)


def test_load_model_applies_functions_of_keras_ops(path: Path) -> None:
    change_config(
        path,
        lambda c: c["config"]["layers"][1]["config"].update(function=function("keras.ops", "abs")),
    )
    outputs = load_model(path).get_layer("lambda")(X)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), np.abs(X))


# ------------------------------------------------------------------ damage


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def set_numbers(path: Path, number: float, name: str, **options: Any) -> None:
    """Sets the numbers of an array in the weights."""

    def apply(members: dict[str, bytes]) -> None:
        weights = path.with_name("weights.h5")
        weights.write_bytes(members["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            shape = file[name].shape
            del file[name]
            file.create_dataset(name, data=np.full(shape, number, np.float32), **options)
        members["model.weights.h5"] = weights.read_bytes()

    rewrite(path, apply)


def add_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("config.json", "{}")


KERNEL, OPTIMIZER = "layers/dense/vars/0", "optimizer/vars/2"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: cut(p, 0), "must be an undamaged `.keras` file. Received: an empty file"),
    "half": (lambda p: cut(p, p.stat().st_size // 2), "Received: File is not a zip file"),
    "text": (lambda p: p.write_text("hello"), "Received: File is not a zip file"),
    "flipped bit": (flip, "Received: (a wrong checksum|Bad CRC)"),
    "no config": (lambda p: rewrite(p, lambda m: m.pop("config.json")), "Received: no config.json"),
    "no weights": (lambda p: rewrite(p, lambda m: m.pop("model.weights.h5")), "no model.weights"),
    "two configs": (add_twice, "Received: a member twice"),
    "other member": (lambda p: rewrite(p, lambda m: m.update({"../x": b""})), "the member '../x'"),
    "bomb": (
        lambda p: rewrite(
            p, lambda m: m.update({"assets/x": bytes(1 << 24)}), compression=zipfile.ZIP_DEFLATED
        ),
        r"Received: members of 16,[\d,]+ bytes in",
    ),
    "huge config": (
        lambda p: rewrite(p, lambda m: m.update({"config.json": bytes((1 << 24) + 1)})),
        "Received: a config.json of 16,777,217 bytes",
    ),
    "config no JSON": (
        lambda p: rewrite(p, lambda m: m.update({"config.json": b"{"})), "must be valid JSON",
    ),
    "config a list": (
        lambda p: rewrite(p, lambda m: m.update({"config.json": b"[]"})), "config.json: `content`",
    ),
    "deep config": (
        lambda p: rewrite(p, lambda m: m.update({"config.json": b"[" * 10**5})), "nested so deeply",
    ),
    "empty config": (
        lambda p: rewrite(p, lambda m: m.update({"config.json": b"{}"})), "must hold a model",
    ),
    "weights no HDF5": (
        lambda p: rewrite(p, lambda m: m.update({"model.weights.h5": b"x"})),
        "Received: model.weights.h5 must be an undamaged weights file",
    ),
    "compressed weights": (
        lambda p: set_numbers(p, 0, KERNEL, compression="gzip"), "an array that is compressed",
    ),
    "NaN": (lambda p: set_numbers(p, np.nan, KERNEL), "must hold finite numbers. .*dense/kernel"),
    "infinity in the optimizer": (
        lambda p: set_numbers(p, np.inf, OPTIMIZER), "must hold finite numbers. .*momentum",
    ),
    "unknown argument": (
        lambda p: change_config(p, lambda c: c["config"]["layers"][2]["config"].update(x=1)),
        r"must hold a model that Keras [\d.]+ can build. Received: TypeError: ",
    ),
    "other units": (
        lambda p: change_config(p, lambda c: c["config"]["layers"][2]["config"].update(units=3)),
        r"must hold a model that Keras [\d.]+ can build. Received: ValueError: ",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # then Keras raises
@pytest.mark.parametrize("damage", DAMAGES)
def test_load_model_refuses_damaged_files_in_one_line(path: Path, damage: str) -> None:
    change, text = DAMAGES[damage]
    change(path)
    with pytest.raises(ValueError, match=text) as error:
        load_model(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800


def test_load_model_refuses_any_flipped_byte_or_loads_the_same(path: Path) -> None:
    content = path.read_bytes()
    expected = load_model(path).get_weights()
    loaded = 0
    for offset in np.random.default_rng(0).choice(len(content), 100, replace=False):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 255]) + content[offset + 1 :])
        try:
            model = load_model(path)
        except ValueError as error:
            assert "\n" not in str(error), offset  # noqa: PT017
            continue
        loaded += 1  # a date or another field that is not read
        assert all(map(np.array_equal, model.get_weights(), expected)), offset
    assert loaded < 10


def test_load_model_takes_keras_files_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`path` must be a `.keras` file. Received: .*, no file"):
        load_model(tmp_path / "model.keras")
    (tmp_path / "model.h5").touch()
    with pytest.raises(ValueError, match=r"`path` must be a file whose name ends in .keras"):
        load_model(tmp_path / "model.h5")
