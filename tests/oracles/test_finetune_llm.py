"""Tests of `recipes/finetune_llm.py` with random presets and a page of Shakespeare."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest
import sentencepiece
from keras import ops
from scipy.special import log_softmax
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import zoo
from recipes.finetune_llm import Config, main
from tests import recipe
from zoo import random
from zoo.backends import backend
from zoo.datasets import shakespeare
from zoo.interop.keras_hub import CausalLMAdapter, load_causal_lm
from zoo.training import Batches, Interrupted

# KerasHub does not close this file.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*vocabulary\.spm:ResourceWarning")

RECIPE = Path(__file__).parents[2] / "recipes" / "finetune_llm.py"
SMALL = {
    "rank": 4, "length": 32, "epochs": 4, "steps_per_epoch": 10, "batch_size": 8,
    "learning_rate": 2e-2, "prompt": "The king", "max_new_tokens": 12,
}  # fmt: skip
SIZES = {"vocabulary_size": 300, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
# Held-out losses before and after training; the backends agree to 1e-6.
LOSSES = {"gpt2": (6.211143, 5.823087), "llama": (6.394787, 6.299852)}
KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama"])


def gpt2(page: str) -> Any:
    """Creates a GPT-2 with a byte-pair tokenizer, whose last token ends a text, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe_trainer = trainers.BpeTrainer(
        vocab_size=299, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([page], bpe_trainer)
    bpe = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**bpe["vocab"], "<|endoftext|>": 299}
    merges = [" ".join(pair) for pair in bpe["merges"]]
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        keras_hub.models.GPT2Tokenizer(vocabulary, merges), sequence_length=64
    )
    backbone = keras_hub.models.GPT2Backbone(**SIZES, num_heads=2, max_sequence_length=64)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


def llama(page: str) -> Any:
    """Creates a Llama with a SentencePiece tokenizer."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(page.splitlines()), model_writer=content, vocab_size=300,
        model_type="BPE", normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    preprocessor = keras_hub.models.LlamaCausalLMPreprocessor(
        keras_hub.models.LlamaTokenizer(content.getvalue()), sequence_length=64
    )
    backbone = keras_hub.models.LlamaBackbone(**SIZES, num_query_heads=2, num_key_value_heads=1)
    return keras_hub.models.LlamaCausalLM(backbone, preprocessor)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text file of 20,000 characters, the first of which is not ASCII."""
    path = tmp_path_factory.mktemp("text") / "page.txt"
    path.write_text(f"É{next(shakespeare.split('test'))[:19_999]}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def presets(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the presets, with weights that are large enough for varied tokens."""
    folder = tmp_path_factory.mktemp("presets")
    for build in (gpt2, llama):
        model = build(page.read_text(encoding="utf-8"))
        for number, variable in enumerate(model.backbone.weights):
            if len(variable.shape) > 1:
                key = random.key(0, build.__name__, number)
                variable.assign(random.normal(key, variable.shape, 0.3))
        model.save_to_preset(str(folder / build.__name__))
    return folder


Finetune = Callable[..., tuple[dict, str]]


@pytest.fixture(scope="module")
def finetune(page: Path, presets: Path) -> Finetune:
    """Function that runs the recipe and returns its metrics and its output."""

    def finetune(kind: str, folder: Path, **changes: Any) -> tuple[dict, str]:
        arguments = {"preset": str(presets / kind), "text": page, "run_dir": folder}
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            metrics = main(Config(**{**arguments, **SMALL, **changes}))
        return metrics, output.getvalue()

    return finetune


@pytest.fixture(scope="module")
def finished(
    finetune: Finetune, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict, str]]:
    folder = tmp_path_factory.mktemp("runs")
    return {kind: (folder / kind, *finetune(kind, folder / kind)) for kind in ("gpt2", "llama")}


def completion(output: str, when: str) -> str:
    return output.split(f"{when} training:\n")[1][: len("The king") + 5]


