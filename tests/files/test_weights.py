"""Weights folders: what is packed, how it is verified, and the argument `weights` of builders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load, save

import zoo
from benchmarks.weights import compute_metrics
from tests.files.conftest import digests
from zoo import registry
from zoo.files import documents, tensors, weights
from zoo.files.runs import FinishedRun
from zoo.files.saved import describe_files
from zoo.files.weights import CARD, PACKED, WeightsFolder
from zoo.tasks import ImageClassifier

NAMES = zoo.list_weights()
MLP = {"input_shape": (4,), "num_classes": 3, "hidden_units": (5,), "dropout": 0.1}


@pytest.mark.parametrize("name", NAMES)
def test_packed_weights_have_the_metrics_of_their_card(name: str) -> None:
    task = zoo.load(name)
    WeightsFolder(PACKED / name).verify()
    metrics = task.card.metrics[zoo.backends.name]
    # `python -m benchmarks.weights evaluate` computes the others on the whole data, in minutes.
    part = not isinstance(task, ImageClassifier) or task.model.count_params() > 1_000_000
    expected = metrics.part if part else metrics.whole
    # On another processor, a sum may round otherwise.
    assert compute_metrics(task, part) == pytest.approx(expected, rel=1e-3)


@pytest.mark.once
def test_packed_weights_are_complete() -> None:
    assert "mlp-mnist" in NAMES
    for name in NAMES:
        card = WeightsFolder(PACKED / name).card
        assert set(card.metrics) == set(zoo.backends.NAMES)
        assert {path.name for path in (PACKED / name).iterdir()} == {CARD, *card.files}
        shown = {
            tuple(weights.shown(*metric) for metric in metrics.whole.items())
            for metrics in card.metrics.values()
        }
        assert len(shown) == 1 or card.builder in ("unet", "text_to_image")


def write_folder(folder: Path, model: keras.Model, **changes: Any) -> Path:
    """Writes a weights folder of a model, with a card as `changes` have it."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(tensors.save_weights(model, "float32"))
    builder, arguments = registry.origin(model)
    card = json.loads((PACKED / "mlp-mnist" / CARD).read_text())
    card |= {"builder": builder, "arguments": arguments, "parameters": model.count_params()}
    card |= {"normalization": None, "labels": None, "storage_dtype": "float32"}
    sign(folder, {**card, **changes})
    return folder


