"""Malformed files of every kind: each ends in one line that names the fault, and changes nothing.

The manifest is signed anew after each damage, so that the digest does not hide the other checks.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmarks.hardship import sign
from tests.files.conftest import digests
from zoo import cli, registry
from zoo.__main__ import main
from zoo.datasets.images import ImageDataset
from zoo.datasets.tokenizer import Tokenizer
from zoo.diffusion.metrics import FeatureExtractor
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.files import runs
from zoo.generation import completion
from zoo.parity.report import Report, Row, RungReport, read_json, write_json
from zoo.training.run_directory import RunDirectory

pytestmark = pytest.mark.once

IMAGES = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28, 1)
LABELS = np.zeros(1, np.int32)
MNIST = ImageDataset("mnist", IMAGES, LABELS, IMAGES, LABELS, 10, (0.1307,), (0.3081,))


def load_report(folder: Path) -> list[Report]:
    return read_json(folder / "report.json")


def open_directory(folder: Path) -> Any:
    config = {"recipe": "text", "epochs": 2}
    run = RunDirectory(folder, config, "epochs")
    return run.metrics, run.result("test_loss")


def load_vocabulary(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder / "vocabulary.json")


def load_classifier(folder: Path) -> FeatureExtractor:
    return FeatureExtractor.load(folder, MNIST)


# Each kind of file: the run that has it, its name, and what reads it.
KINDS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "manifest": ("text", "manifest.json", completion.load_run),
    "model": ("text", "model.json", completion.load_run),
    "vocabulary": ("text", "vocabulary.json", completion.load_run),
    "unfinished vocabulary": ("text", "vocabulary.json", load_vocabulary),
    "config": ("text", "config.json", open_directory),
    "metrics": ("text", "metrics.json", open_directory),
    "diffusion": ("prompts", "diffusion.json", DiffusionPipeline.load),
    "prompts": ("prompts", "prompts.json", DiffusionPipeline.load),
    "autoencoder": ("latents", "autoencoder.json", DiffusionPipeline.load),
    "latents": ("latents", "diffusion.json", DiffusionPipeline.load),
    "classifier": ("classifier", "metrics.json", load_classifier),
    "report": ("text", "report.json", load_report),
}
HUGE = b"9" * 5000
DEEP = b"[" * 300 + b"]" * 300


def insert(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(b"{", b"{" + text + b", ", 1)


# Damages of any JSON file, and what is said of them.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "must be valid JSON. Received: an empty file"),
    "white space": (lambda content: b" \n", "must be valid JSON. Received: an empty file"),
    "truncated": (lambda content: content[: len(content) // 2], "must be valid JSON. Received: "),
    "binary": (lambda content: b"\x93NUMPY\x01\x00", "must be UTF-8. Received: the byte 0x93"),
    "not UTF-8": (insert(b'"\xff": 1'), "must be UTF-8. Received: the byte 0xff at offset"),
    "NaN": (insert(b'"x": NaN'), "must be valid JSON. Received: NaN, which is no number"),
    "infinity": (insert(b'"x": -Infinity'), "Received: -Infinity, which is no number"),
    "overflow": (insert(b'"x": 1e400'), "1e400, which is beyond the largest number"),
    "huge integer": (insert(b'"x": ' + HUGE), "Exceeds the limit"),
    "key twice": (insert(b'"x": 1, "x": 2'), "Received: the key 'x' twice"),
    "deep": (lambda content: b"[" * 200_000, "must not be nested so deeply"),
    "nested": (insert(b'"x": ' + DEEP), "recursion limit exceeded"),
    "text": (lambda content: b'"text"', "`content` must be .*Received: 'text'"),
    "list of numbers": (lambda content: b"[1]", r"`(content|\[0\])` must be an object"),
}  # fmt: skip


def check_refused(folder: Path, load: Callable[[Path], Any], text: str) -> None:
    """The error is one line with this text and a way out; no file has changed; it is quick."""
    original, start = digests(folder), time.process_time()
    with pytest.raises(ValueError, match=text) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert re.search(
        r"Restore the file|Remove the file|Train the (model|run) again|Write the report",
        str(caught.value),
    )
    assert digests(folder) == original
    assert time.process_time() - start < 2


def write_report(folder: Path) -> None:
    row = Row("parameters", ("torch", "jax"), "float32", "agrees", 1e-9, 1e-6)
    rung = RungReport(1, "parameters", "equal", (row,))
    report = Report(
        "mlp", {"torch": {"device": "cpu"}}, {"seed": 0}, (), (rung,),
        {"inference mode, float32, torch and jax": [("dense", float("inf"), 1e-6)]},
        {"float32": {"torch": [1.0, 0.5]}},
    )  # fmt: skip
    write_json([report], folder / "report.json")
    assert read_json(folder / "report.json") == [report]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_json_files_of_every_kind_are_refused_if_damaged(
    run_folder: Path, kind: str, damage: str
) -> None:
    name, file, load = KINDS[kind]
    folder = run_folder / name
    write_report(folder)
    change, text = DAMAGES[damage]
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    if kind != "manifest":
        sign(folder)
    check_refused(folder, load, text)


def change(path: str, value: Any) -> Callable[[Any], None]:
    """Sets the value at a path such as "model/vocab"; `...` removes it."""
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))

    def apply(content: Any) -> None:
        for part in parents:
            content = content[part]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return apply


def swap_ids(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["b"], vocabulary["e"] = vocabulary["e"], vocabulary["b"]


SHA256 = "0" * 64

# Contents that are JSON, but not what they should be: kind, change, text.
CONTENTS: list[tuple[str, Callable[[Any], None], str]] = [
    ("manifest", change("files", {}), "`files` must have at least 1 item"),
    ("manifest", change("files", ...), "`files` must be given. Received: no such key"),
    ("manifest", change("x", 1), "`x` must not be given. Received: an unknown key"),
    ("manifest", change("files/model.json", ...), "must list model.json. Received: config.json"),
    ("manifest", change("files/model.json/sha256", "0"), "`files.model.json.sha256` must match"),
    ("manifest", change("files/model.json/sha256", SHA256), "must have the SHA-256 0{64}, as"),
    ("manifest", change("files/model.json/bytes", -1), "must be greater than or equal to 0"),
    ("manifest", change("files/model.json/bytes", "7"), r"must be a valid integer.*'7'"),
    ("manifest", change("files/model.json/bytes", True), "must be a valid integer"),
    ("manifest", change("files", {"../x": {}}), "must match pattern"),
    ("model", change("builder", "os.system"), "`builder` must be one of gpt, .*'os.system'"),
    ("model", change("builder", 3), "`builder` must be a valid string. Received: 3"),
    ("model", change("builder", ...), "`builder` must be given"),
    ("model", change("class_name", "Functional"), "`class_name` must not be given"),
    ("model", change("arguments", []), "`arguments` must be an object"),
    ("model", change("arguments/x", 1), "must be those of gpt.*'x'"),
    ("model", change("arguments/num_layers", 10**7), "`num_layers` must be a whole"),
    ("model", change("arguments/num_layers", 100), "Received: a model of .* parameters, but"),
    ("model", change("arguments/num_layers", 1.5), "`num_layers` must be a whole"),
    ("model", change("arguments/num_layers", True), "`num_layers` must be a whole"),
    ("model", change("arguments/num_layers", -1), "`arguments` must be those of gpt.*num_layers"),
    ("model", change("arguments/vocabulary_size", 10**30), "`vocabulary_size` must be a whole"),
    ("model", change("arguments/vocabulary_size", 21), "must hold the arrays of gpt|parameters"),
    ("model", change("arguments/max_length", 10**9), "`max_length` must be at most 131,072"),
    ("model", change("arguments/hidden_dim", 16), "Received: a model of"),
    ("model", change("arguments/hidden_dim", None), "`hidden_dim` must be a whole number"),
    ("model", change("arguments/num_heads", 3), "a model of 1,026 parameters, but"),
    ("model", change("arguments/activation", "lambda"), "must be those of gpt.*`activation`"),
    ("model", change("arguments/activation", "x" * 1000), "`activation` must be one of relu"),
    ("model", change("arguments/norm", "group"), "`norm` must be one of layer_norm, rms_norm"),
    ("model", change("arguments/dtype", "int8_from_float32"), "`dtype` must be"),
    ("model", change("arguments/dropout", 2.0), "`dropout` must be a number in"),
    ("model", change("arguments/seed", 1 << 32), "`seed` must be a whole number of at most"),
    ("model", change("arguments/name", 7), "`name` must be a string"),
    ("vocabulary", swap_ids, r"`model.vocab` must have the ids .*Received: 'e' instead of 'b'"),
    ("vocabulary", change("model/vocab", {}), "`model.vocab` must have at least 2 items"),
    ("vocabulary", change("model/vocab/b", -1), "must be greater than or equal to 0"),
    ("vocabulary", change("model/vocab/b", 10**6), "must be less than 65536"),
    ("vocabulary", change("model/vocab/b", "1"), "`model.vocab.b` must be a valid integer"),
    ("vocabulary", change("model/vocab/b", 3), "`model.vocab` must have the ids"),
    ("vocabulary", change("model/vocab/zz", 20), "`model.vocab` must have the ids"),
    ("vocabulary", change("model/merges", [["q", "u"]]), "must have the ids"),
    ("vocabulary", change("model/merges", ["q u"]), r"`model.merges\[0\]` must be a valid"),
    ("vocabulary", change("model/type", "Unigram"), "`model.type` must be 'BPE'"),
    ("vocabulary", change("model/dropout", 0.5), "`model.dropout` must be (None|null)"),
    ("vocabulary", change("normalizer", {"type": "Lowercase"}), "`normalizer` must be (None|null)"),
    ("vocabulary", change("pre_tokenizer", {"type": "Split"}), "`pre_tokenizer.type` must be"),
    ("vocabulary", change("added_tokens", []), "`added_tokens` must have at least 1 item"),
    ("config", change("epochs", "many"), "`epochs` must be a whole number. Received: 'many'"),
    ("metrics", change("test_loss", "low"), "`test_loss` must be a valid number. Received: 'low'"),
    ("metrics", change("test_loss", ...), "`test_loss` must be given"),
    ("diffusion", change("num_steps", 10**9), "`num_steps` must be less than or equal to 100000"),
    ("diffusion", change("num_steps", 0), "`num_steps` must be greater than or equal to 1"),
    ("diffusion", change("num_steps", "20"), "`num_steps` must be a valid integer"),
    ("diffusion", change("num_steps", 30), "whose `num_steps` is 20. Received: num_steps=30"),
    ("diffusion", change("schedule", "sigmoid"), "`schedule` must be 'cosine' or 'linear'"),
    ("diffusion", change("prediction", 1), "`prediction` must be 'noise', 'x0' or 'v'"),
    ("diffusion", change("zero_terminal_snr", 1), "`zero_terminal_snr` must be a valid boolean"),
    ("diffusion", change("betas", [0.1]), "`betas` must not be given"),
    ("diffusion", change("latents", ...), "`latents` must be given"),
    ("latents", change("latents/std", [2.0, 0.0]), r"`latents.std\[1\]` must be greater than 0"),
    ("latents", change("latents/std", [2.0]), "must have a number for each of 2 channels"),
    ("latents", change("latents/mean", []), "`latents.mean` must have at least 1 item"),
    ("latents", change("latents", None), "`latents` must be given with an autoencoder"),
    ("autoencoder", change("builder", "mlp"), "`builder` must be one of autoencoder"),
    ("autoencoder", change("arguments/input_shape", [10**6, 10**6, 1]), "`input_shape` must have"),
    ("autoencoder", change("arguments/input_shape", [8, 8]), "must be a sequence of 3"),
    ("autoencoder", change("arguments/input_shape", [16, 16, 1]), "whose `input_shape` is .4, 4"),
    ("autoencoder", change("arguments/channels", [8] * 10**4), "`channels` must have at most 128"),
    ("prompts", change("max_length", 10**9), "`max_length` must be less than or equal to 4096"),
    ("prompts", change("max_length", 5), "whose `max_length` is 4. Received: max_length=5"),
    ("prompts", change("words", []), "`words` must have at least 1 item"),
    ("prompts", change("words", ["the", "a"]), "`words` must be different single words"),
    ("prompts", change("words", ["a", "a"]), "`words` must be different single words"),
    ("prompts", change("words", ["A b"]), "`words` must be different single words"),
    ("prompts", change("words", ["a", "b"]), "`vocabulary_size` is 7. Received: vocabulary_size=4"),
    ("prompts", change("words", [1]), r"`words\[0\]` must be a valid string"),
    ("classifier", change("mean", [0.1] * 9), "`mean` must have at most 3 items"),
    ("classifier", change("std", [0.0]), r"`std\[0\]` must be greater than 0"),
    ("classifier", change("std", ...), "`std` must be given"),
    ("report", change("0/model", 3), r"`\[0\].model` must be a valid string"),
    ("report", change("0/rungs/0/rows/0/status", "fine"), "status` must be 'agrees'"),
    ("report", change("0/rungs/0/rows/0/x", 1), "x` must not be given"),
    ("report", change("0/layers", {"x": []}), "must have layers by mode, .* not by 'x'"),
    ("report", change("0/curves", {"float32": {"numpy": [1.0]}}), "curves and accuracies"),
    ("report", change("0/accuracy", {"margin": 1.0}), "but test_accuracy: Field required"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    CONTENTS,
    ids=[f"{kind}-{text[:30]}" for kind, _, text in CONTENTS],
)
def test_contents_that_are_out_of_their_bounds_are_refused(
    run_folder: Path, kind: str, change: Callable[[Any], None], text: str
) -> None:
    name, file, load = KINDS[kind]
    folder = run_folder / name
    write_report(folder)
    content = json.loads((folder / file).read_bytes())
    change(content)
    (folder / file).write_text(json.dumps(content))
    if kind != "manifest":
        sign(folder)
    check_refused(folder, load, text)


@pytest.mark.parametrize(
    ("name", "argument", "size", "text"),
    [
        ("text", "num_layers", 128, "a model of 128 layers and blocks, but 1 stored arrays"),
        ("text", "num_layers", 900, "`num_layers` must be a whole number of at most 128"),
        ("prompts", "num_blocks", 8, "a model of 9 layers and blocks, but 1 stored arrays"),
        ("prompts", "num_blocks", 300, "`num_blocks` must be a whole number of at most 8"),
        ("latents", "channels", [8] * 9, "`channels` must be a sequence of at most 8 elements"),
        (
            "classifier",
            "hidden_units",
            [1] * 128,
            "a model of 128 layers and blocks, but 1 stored arrays",
        ),
        ("classifier", "num_classes", 1, "a model of 402,433 parameters, but 3,000,000 stored"),
    ],
)
def test_a_model_is_not_built_unless_its_weights_are_stored(
    run_folder: Path, name: str, argument: str, size: Any, text: str
) -> None:
    """A file of zeros, as many as the parameters, has neither the arrays nor the layers."""
    folder = run_folder / name
    document = json.loads((folder / "model.json").read_bytes())
    document["arguments"][argument] = size
    (folder / "model.json").write_text(json.dumps(document))
    count = 3_000_000
    with contextlib.suppress(ValueError):  # the size is refused in any case
        if argument != "num_classes":
            count = registry.get(document["builder"]).parameter_count(**document["arguments"])
    with h5py.File(folder / "model.weights.h5", "w") as file:
        file["zeros"] = np.zeros(count, np.float32)
    sign(folder)
    load = {"text": completion.load_run, "classifier": runs.load_model}
    check_refused(folder, load.get(name, DiffusionPipeline.load), text)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_too_large_missing_or_no_files_are_refused(
    run_folder: Path, kind: str
) -> None:
    name, file, load = KINDS[kind]
    folder = run_folder / name
    write_report(folder)
    content = (folder / file).read_bytes()
    with open(folder / file, "ab") as stream:
        stream.truncate(1 << 26)  # a hole, which takes no room on the disk
    if kind != "manifest":
        sign(folder)
    check_refused(folder, load, r"must have at most [\d,]+ bytes. Received: 67,108,864")
    (folder / file).write_bytes(content)
    sign(folder)
    (folder / file).unlink()
    os.mkfifo(folder / file)  # a reader would wait for ever
    if file not in (runs.MANIFEST, "report.json"):
        check_refused(folder, load, "must be a file")
    else:
        check_refused(folder, load, "must be a file. Received: something else")


COMMANDS = [
    ("text", "model.json", ["generate", "to", "--run-dir", "{}"]),
    ("text", "vocabulary.json", ["generate", "to", "--run-dir", "{}"]),
    ("prompts", "diffusion.json", ["draw", "a seven", "--run-dir", "{}"]),
    ("prompts", "prompts.json", ["draw", "a seven", "--run-dir", "{}"]),
    ("latents", "autoencoder.weights.h5", ["draw", "--run-dir", "{}"]),
    ("text", "report.json", ["report", "{}/report.json", "{}/page.html"]),
]


@pytest.mark.parametrize(("name", "file", "command"), COMMANDS)
def test_commands_end_with_status_2_and_one_line(
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    file: str,
    command: list[str],
) -> None:
    folder = run_folder / name
    write_report(folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:-40])
    original = digests(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("zoo.backends.backend.keep_malloc_pages", lambda: None)
    status = cli.run(lambda: main([part.format(folder) for part in command]))
    output = capsys.readouterr()
    assert (status, output.out) == (2, "")
    assert output.err.count("\n") == 1
    assert re.match(rf"error: .*{re.escape(file)}.*(Received|changed)", output.err)
    assert digests(folder) == original
