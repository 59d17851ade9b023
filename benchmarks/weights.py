"""Makes a weights folder of a finished run, with a card, and measures what is stored.

    KERAS_BACKEND=jax python -m benchmarks.weights pack runs/mlp mlp-mnist --machine "2-core CPU"
    KERAS_BACKEND=torch python -m benchmarks.weights evaluate mlp-mnist
    python -m benchmarks.weights mlp-mnist
    python -m benchmarks.weights measure

`pack` writes the folder and the metrics of its files on the running backend. `evaluate` adds those
of another backend, with the same computation: the card tells what differs. A name alone, short for
`train`, runs the card's command again and compares the metrics. `measure` writes the size of the
wheel, and the time and memory that loading takes, to results/weights.json;
`python -m benchmarks.results` then writes the book's table.
"""

import dataclasses
import importlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tyro
from pydantic import JsonValue

from zoo import Trainer, backends, cli, datasets, tasks
from zoo.backends import backend
from zoo.datasets import parallel_text, shakespeare
from zoo.datasets.parallel_text import LengthBuckets
from zoo.datasets.token_windows import TokenWindows
from zoo.diffusion.metrics import FeatureExtractor, evaluate_samples, to_uint8
from zoo.diffusion.prompts import ClassPrompts, prompts_by_class
from zoo.evaluation import classification, translation
from zoo.evaluation.language_model import DocumentScorer, bits_per_character, loss_and_perplexity
from zoo.files import documents, tensors
from zoo.files.runs import FinishedRun
from zoo.files.saved import describe_files
from zoo.files.weights import (
    CARD,
    PACKED,
    PART,
    Card,
    WeightsFolder,
    open_saved,
    packed_names,
    shown,
)
from zoo.tasks import ImageClassifier, ImageSampler, NextWord, Task, TextCompletion, Translator
from zoo.training import Batches, CrossEntropy
from zoo.training.losses import cross_entropy

ROOT = Path(__file__).parents[1]
# What a model's task needs besides the weights.
COMPANIONS = ("vocabulary.json", "diffusion.json", "prompts.json", "autoencoder.json")
DATA = {
    "mnist": ("60,000 images for training, 10,000 for the metrics", "CC-BY-SA-3.0"),
    "shakespeare": ("40 works for training and validation, two for the metrics", "public domain"),
    "eng-spa": ("28,652 verses for training, four books for the metrics", "public domain"),
}
CLASSIFIER = "cnn_48x48-mnist"  # for the metrics of samples
SAMPLES = 1000
TEXT_DATA = {"shakespeare": "shakespeare", "next_word": "shakespeare", "translate": "eng-spa"}


# ------------------------------------------------------------------ metrics


def metrics_of_classifier(task: ImageClassifier, part: bool) -> dict[str, float]:
    """Loss and accuracy on the test images, or on the first of them."""
    assert task.card is not None
    name, count = task.card.data.name, PART["images"] if part else None
    data = datasets.load(name, task.size, train_examples=1, test_examples=count)
    probabilities = task.probabilities(data.x_test)
    loss, accuracy = classification.loss_and_accuracy(np.log(probabilities), data.y_test)
    return {"test_loss": loss, "test_accuracy": accuracy}


def metrics_of_next_word(task: NextWord, part: bool) -> dict[str, float]:
    """Loss and perplexity on the test works, or on their first tokens."""
    ids = np.asarray(shakespeare.encode_split(task.tokenizer)["test"])
    loss = DocumentScorer(task.model).evaluate(ids[: PART["tokens"] if part else None])
    return loss_and_perplexity("test", loss)


def metrics_of_completion(task: TextCompletion, part: bool) -> dict[str, float]:
    """Loss in nats a token and bits a character on the test text, or its first tokens."""
    assert task.card is not None
    scheme = "first_90" if "--split first_90" in task.card.training.command else "works"
    ids = np.asarray(shakespeare.encode_split(task.tokenizer, scheme=scheme)["test"])
    ids = ids[: PART["tokens"] if part else None]
    trainer = Trainer(task.model)
    trainer.compile(loss=CrossEntropy())
    windows = TokenWindows(ids, int(task.card.arguments["max_length"]))  # type: ignore[arg-type]
    loss = trainer.evaluate(Batches(windows), verbose=0)
    return {
        "test_loss": loss,
        "test_bits_per_character": bits_per_character(loss, ids, task.tokenizer),
    }