def sign(folder: Path, card: dict[str, Any]) -> None:
    """Writes a card whose digests are those of the files as they are."""
    files = [path for path in sorted(folder.iterdir()) if path.name != CARD]
    (folder / CARD).write_bytes(documents.dump({**card, "files": describe_files(files)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder", zoo.mlp(**MLP, seed=3))


EXAMPLES = {
    name: arguments
    for builder in registry.models
    for name, arguments in registry.examples(builder).items()
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_builder_takes_weights(name: str, tmp_path: Path) -> None:
    build = registry.get(name.partition("/")[0]).build
    model = build(**EXAMPLES[name], seed=3)
    loaded = build(weights=write_folder(tmp_path, model), name="other", seed=4)
    changes = {"name": "other", "seed": 4}
    assert registry.origin(loaded)[1] == {**registry.origin(model)[1], **changes}
    for one, two in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(one.value), keras.ops.convert_to_numpy(two.value)
        )


@pytest.mark.once
def test_float16_is_stored_in_half_the_bytes_and_rounded(tmp_path: Path) -> None:
    model = zoo.mlp(**MLP)
    half, whole = (tensors.save_weights(model, dtype) for dtype in ("float16", "float32"))
    assert len(whole) - len(half) > 1.5 * model.count_params()
    path = tmp_path / "model.safetensors"
    path.write_bytes(half)
    other = zoo.mlp(**MLP, seed=4)
    tensors.load_weights(other, path)
    for one, two in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(two, one.astype(np.float16).astype(np.float32))
        assert two.dtype == np.float32
    model.layers[-1].bias.assign([0.0, 1e5, 0.0])
    text = r"must have weights that are finite in float16\. Received: output/bias .* up to 100000"
    with pytest.raises(ValueError, match=text):
        tensors.save_weights(model, "float16")


@pytest.mark.once
def test_weights_names_data_a_whole_name_a_folder_or_a_run(
    folder: Path, finished_runs: Path
) -> None:
    expected = load((PACKED / "mlp-mnist" / "model.safetensors").read_bytes())["output/bias"]
    for name in ("mnist", "mlp-mnist", PACKED / "mlp-mnist"):
        bias = zoo.mlp(weights=name).get_layer("output").bias
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(bias.value), expected)
    assert zoo.mlp(weights=folder).input.shape == (None, 4)
    assert zoo.mlp(weights=str(folder), hidden_units=[5], dropout=0.5, dtype="bfloat16")
    assert zoo.gpt(weights=finished_runs / "text").count_params() == 1096
    assert zoo.text_to_image(weights=finished_runs / "prompts").name == "text_to_image"


REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (zoo.mlp, {"num_classes": 5}, r"`num_classes` must be 10, as .*num_classes=5, weights='mnist'"),
    (zoo.mlp, {"hidden_units": (9,)}, r"`hidden_units` must be \[512\], .*hidden_units=\(9,\)"),
    (zoo.mlp, {"weights": "cifar"}, r"must be one of .*mlp-mnist.*, a weights .*weights='cifar'"),
    (zoo.gpt, {"weights": "mlp-mnist"}, "must be those of a `gpt`. Received: .*those of a `mlp`"),
    (zoo.unet, {"channels": (7,)}, r"must name one model of `unet` .* none of .*mlp-mnist"),
    (zoo.mlp, {"weights": 3}, "`weights` must be a name or a path. Received: weights=3"),
]  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize(("build", "arguments", "text"), REFUSED)
def test_weights_must_fit_the_builder_and_its_arguments(
    build: Callable[..., Any], arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        build(**{"weights": "mnist", **arguments})


@pytest.mark.once
def test_weights_in_arguments_of_a_file_are_refused(folder: Path) -> None:
    """Otherwise a file could have another one opened."""
    card = json.loads((folder / CARD).read_text())
    card["arguments"]["weights"] = "mlp-mnist"
    sign(folder, card)
    with pytest.raises(ValueError, match="`arguments` must not name weights"):
        zoo.mlp(weights=folder)


def flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-1] ^= 1
    return bytes(changed)


def changed_arrays(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        arrays = load(content)
        change(arrays)
        return save(arrays)

    return damage


def header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: len(text).to_bytes(8, "little") + text


# Damages of the weights, with a card that fits them, and what is said of them.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "must be an undamaged safetensors file"),
    "truncated": (lambda content: content[:-1], "must be an undamaged safetensors file"),
    "longer": (lambda content: content + b"\0", "must be an undamaged safetensors file"),
    "pickle": (lambda content: b"\x80\x05K\x01.", "must be a.* safetensors file"),
    "huge header": (lambda content: b"\xff" * 64, r"a header of at most 1,048,576 bytes. Received"),
    "no JSON": (header(b"{"), "must be an undamaged safetensors file"),
    "type": (changed_arrays(lambda a: a.update(x=np.zeros(2))), "float16. Received: F64 at x"),
    "unknown": (changed_arrays(lambda a: a.update(x=a["output/bias"][:0])), "an unknown array x"),
    "missing": (changed_arrays(lambda a: a.pop("hidden1/bias")), "stored numbers|no array hidden1"),
    "shape": (
        changed_arrays(lambda a: a.update({"output/bias": np.zeros((1, 3), np.float32)})),
        r"must hold output/bias of shape \(3,\). Received: \(1, 3\)",
    ),
    "NaN": (
        changed_arrays(lambda a: a["output/bias"].fill(np.nan)), "a NaN or an infinity in output/",
    ),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_in_one_line(folder: Path, damage: str) -> None:
    change, text = DAMAGES[damage]
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors has changed since the weights were"):
        zoo.mlp(weights=folder)
    sign(folder, json.loads((folder / CARD).read_text()))
    original = digests(folder)
    with pytest.raises(ValueError, match=text) as caught:
        zoo.mlp(weights=folder)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert digests(folder) == original


@pytest.mark.once
def test_load_weights_leaves_the_model_as_it_was_if_the_file_is_damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(DAMAGES["NaN"][0](path.read_bytes()))
    model = zoo.mlp(**MLP)
    original = model.get_weights()
    with pytest.raises(ValueError, match="a NaN or an infinity"):
        tensors.load_weights(model, path)
    for one, two in zip(model.get_weights(), original):
        np.testing.assert_array_equal(one, two)


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_of_packed_weights_is_refused_by_name(name: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PACKED / name, tmp_path / "copy"))
    for file in WeightsFolder(copy).card.files:
        content = (copy / file).read_bytes()
        (copy / file).write_bytes(flip(content))
        text = rf"{file} has changed since the weights were packed: it must have the SHA-256 \w+"
        with pytest.raises(ValueError, match=text):
            zoo.load(copy)
        (copy / file).write_bytes(content)


CARDS: list[tuple[dict[str, Any], str]] = [
    ({"builder": "os.system"}, "`builder` must be one of autoencoder, .*Received: 'os.system'"),
    ({"builder": "autoencoder"}, "`arguments` must be those of autoencoder"),
    ({"arguments": {"num_classes": 10**6}}, "a model of .* parameters, but 43 stored numbers"),
    ({"parameters": 44}, "`parameters` must be 43, those of the model. Received: 44"),
    ({"storage_dtype": "float64"}, "`storage_dtype` must be 'float32' or 'float16'"),
    ({"licence": ""}, "`licence` must have at least 1 character"),
    ({"normalization": {"mean": [0.1], "std": [0.0]}}, r"std\[0\]` must be greater than 0"),
    ({"metrics": {"numpy": {}}}, r"`metrics.numpy.* must be 'jax'"),
    ({"code": "print()"}, "`code` must not be given"),
]


@pytest.mark.once
@pytest.mark.parametrize(("changes", "text"), CARDS, ids=[text for _, text in CARDS])
def test_cards_out_of_their_bounds_are_refused(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    folder = write_folder(tmp_path, zoo.mlp(**MLP), **changes)
    with pytest.raises(ValueError, match=text) as caught:
        zoo.load(folder)
    assert f"{folder / CARD}" in str(caught.value)
    assert "Restore the folder" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.once
def test_card_must_list_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    sign(folder, json.loads((folder / CARD).read_text()))
    text = r"card\.json must list model\.safetensors. Received: other\.safetensors"
    with pytest.raises(ValueError, match=text):
        zoo.load(folder)


@pytest.mark.once
def test_finished_run_says_how_to_finish_a_begun_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no metrics\.json\. Run the recipe with the same"):
        FinishedRun(tmp_path)
    with pytest.raises(ValueError, match=r"`weights` must hold a finished run.*Run the recipe"):
        zoo.mlp(weights=tmp_path)
