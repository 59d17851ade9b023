"""Models that generate leave Keras: files that are proven together, and scripts that use them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.diffusion.test_pipeline import save_finished_run
from tests.export import faults
from tests.export.test_arguments import own_format
from zoo.datasets import shakespeare
from zoo.datasets.tokenizer import Tokenizer
from zoo.diffusion.metrics import to_uint8
from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer, prompts_by_class
from zoo.export import ExportReport, export_generation, generation
from zoo.export.generation_proof import first_difference
from zoo.generation.sampling import generate
from zoo.parity import Workers
from zoo.parity.report import read_json
from zoo.training.run_directory import RunDirectory

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer"


def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 40)


def characters() -> Tokenizer:
    """A tokenizer that can encode the test text, with which metrics are computed."""
    return Tokenizer.characters(shakespeare.split("test"))


def language_model(builder: str, vocabulary: Tokenizer, **arguments: Any) -> keras.Model:
    """A small model whose greedy tokens vary, as those of a trained one."""
    sizes = ("vocabulary_size",)
    if builder == "transformer":
        sizes = ("source_vocabulary_size", "target_vocabulary_size")
    model = zoo.registry.get(builder).build(
        **dict.fromkeys(sizes, len(vocabulary)), max_length=20, num_layers=1, num_heads=4,
        num_kv_heads=2, hidden_dim=32, tie_embeddings=False, **arguments,
    )  # fmt: skip
    generator = np.random.default_rng(3)
    model.set_weights([w + generator.normal(0, 0.2, w.shape) for w in model.get_weights()])
    return model


def save_run(
    folder: Path, builder: str, vocabulary: Tokenizer, recipe: str, **arguments: Any
) -> Path:
    run = RunDirectory(folder, {"recipe": recipe})
    run.write_config()
    run.write("vocabulary.json", vocabulary.to_json())
    run.save_model(language_model(builder, vocabulary, **arguments))
    run.write_metrics({})
    return folder


def save_diffusion_run(folder: Path, **spec: Any) -> Path:
    words = WordTokenizer([prompt for prompts in prompts_by_class() for prompt in prompts])
    model = zoo.text_to_image(
        len(words), words.max_length, hidden_dim=16, input_shape=(8, 8, 1), channels=(8,),
        num_steps=20,
    )  # fmt: skip
    pipeline = DiffusionPipeline(model, DiffusionSpec(num_steps=20, **spec), words)
    return save_finished_run(pipeline, folder, dataset="mnist")


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "gpt": lambda folder: save_run(folder, "gpt", characters(), "shakespeare"),
    "transformer": lambda folder: save_run(
        folder,
        "transformer",
        tokenizer(),
        "translate",
        positions="rotary",
        norm="rms_norm",
        activation="swiglu",
    ),
    "text_to_image": save_diffusion_run,
}


@pytest.fixture(scope="module")
def exported(
    workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Path, Path, ExportReport]]]:
    """Run directory of a model, directory of its ONNX files, and the report; each exported once.

    The transformer, which has most inputs, is compared with all backends.
    """
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    folder = tmp_path_factory.mktemp("generation")
    done: dict[str, tuple[Path, Path, ExportReport]] = {}

    def export(name: str) -> tuple[Path, Path, ExportReport]:
        if name not in done:
            run, out = BUILDERS[name](folder / name), folder / f"{name}-onnx"
            pool = workers if name == "transformer" else workers.only("torch")
            done[name] = run, out, export_generation(run, out, workers=pool)
        return done[name]

    yield export
    shutil.rmtree(folder)


def run_example(name: str, *arguments: Any) -> str:
    """Runs an example where neither Keras nor this package can be imported."""
    code = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['keras', 'torch', 'zoo']); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code, EXAMPLES / name, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ------------------------------------------------------------------ ONNX on all backends


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("model", ["transformer", "text_to_image"])
def test_generation_is_proven_for_files_alone_and_together(model: str, exported: Any) -> None:
    run, out, report = exported(model)
    assert report.proven, report.failures
    assert report.verdict == "exported and proven"
    has_tokens = model != "text_to_image"
    parts = ("prefill", "step") if has_tokens else ("text_encoder", "unet")
    vocabulary = "vocabulary.json" if has_tokens else "prompts.json"
    names = {f"{part}.onnx" for part in parts} | {"generation.json", vocabulary}
    assert {path.name for path in out.iterdir()} == names
    assert (out / vocabulary).read_bytes() == (run / vocabulary).read_bytes()
    titles = [f"{part}: {title}" for part in parts for title in ("file", "outputs")]
    titles += ["generation"] if has_tokens else ["generation", "metrics"]
    assert [rung.title for rung in report.rungs] == titles
    backends = {"tensorflow", "torch", "jax"} if model == "transformer" else {"torch"}
    for rung in report.rungs[1:4:2]:
        assert len(rung.rows) == 3 * len(backends)  # three batches
    between = {row.between for row in report.rungs[4].rows}
    assert between == {("ONNX Runtime", name) for name in backends}
    assert all(row.status == "agrees" for row in report.rows)
    if has_tokens:  # the test verses have other characters
        assert report.notes[-1].startswith("no metrics: The test data of eng-spa cannot be used")
    else:
        assert report.settings["examples"] == "300 noisy test images of mnist"
        assert [row.comparison for row in report.rungs[5].rows] == ["squared_error"]
    assert report.settings["files"][parts[0]]["bytes"] == (out / f"{parts[0]}.onnx").stat().st_size


@pytest.mark.parity
@pytest.mark.slow
def test_files_say_their_inputs_and_outputs(exported: Any) -> None:
    import onnx

    _, out, _ = exported("transformer")
    content = json.loads((out / "generation.json").read_text())
    assert content["context"] == 20
    assert content["padding"] == 0
    for entry in content["graphs"].values():
        graph = onnx.load(out / entry["file"]).graph
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
        assert shapes == {name: value["shape"] for name, value in entry["inputs"].items()}
        assert [value.name for value in graph.output] == entry["outputs"]
    taken = {name.removeprefix("past_") for name in content["graphs"]["step"]["inputs"]}
    assert taken == {*content["graphs"]["prefill"]["outputs"], "ids", "padding"} - {"logits"}
    assert content["graphs"]["step"]["inputs"]["past_keys_1"]["shape"] == [
        "batch", 2, "past_length", 8,
    ]  # fmt: skip


# ------------------------------------------------------------------ examples


@pytest.mark.parity
@pytest.mark.slow
def test_command_writes_files_with_which_an_example_generates_the_same_text(
    in_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    run = BUILDERS["gpt"](tmp_path / "run")
    out, report = tmp_path / "new" / "files", tmp_path / "report.json"
    result = in_process(
        "zoo", "export", str(run), "--format", "onnx", "--out", str(out), "--generation",
        "--backends", "torch", "--json", str(report), "--html", str(tmp_path / "report.html"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "run: exported and proven" in result.stdout
    names = ["generation.json", "prefill.onnx", "step.onnx", "vocabulary.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    (read,) = read_json(report)
    assert [row.comparison for row in read.rungs[4].rows] == ["logits", "greedy tokens"]
    metrics = ["test_loss", "test_bits_per_character"]  # of the tokens that the files step through
    assert [row.comparison for row in read.rungs[5].rows] == metrics
    assert read.settings["examples"] == "2,980 test tokens of shakespeare"
    assert "greedy tokens" in (tmp_path / "report.html").read_text()
    prompt = "to be, or not"
    text = run_example("generate_onnx.py", out, prompt, "--tokens", 30)  # beyond the context
    vocabulary = characters()
    (ids,) = generate(zoo.gpt(weights=run), [vocabulary.encode(prompt)], 30, temperature=0.0)
    assert text == f"{prompt}{vocabulary.decode(ids)}\n"
    assert len(set(ids)) > 3


@pytest.mark.parity
@pytest.mark.slow
def test_example_translates_to_the_same_text(exported: Any) -> None:
    run, out, _ = exported("transformer")
    network = zoo.transformer(weights=run)
    bos = Tokenizer.BOS
    lengths = set()
    for sentence in ("the question", "to suffer"):
        text = run_example("translate_onnx.py", out, sentence)
        sources = [tokenizer().encode(sentence)]
        (ids,) = generate(network, [[bos]], 99, temperature=0.0, sources=sources, stop_tokens=[bos])
        assert text == tokenizer().decode(ids).strip() + "\n"
        lengths.add(len(ids))
    assert max(lengths) > 3


@pytest.mark.parity
@pytest.mark.slow
def test_example_draws_the_same_image(exported: Any, tmp_path: Path) -> None:
    run, out, _ = exported("text_to_image")
    path = tmp_path / "image.png"
    run_example("draw_onnx.py", out, "The digit 3!", "--steps", 6, "--seed", 5, "--out", path)
    (image,) = DiffusionPipeline.load(run).sample(["the digit 3"], steps=6, seed=5)
    drawn = np.asarray(Image.open(path))[::8, ::8]
    expected = to_uint8(image[None])[0, ..., 0]
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert expected.std() > 10


# ------------------------------------------------------------------ another format


@pytest.mark.parity
@pytest.mark.slow
def test_generation_in_another_format(workers: Workers, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra `litert`")
    model, out = language_model("gpt", tokenizer()), tmp_path / "files"
    report = export_generation(model, out, "litert", workers=workers.only("tensorflow"))
    assert report.proven, report.failures
    assert {"prefill.litert", "step.litert"} < {path.name for path in out.iterdir()}


# ------------------------------------------------------------------ refusals


@pytest.mark.parity
@pytest.mark.slow
def test_files_that_generate_something_else_are_refused(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file agrees with its source, and only what they generate together is wrong."""
    monkeypatch.setattr(generation, "decoding_parts", faults.step_forgets)
    out, model = tmp_path / "files", language_model("gpt", tokenizer())
    report = export_generation(model, out, "pt2", workers=workers.only("torch"))
    assert report.exit_status == 1
    assert report.verdict == "not exported: the file differs from the model"
    assert [rung.status for rung in report.rungs] == ["agrees"] * 4 + ["differs"]
    assert report.failures[0].startswith("rung 5 (generation): logits, PyTorch and torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mlp", r"`model` must be a gpt, a transformer, or trained weights.*Received: model='mlp'"),
        ("unet", r"`model` must be a gpt, a transformer, or .*Received: model='unet'"),
        ("rnn_language_model", r"`model` must be a gpt, a transformer, or .*rnn_language_model"),
        ("text_to_image", r"`model` must be .*which have its noise schedule.*text_to_image"),
        ("nothing", r"`model` must be one of mlp, .*Received: model='nothing'"),
    ],
)
def test_export_generation_rejects_models(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_generation(model, tmp_path / "files", own_format().name)
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_export_generation_rejects_what_no_files_can_hold(tmp_path: Path) -> None:
    name = own_format().name
    model = zoo.gpt(40, 8, 1, 2, 16, dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match=r"must compute in float32. Received: gpt with bfloat16"):
        export_generation(model, tmp_path / "files", name)
    run = save_finished_run(
        DiffusionPipeline(zoo.unet((8, 8, 1), (8,), num_steps=20), DiffusionSpec(num_steps=20)),
        tmp_path / "run",
    )
    with pytest.raises(ValueError, match="must be a text_to_image model of pixels, without an"):
        export_generation(run, tmp_path / "files", name)
    with pytest.raises(ValueError, match=r"must have a context of at least 2 tokens.*Received: 1"):
        export_generation(zoo.gpt(40, 1, 1, 2, 16), tmp_path / "files", name)
    with pytest.raises(ValueError, match="`path` must not be a directory that holds files"):
        export_generation(model, run, name)
    with pytest.raises(ValueError, match=r"`path` must be a directory or.*metrics\.json"):
        export_generation(model, run / "metrics.json", name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.once
def test_command_rejects_inputs_with_generation(
    in_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = in_process(
        "zoo", "export", "gpt", "--format", "pt2", "--out", str(tmp_path / "files"),
        "--generation", "--input", "int32[0,9):7",
    )  # fmt: skip
    assert result.returncode == 2
    assert "`input` must not be given with `generation`" in result.stderr
    assert "Received: input=int32[0,9):7" in result.stderr


@pytest.mark.once
def test_tokens_may_differ_from_a_tie_on() -> None:
    logits = np.array([[[0.0, 1.0, 4.0], [2.0, 2.0001, -4.0], [0.0, 0.0, 9.0]]])
    actual, expected = np.array([[2, 1, 2]]), np.array([[2, 0, 0]])
    assert first_difference(actual, expected, logits, 1e-4) == ""
    message = "Token 2 after prompt 1 must be 0. Received: 1"
    assert first_difference(actual, expected, logits, 1e-5) == message
    assert first_difference(actual, actual, logits, 0.0) == ""