def metrics_of_translation(task: Translator, part: bool) -> dict[str, float]:
    """Loss in nats a token, BLEU and chrF on the test verses, or on a few of them."""
    assert task.card is not None
    pairs = parallel_text.split("test")
    if part:
        pairs = [pairs[int(index)] for index in np.linspace(0, len(pairs) - 1, PART["pairs"])]
    context = int(task.card.arguments["max_length"])  # type: ignore[arg-type]
    buckets = LengthBuckets(*parallel_text.encoded(pairs, task.tokenizer), 1024, context)
    trainer = Trainer(task.model)
    nats = keras.metrics.MeanMetricWrapper(cross_entropy, name="nats")
    trainer.compile(loss=CrossEntropy(), weighted_metrics=[nats])
    scores = trainer.evaluate(Batches(buckets, batch_size=1), verbose=0, return_dict=True)
    hypotheses = task.translate([pair.source for pair in pairs], verbose=not part)
    references = [pair.target for pair in pairs]
    return {"test_loss": scores["nats"], **translation.scores(hypotheses, references)}


def metrics_of_samples(task: ImageSampler, part: bool, classifier: str) -> dict[str, float]:
    """The metrics of 1,000 samples in 50 steps, or of a few in fewer beside a few test images."""
    assert task.card is not None
    tokenizer = task.pipeline.tokenizer
    classes = np.arange(PART["samples"] if part else SAMPLES) % 10
    options = {"steps": PART["steps"]} if part else {}
    prompts: Any = len(classes)
    if tokenizer is not None:
        prompts = ClassPrompts(tokenizer, prompts_by_class()).prompts_for(classes)
    images = to_uint8(task.sample(prompts, verbose=not part, **options))
    real = PART["real"] if part else None
    data = datasets.load(task.card.data.name, images.shape[1], test_examples=real)
    extractor = FeatureExtractor.load(classifier, data)
    scores = evaluate_samples(extractor, images, None if tokenizer is None else classes, data)
    return {name: value for name, value in scores.items() if value is not None}


def compute_metrics(
    task: Task, part: bool = False, classifier: str = CLASSIFIER
) -> dict[str, float]:
    """Computes the metrics of trained weights on test data of the package.

    Args:
        task: Loaded weights folder.
        part: Use a fixed part of the data, which takes seconds.
        classifier: Classifier for the metrics of samples: as `source` of `zoo.load`.
    """
    if isinstance(task, ImageSampler):
        return metrics_of_samples(task, part, classifier)
    kinds: dict[type[Task], Any] = {
        ImageClassifier: metrics_of_classifier, NextWord: metrics_of_next_word,
        TextCompletion: metrics_of_completion, Translator: metrics_of_translation,
    }  # fmt: skip
    return dict(kinds[type(task)](task, part))


# ------------------------------------------------------------------ commands


def pack(
    run_dir: tyro.conf.Positional[Path],
    name: tyro.conf.Positional[str],
    machine: str,
    limits: list[str] | None = None,
    storage_dtype: tensors.StorageDType = "float32",
    commit: str | None = None,
    classifier: str = CLASSIFIER,
    into: Path = PACKED,
) -> Card:
    """Write a weights folder of a finished run.

    Args:
        run_dir: Directory of the run.
        name: Name of the weights, model-data.
        machine: Hardware of the training.
        limits: Known limits of the model.
        storage_dtype: Type of the stored numbers. With float16 the metrics must be those of the
            run, in the digits that are shown.
        commit: Commit that the run was made with; by default that of the working tree.
        classifier: Classifier for the metrics of samples.
        into: Folder of all weights folders.
    """
    run = FinishedRun(run_dir, needs=("model.json", "model.weights.h5"))
    run.verify()
    results = run.read("metrics.json", dict[str, JsonValue])
    config = run.read("config.json", dict[str, JsonValue])
    recipe = str(config["recipe"])
    model = run.load_model()
    document = run.document()
    contents = {"model.safetensors": tensors.save_weights(model, storage_dtype)}
    for companion in COMPANIONS:
        if companion in run:
            contents[companion] = run.read_bytes(companion, 1 << 24)
    if "autoencoder.json" in contents:
        autoencoder = run.load_model("autoencoder")
        contents["autoencoder.safetensors"] = tensors.save_weights(autoencoder, storage_dtype)
    data = str(config.get("dataset", TEXT_DATA.get(recipe)))
    split, licence = DATA[data]
    labels = [str(number) for number in range(10)] if data == "mnist" else None
    is_classifier = "mean" in results
    card = {
        "builder": document.builder,
        "arguments": document.arguments,
        "parameters": model.count_params(),
        "storage_dtype": storage_dtype,
        "files": {},
        "data": {"name": data, "split": split, "licence": licence},
        "normalization": {key: results[key] for key in ("mean", "std")} if is_classifier else None,
        "labels": results.get("class_names", labels) if is_classifier else None,
        "training": {
            "command": command_of(recipe, config),
            "seed": config["seed"],
            "commit": commit or _git("rev-parse", "HEAD"),
            "backend": f"{results['backend']} {results['backend_version']}",
            "keras": results["keras_version"],
            "seconds": round(float(str(results["wall_seconds"])), 1),
            "machine": machine,
        },
        "metrics": {},
        "limits": limits or [],
        "licence": licence if licence != "public domain" else "Apache-2.0",
    }
    with tempfile.TemporaryDirectory() as temporary:  # no folder without metrics is left
        folder = Path(temporary) / name
        folder.mkdir()
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        card["files"] = describe_files(folder / file for file in sorted(contents))
        (folder / CARD).write_bytes(documents.dump(card))
        expected = results if storage_dtype == "float16" else None
        complete = evaluate(name, classifier, folder.parent, expected)
        shutil.copytree(folder, into / name, dirs_exist_ok=True)
    return complete