@pytest.fixture
def first_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the steps from which the stream of training batches is read."""
    steps, from_step = [], Batches.from_step

    def recorded(self: Batches, step: int) -> Batches:
        steps.append(step)
        return from_step(self, step)

    monkeypatch.setattr(Batches, "from_step", recorded)
    return steps


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@KINDS
def test_finetune_llm_metrics_and_files(finished: dict, presets: Path, kind: str) -> None:
    folder, metrics, output = finished[kind]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "recipe": "finetune_llm",
        "preset": str(presets / kind),
        "backend": zoo.backends.name,
        "device": backend.device(),
        "seed": 0,
        "train_examples": 320,
        "epochs": 4,
        # Two layers with a first factor of 16·heads·4 and a second of 4·8 for queries and values.
        "trained_parameters": {"gpt2": 2 * 2 * (128 + 32), "llama": 2 * (128 + 64 + 2 * 32)}[kind],
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["model"].startswith(f"{kind}_causal_lm")
    losses = metrics["test_loss_before"], metrics["test_loss"]
    assert losses == pytest.approx(LOSSES[kind], abs=1e-5)
    assert f"{metrics['trained_parameters']:,} of {metrics['parameters']:,} parameters" in output
    assert f"Test loss {metrics['test_loss_before']:.4f} nats a token before and" in output
    assert output.index("Before training:\nThe king") < output.index("After training:\nThe king")
    assert completion(output, "Before") != completion(output, "After")
    assert sorted(os.listdir(folder)) == [
        "checkpoints", "config.json", "history.csv", "loss.png", "manifest.json", "metrics.json",
        "model.lora.h5",
    ]  # fmt: skip


@KINDS
def test_saved_lora_weights_load_in_keras_hub(
    finished: dict, presets: Path, page: Path, kind: str
) -> None:
    """The held-out loss is computed from its definition."""
    folder, metrics, _ = finished[kind]
    model = keras_hub.models.CausalLM.from_preset(str(presets / kind))
    last = page.read_text(encoding="utf-8")[18_000:]
    ids = np.asarray(model.preprocessor.tokenizer(last))
    pieces = np.stack([ids[i : i + 33] for i in range(0, len(ids) - 32, 32)])
    start = np.full((len(pieces), 1), model.preprocessor.tokenizer.start_token_id)
    tokens = np.concatenate([start, pieces[:, :-1]], axis=1).astype(np.int32)

    def loss() -> float:
        logits = model({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
        log_probabilities = log_softmax(
            ops.convert_to_numpy(logits)[:, 1:].astype(np.float64), axis=-1
        )
        targets = pieces[:, 1:, None]
        return -np.take_along_axis(log_probabilities, targets, axis=-1).mean()

    assert loss() == pytest.approx(metrics["test_loss_before"], rel=1e-5)
    model.backbone.load_lora_weights(str(folder / "model.lora.h5"))
    assert loss() == pytest.approx(metrics["test_loss"], rel=1e-5)
    bits = metrics["test_loss"] / np.log(2) * len(ids) / 2000
    assert metrics["test_bits_per_character"] == pytest.approx(bits)


@KINDS
def test_initial_lora_weights_are_portable(presets: Path, page: Path, kind: str) -> None:
    model = load_causal_lm(str(presets / kind), rank=3, seed=7)
    first, second = model.trainable_variables[:2]
    assert not ops.convert_to_numpy(second).any()
    # The first random stream of GPT-2 belongs to a bias, which is frozen.
    stream = {"gpt2": "lora1", "llama": "lora0"}[kind]
    expected = random.uniform(random.key(7, "weights", stream), (16, 2, 3), -(32**-0.5), 32**-0.5)
    np.testing.assert_array_equal(ops.convert_to_numpy(first), expected)


@KINDS
def test_only_lora_weights_are_trained_and_saved(
    finetune: Finetune, presets: Path, tmp_path: Path, kind: str
) -> None:
    original = digests(presets)
    finetune(kind, tmp_path / "run", epochs=1, steps_per_epoch=2)
    assert digests(presets) == original
    with np.load(tmp_path / "run" / "checkpoints" / "step-000000002.npz") as archive:
        names = [name for name in archive.files if name.startswith("model/")]
    assert len(names) == 2 * 2 * 2
    assert all("/lora_kernel_" in name for name in names)


def test_adapter_disables_dropout_in_training(presets: Path) -> None:
    adapter = CausalLMAdapter(load_causal_lm(str(presets / "gpt2"), rank=4))
    assert adapter.causal_lm.backbone.dropout > 0
    ids = np.arange(32)[None]
    logits, training_logits = (
        ops.convert_to_numpy(adapter(ids, training=training)) for training in (False, True)
    )
    np.testing.assert_array_equal(training_logits, logits)


def test_finished_run_generates_text(finished: dict, finetune: Finetune) -> None:
    folder, metrics, output = finished["gpt2"]
    metrics_again, output_again = finetune("gpt2", folder)
    assert metrics_again == metrics
    assert f"is finished: test loss {metrics['test_loss']:.4f}" in output_again
    assert output_again.split("After training:")[1] == output.split("After training:")[1]
    _, other = finetune("gpt2", folder, prompt="My lord", sampler="greedy")
    assert "After training:\nMy lord" in other


def test_interrupted_run_resumes(
    finished: dict,
    finetune: Finetune,
    first_steps: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe.interrupt_after(15, monkeypatch)
    with pytest.raises(Interrupted, match="Stopped after step 15; the same command with"):
        finetune("llama", tmp_path / "run")
    resumed, _ = finetune("llama", tmp_path / "run")
    assert first_steps == [0, 15, 20]  # the epoch that was begun is finished first
    folder, metrics, _ = finished["llama"]
    for name in ("test_loss_before", "test_loss"):
        assert resumed[name] == pytest.approx(metrics[name], abs=1e-5)
    rows, expected = (
        np.genfromtxt(path / "history.csv", delimiter=",", names=True)
        for path in (tmp_path / "run", folder)
    )
    assert rows.dtype.names == ("epoch", "loss", "val_loss")
    for name in rows.dtype.names:
        np.testing.assert_allclose(rows[name], expected[name], atol=1e-5)


def test_finished_run_trains_for_more_epochs(
    finetune: Finetune, first_steps: list[int], tmp_path: Path
) -> None:
    finetune("gpt2", tmp_path / "run", epochs=1, steps_per_epoch=5)
    extended, _ = finetune("gpt2", tmp_path / "run", epochs=2, steps_per_epoch=5)
    assert first_steps == [0, 5]
    assert extended["train_examples"] == 80
    assert extended["test_loss"] < extended["test_loss_before"]


def test_killed_run_resumes(
    finished: dict,
    finetune: Finetune,
    first_steps: list[int],
    page: Path,
    presets: Path,
    tmp_path: Path,
) -> None:
    """The resumed run reads another copy of the text."""
    folder = tmp_path / "run"
    flags = {**SMALL, "preset": presets / "gpt2", "text": page, "run_dir": folder}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    process = subprocess.Popen(
        [sys.executable, str(RECIPE), *arguments, "--checkpoint-steps=1"],
        env={**os.environ, "PYTHONPATH": str(RECIPE.parents[1])},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    copy = tmp_path / "copy.txt"
    copy.write_bytes(page.read_bytes())
    resumed, _ = finetune("gpt2", folder, text=copy)
    assert first_steps[0] > 0
    assert resumed["test_loss"] == pytest.approx(finished["gpt2"][1]["test_loss"], abs=1e-5)


def test_run_rejects_another_text(finished: dict, finetune: Finetune, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("What's in a name?")
    with pytest.raises(ValueError, match="belongs to another configuration: text_sha256 was"):
        finetune("gpt2", finished["gpt2"][0], text=tmp_path / "other.txt")


@pytest.mark.parametrize("sampler", ["greedy", "beam"])
def test_generate_with_other_samplers(finished: dict, finetune: Finetune, sampler: str) -> None:
    _, output = finetune("llama", finished["llama"][0], sampler=sampler)
    assert "After training:\nThe king" in output


def test_bfloat16_training_reduces_the_loss(finetune: Finetune, tmp_path: Path) -> None:
    metrics, _ = finetune("gpt2", tmp_path / "run", dtype_policy="bfloat16")
    assert metrics["test_loss"] < metrics["test_loss_before"] - 0.1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"rank": 0}, "`rank` must be a whole number of at least 1. Received: rank=0"),
        ({"held_out": 1.0}, r"`held_out` must be a number in \(0, 1\). Received: held_out=1.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"prompt": " "}, "`prompt` must not be empty. Received: ' '"),
        ({"prompt": "long " * 40}, "`prompt` must have fewer tokens than .* a context of 64"),
        ({"length": 64}, "`length` must be at most 63: the model's context is 64 tokens"),
        (
            {"held_out": 0.001},
            r"`length` must be at most \d+: .* \d+ held out. Received: length=32",
        ),
    ],
)
def test_finetune_llm_rejects_invalid_arguments(
    finetune: Finetune, arguments: dict, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        finetune("gpt2", tmp_path / "run", **arguments)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "`text` must be a file that is not empty. Received: text=.*text.txt"),
        (b"", "`text` must be a file that is not empty"),
        (b"fa\xe7ade", "must be UTF-8. Received: text=.* with the byte 0xe7 at offset 2"),
        (b"Too short", "Give a longer text"),
    ],
)
def test_finetune_llm_rejects_invalid_texts(
    finetune: Finetune, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        finetune("gpt2", tmp_path / "run", text=path)


def test_finetune_llm_rejects_invalid_presets(finetune: Finetune, tmp_path: Path) -> None:
    def assert_rejected(problem: str) -> None:
        with pytest.raises(ValueError, match=f"`preset` must be that of a .*{problem}"):
            finetune(str(tmp_path / "preset"), tmp_path / "run")

    assert_rejected(r"preset \(Unknown preset identifier\)")
    (tmp_path / "preset").mkdir()
    assert_rejected("has no config.json")
    sizes = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    bert = keras_hub.models.BertBackbone(**sizes, intermediate_dim=8)
    bert.save_to_preset(str(tmp_path / "preset"))
    assert_rejected("subclass of CausalLM that is compatible with BertBackbone")
    backbone = keras_hub.models.GPT2Backbone(**sizes, intermediate_dim=8)
    backbone.save_to_preset(str(tmp_path / "preset"))
    assert_rejected("`tokenizer.json` doesn't exist")


def test_finetune_llm_rejects_models_without_separate_projections(
    finetune: Finetune, presets: Path, tmp_path: Path
) -> None:
    """GPT-NeoX computes queries, keys and values in one layer."""
    tokenizer = keras_hub.models.GPT2Tokenizer.from_preset(str(presets / "gpt2"))
    model = keras_hub.models.GPTNeoXCausalLM(
        keras_hub.models.GPTNeoXBackbone(**SIZES, num_heads=2),
        keras_hub.models.GPTNeoXCausalLMPreprocessor(
            keras_hub.models.GPTNeoXTokenizer(tokenizer.vocabulary, tokenizer.merges)
        ),
    )
    model.save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(ValueError, match=r"adapts: query_dense, .* a GPTNeoXCausalLM"):
        finetune(str(tmp_path / "preset"), tmp_path / "run")


def test_finetune_llm_requires_keras_hub(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match="`pip install keras-hub` installs KerasHub"):
        finetune("gpt2", tmp_path / "run")


def test_command_line_reports_an_invalid_preset(
    in_process: Callable, page: Path, tmp_path: Path
) -> None:
    result = in_process(RECIPE, "--preset", str(tmp_path), "--text", str(page))
    assert result.returncode == 2
    assert result.stderr.startswith("error: `preset` must be that of a KerasHub CausalLM")


def test_help_documents_every_flag(capsys: pytest.CaptureFixture[str], page: Path) -> None:
    assert "--text-sha256" not in recipe.help_of(Config, capsys)
    arguments = {"preset": "preset", "text": page}
    quick, full = Config(**arguments, quick=True), Config(**arguments)
    assert (quick.epochs, quick.steps_per_epoch) == (5, 10)
    assert (full.epochs, full.steps_per_epoch) == (10, 50)