def evaluate(
    name: tyro.conf.Positional[str],
    classifier: str = CLASSIFIER,
    into: Path = PACKED,
    expected: tyro.conf.Suppress[Mapping[str, Any] | None] = None,
) -> Card:
    """Add the metrics of weights on the running backend to their card.

    Args:
        name: Name of the weights.
        classifier: Classifier for the metrics of samples.
        into: Folder of all weights folders.
        expected: Metrics of the run, which the stored weights must have.
    """
    folder = into / name
    task = tasks.load(folder)
    metrics = {
        "whole": compute_metrics(task, False, classifier),
        "part": compute_metrics(task, True, classifier),
    }
    for key, value in metrics["whole"].items():
        if expected and key in expected and shown(key, expected[key]) != shown(key, value):
            raise ValueError(
                f"`storage_dtype` must leave the metrics as they are. Received: float16, with "
                f"{key}={shown(key, value)} instead of {shown(key, expected[key])}. Store float32"
            )
    content = WeightsFolder(folder).card.model_dump()
    content["metrics"] = dict(sorted({**content["metrics"], backends.name: metrics}.items()))
    (folder / CARD).write_bytes(documents.dump(content))
    print(f"{name} on {backends.name} {backend.version()}: {metrics}")
    return WeightsFolder(folder).card


def train(name: tyro.conf.Positional[str], run_dir: Path | None = None) -> None:
    """Run the command of a card again, and print the metrics beside those of the card.

    Args:
        name: Name of the weights.
        run_dir: Directory of the new run; by default runs/NAME.
    """
    saved = open_saved(name, argument="name")
    if not isinstance(saved, WeightsFolder):
        raise ValueError(f"`name` must be that of weights with a card. Received: name={name!r}")
    run_dir = run_dir or Path("runs", saved.folder.name)
    _, script, *flags = shlex.split(saved.card.training.command)
    command = [sys.executable, str(ROOT / script), *flags, "--run-dir", str(run_dir)]
    if status := subprocess.run(command, check=False).returncode:
        raise ValueError(f"The recipe ended with status {status}")
    results = FinishedRun(run_dir).read("metrics.json", dict[str, JsonValue])
    for backend_name, metrics in saved.card.metrics.items():
        for key, value in metrics.whole.items():
            if key in results:
                result = shown(key, float(str(results[key])))
                print(f"{key}: {result}, in the card {shown(key, value)} ({backend_name})")


PROBE = """
import json, resource, sys, time
import zoo
import zoo.tasks

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

before, start = peak(), time.perf_counter()
zoo.load(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({"load_seconds": round(seconds, 2), "mebibytes": round(peak() - before)}))
"""


def measure(names: list[str] | None = None, out: Path = ROOT / "results" / "weights.json") -> None:
    """Write the size of the wheel, and what loading each weights folder takes in a new process.

    Args:
        names: Names of the weights; by default all.
        out: File for the results.
    """
    with tempfile.TemporaryDirectory() as temporary:
        build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", temporary, str(ROOT)]
        subprocess.run([sys.executable, *build], check=True)
        (wheel,) = Path(temporary).iterdir()
        results: dict[str, Any] = {"wheel_bytes": wheel.stat().st_size}
    results["backend"] = f"{backends.name} {backend.version()}"
    results["weights"] = {}
    for name in names or packed_names():
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, name],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        results["weights"][name] = json.loads(probe.stdout)
    out.write_text(json.dumps(results, indent=1) + "\n")


def command_of(recipe: str, config: Mapping[str, Any]) -> str:
    """The command line of a recipe with the flags that its configuration needs."""
    defaults = importlib.import_module(f"recipes.{recipe}").Config()
    flags = []
    for field in dataclasses.fields(defaults):
        value = config.get(field.name, default := getattr(defaults, field.name))
        if value == default or (isinstance(value, list) and tuple(value) == default):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            flags.append(shlex.join([f"--{flag}", *map(str, values)]))
    return " ".join([f"python recipes/{recipe}.py", *flags])


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Runs a command of this module."""
    commands: dict[str, Any] = {
        "pack": pack, "evaluate": evaluate, "train": train, "measure": measure
    }  # fmt: skip
    arguments = sys.argv[1:]
    if arguments[:1] and arguments[0] in packed_names():
        arguments = ["train", *arguments]
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__, args=arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
