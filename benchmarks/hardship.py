"""Campaigns of hard use: kills, small disks, two writers, damaged and forged files, models, calls.

    python -m benchmarks.hardship --out hardship.json
    python -m benchmarks.hardship --campaigns kills --backends jax --kills 20

- kills: `kill -9` at random moments of three recipes on each installed backend; each run is resumed
  until it is finished, and must end with the bits of a run without kills.
- workers: `kill -9` of one of the two workers of `mnist` at random moments on each backend; the run
  must start again by itself, end with the bits of a run without kills, and leave no process.
- disk: no file may grow beyond a random size; the command must end with one line that says so, and
  finish to the same bits once there is room.
- writers: the same command twice at the same time; one writes, the other is refused or finds a
  finished run.
- damage: a random file of a finished run, or a checkpoint, has a bit flipped, is cut, gets other
  bytes, or is removed; it must be refused by name, or not be needed.
- forgeries: a random value of a JSON file is replaced, or a size of a model by another plausible
  one, with as many zeros for weights; the manifest is signed anew. The file must be refused in one
  line, or be valid. Nothing may run, hang or end in a traceback.
- models: a compiled model of every builder is saved after two steps on each backend and loaded on
  each; the losses of the next two steps must be those of going on.
- calls: random public callables with random arguments; each call must return or name the argument,
  within a second.

Every fault is printed. The exit status is 1 if there is one.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tyro

from benchmarks.contenders import ROOT, environment
from zoo import autoencoder, backends, gpt, mlp, registry, text_to_image, unet
from zoo.datasets.tokenizer import Tokenizer
from zoo.diffusion.latents import LatentScaler
from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer
from zoo.files import runs
from zoo.generation import completion
from zoo.parity import Workers
from zoo.training import Adam, Trainer, checkpoints
from zoo.training.callbacks import TrainingState
from zoo.training.run_directory import RunDirectory

CAMPAIGNS = ("kills", "workers", "disk", "writers", "damage", "forgeries", "models", "calls")
SECONDS = 2.0  # limit of opening a file, of the process' CPU time

# Small runs of seconds, in which every step or every few write a checkpoint.
RECIPES: dict[str, tuple[str, ...]] = {
    "mnist": (
        "--model", "mlp", "--epochs", "2", "--train-examples", "400", "--test-examples", "20",
        "--batch-size", "8", "--checkpoint-steps", "2",
    ),
    "next_word": (
        "--cell", "gru", "--vocabulary-size", "300", "--units", "16", "--length", "16",
        "--epochs", "2", "--train-examples", "640", "--checkpoint-steps", "2",
    ),
    "text_to_image": (
        "--image-size", "8", "--channels", "8", "--text-dim", "16", "--epochs", "2",
        "--train-examples", "256", "--batch-size", "8", "--samples", "20",
        "--steps", "4", "--checkpoint-steps", "2",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Count what hard use does to runs, files and functions."""

    campaigns: tuple[str, ...] = CAMPAIGNS
    """Names of the campaigns: kills, workers, disk, writers, damage, forgeries, models, calls."""
    backends: tuple[str, ...] = ()
    """Backends of the runs; by default all that are installed."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Recipes of the runs: mnist, next_word, text_to_image."""
    kills: int = 100
    """Number of kills, over all recipes and backends."""
    worker_kills: int = 5
    """Number of kills of a worker on each backend."""
    disks: int = 10
    """Number of runs on a small disk."""
    writers: int = 10
    """Number of runs with two writers."""
    damaged: int = 2000
    """Number of damaged files."""
    forged: int = 250
    """Number of forged files."""
    calls: int = 10_000
    """Number of random calls."""
    seed: int = 0
    """Seed of all random choices."""
    out: Path | None = None
    """JSON file of the counts; by default none."""

    def __post_init__(self) -> None:
        if unknown := set(self.campaigns) - set(CAMPAIGNS):
            raise SystemExit(
                f"`campaigns` must be among {', '.join(CAMPAIGNS)}. Received: {', '.join(unknown)}"
            )


@dataclass
class Outcome:
    """Counts of a campaign, and the text of each fault."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


# ------------------------------------------------------------------ runs in other processes


class Runs:
    """Runs of one recipe on one backend, compared with one that nothing disturbs.

    Args:
        recipe: Name of the recipe.
        backend: Backend of the runs.
        folder: Folder of the run directories.
        classifier: Finished run of `mnist`, for `text_to_image`.
        *flags: Further flags of the command.
    """

    def __init__(self, recipe: str, backend: str, folder: Path, classifier: Path, *flags: str):
        self.folder = folder / f"{recipe}-{backend}"
        self.folder.mkdir(parents=True)
        extra = ("--classifier", str(classifier)) if recipe == "text_to_image" else ()
        self._command = [
            sys.executable, "-m", "zoo", "train", recipe, *RECIPES[recipe], *extra, *flags,
            "--deterministic", "--quiet", "--run-dir",
        ]  # fmt: skip
        self._environment = environment(backend)
        started = time.monotonic()
        self.whole = self.folder / "whole"
        status, errors = self.finish(self.whole)
        if status:
            raise RuntimeError(f"{recipe} on {backend} fails undisturbed: {errors}")
        self.seconds = time.monotonic() - started

    def start(self, run_dir: Path, largest_file: int | None = None) -> subprocess.Popen[str]:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.Popen(
            [*self._command, str(run_dir)], env=self._environment, cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limit,
        )  # fmt: skip

    def finish(self, run_dir: Path) -> tuple[int, str]:
        process = self.start(run_dir)
        errors = process.communicate()[1]
        return process.returncode, errors

    def differences(self, run_dir: Path) -> list[str]:
        """Names of what differs from the undisturbed run."""
        first, second = weights(self.whole), weights(run_dir)
        names = [name for name in first if not np.array_equal(first[name], second.get(name))]
        if (self.whole / "history.csv").read_text() != (run_dir / "history.csv").read_text():
            names.append("history.csv")
        return names


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    """The arrays of `model.weights.h5` by name."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(run_dir / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]}) if hasattr(item, "dtype") else None
        )
    return arrays


def kill(series: Runs, count: int, seed: int) -> Outcome:
    """Kills runs at random moments and resumes them until they are finished."""
    moments, outcome = random.Random(seed), Outcome()
    finished, run_dir = 0, series.folder / "kill-0"
    while outcome.counts["kills"] < count:
        process = series.start(run_dir)
        try:
            process.communicate(timeout=moments.uniform(0.1, 1.1) * series.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            outcome.counts["kills"] += 1
            continue
        finished += 1
        run_dir = series.folder / f"kill-{finished}"
    for number in range(finished + 1):
        check_finished(series, series.folder / f"kill-{number}", outcome)
    return outcome


def check_finished(series: Runs, run_dir: Path, outcome: Outcome) -> None:
    """Resumes a run to its end and compares it with the undisturbed one."""
    status, errors = series.finish(run_dir)
    if status:
        outcome.faults.append(f"{run_dir.name} of {series.folder.name} does not go on: {errors}")
        return
    outcome.counts["runs"] += 1
    if different := series.differences(run_dir):
        outcome.faults.append(f"{run_dir.name} of {series.folder.name} differs: {different[0]}")
    else:
        outcome.counts["equal runs"] += 1


def kill_workers(series: Runs, count: int, seed: int) -> Outcome:
    """Kills one of the workers of each run at a random moment, from which the run goes on."""
    choices, outcome = random.Random(seed), Outcome()
    number = 0
    while outcome.counts["kills"] < count:
        run_dir = series.folder / f"workers-{number}"
        number += 1
        process = series.start(run_dir)
        moment = choices.uniform(0.1, 1.0) * series.seconds
        rank = choices.randrange(2)
        time.sleep(moment)
        workers = [int(pid) for pid in _children(process.pid)]
        is_hit = len(workers) == 2  # else they have not begun yet, or have ended
        if is_hit:
            os.kill(workers[rank], signal.SIGKILL)
            outcome.counts["kills"] += 1
        errors = process.communicate()[1]
        what = f"seed {seed}, {series.folder.name}, worker {rank} after {moment:.1f} s"
        print(f"  {what}: {'killed' if is_hit else 'not there'}", flush=True)
        if process.returncode or (is_hit and "Starting again" not in errors):
            outcome.faults.append(f"{what}: status {process.returncode}, {errors}")
        elif different := series.differences(run_dir):
            outcome.faults.append(f"{what}: differs in {different[0]}")
        else:
            outcome.counts["equal runs"] += is_hit
        if orphans := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
            outcome.faults.append(f"{what}: processes {orphans} run on")
    return outcome


def _children(process: int) -> list[str]:
    """Numbers of the processes that a process has started, on Linux."""
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:  # it has ended
        return []


def fill_disk(series: Runs, count: int, seed: int) -> Outcome:
    """Limits the size of the files that a run can write, and resumes it without the limit."""
    sizes, outcome = random.Random(seed), Outcome()
    for number in range(count):
        run_dir = series.folder / f"disk-{number}"
        process = series.start(run_dir, largest_file=int(10 ** sizes.uniform(1, 6)))
        errors = process.communicate()[1]
        if process.returncode == 0:
            outcome.counts["large enough"] += 1
        elif process.returncode == 1 and errors.count("\n") == 1 and "Could not write" in errors:
            outcome.counts["named"] += 1
        else:
            outcome.faults.append(f"disk, {series.folder.name}: {process.returncode}, {errors}")
        check_finished(series, run_dir, outcome)
    return outcome


def write_twice(series: Runs, count: int, seed: int) -> Outcome:
    """Starts the same command twice, with the same run directory."""
    delays, outcome = random.Random(seed), Outcome()
    for number in range(count):
        run_dir = series.folder / f"writers-{number}"
        first = series.start(run_dir)
        time.sleep(delays.uniform(0.0, 0.5) * series.seconds)
        processes = first, series.start(run_dir)
        errors = [process.communicate()[1] for process in processes]
        refused = [text for text, process in zip(errors, processes) if process.returncode]
        outcome.counts["refused"] += len(refused)
        if len(refused) == 2 or any("in use by process" not in text for text in refused):
            outcome.faults.append(f"writers, {series.folder.name}: {errors}")
        check_finished(series, run_dir, outcome)
    return outcome


# ------------------------------------------------------------------ files

SPEC = DiffusionSpec(num_steps=20)
CLASSIFIER = {
    "recipe": "mnist", "dataset": "mnist", "model": "mlp", "mean": [0.1307], "std": [0.3081],
}  # fmt: skip


def write_runs(folder: Path) -> None:
    """Writes finished runs of untrained models: text, prompts, latents, classifier."""

    def begin(name: str) -> RunDirectory:
        run = RunDirectory(folder / name, {"recipe": name, "epochs": 2}, "epochs")
        run.write_config()
        return run

    run = begin("text")
    tokenizer = Tokenizer.train(["to be, or not to be"], 20)
    run.write("vocabulary.json", tokenizer.to_json())
    run.save_model(gpt(len(tokenizer), 8, 1, 2, 8))
    run.write_metrics({"test_loss": 3.0})

    run = begin("prompts")
    words = WordTokenizer(["a seven", "the digit 3"])
    model = text_to_image(
        len(words), words.max_length, hidden_dim=8, input_shape=(4, 4, 1), channels=(8,),
        num_steps=20,
    )  # fmt: skip
    DiffusionPipeline(model, SPEC, words).save(run)
    run.write_metrics({"prompt_accuracy": 0.1})

    run = begin("latents")
    scaler = LatentScaler(autoencoder((8, 8, 1), (8, 16)), (0.5, -0.5), (2.0, 3.0))
    model = unet((4, 4, 2), (8,), num_steps=20)
    DiffusionPipeline(model, SPEC, latent_scaler=scaler).save(run)
    run.write_metrics({"frechet_distance": 100.0})

    run = begin("classifier")
    run.save_model(registry.get_classifier("mlp").build(num_classes=10, input_shape=(28, 28, 1)))
    run.write_metrics(CLASSIFIER)


def sign(folder: Path) -> None:
    """Writes a manifest that fits the files as they are, as a forger would."""
    (folder / runs.MANIFEST).write_bytes(runs.describe(folder))


def open_run(run_dir: Path) -> None:
    """Reads a finished run as the commands and its recipe do."""
    if (run_dir / "vocabulary.json").exists() or run_dir.name == "text":
        completion.load_run(run_dir)
    elif run_dir.name == "classifier":
        runs.load_model(run_dir)
    else:
        DiffusionPipeline.load(run_dir)
    with RunDirectory(run_dir, {"recipe": run_dir.name, "epochs": 2}, "epochs") as run:
        if run.metrics is None:
            raise ValueError(f"{run_dir} is not finished")


def attempt(path: Path, read: Callable[[], None], outcome: Outcome, harmless: str) -> None:
    """Reads a changed file; it must be refused in one line and in time, or be harmless."""
    started = time.process_time()
    try:
        read()
        outcome.counts[harmless] += 1
    except (ValueError, OSError) as error:
        text = str(error)
        if "\n" in text or len(text) > 1500:
            outcome.faults.append(f"{path}: not one line: {text[:300]}")
        else:
            outcome.counts["refused"] += 1
    except Exception as error:
        outcome.faults.append(f"{path}: {type(error).__name__}: {error}")
    if (seconds := time.process_time() - started) > SECONDS:
        outcome.faults.append(f"{path}: {seconds:.1f} s")


def damage_file(path: Path, choices: random.Random) -> str:
    """Changes a file in a random way and returns how."""
    content = bytearray(path.read_bytes())
    kind = choices.choice(("bit", "cut", "bytes", "longer", "removed"))
    position = choices.randrange(max(1, len(content)))
    if kind == "bit" and content:
        content[position] ^= 1 << choices.randrange(8)
    elif kind == "cut":
        content = content[:position]
    elif kind == "bytes":
        content[position : position + 64] = choices.randbytes(len(content[position:][:64]))
    elif kind == "longer":
        content += choices.randbytes(64)
    if kind == "removed":
        path.unlink()
    else:
        path.write_bytes(content)
    return kind


class Training:
    """A small training with two checkpoints, to be restored from damaged ones."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._trainer = Trainer(mlp((4,), 3, (8,)))
        self._trainer.compile(Adam(1e-2), "mean_squared_error")
        self._trainer.optimizer.build(self._trainer.trainable_variables)
        self._states: dict[int | None, list[np.ndarray]] = {None: self._values()}
        for step in (1, 2):
            for variable in self._trainer.trainable_variables:
                variable.assign(np.random.default_rng(step).normal(size=variable.shape))
            state = TrainingState(step=step)
            progress = {k: v for k, v in vars(state).items() if k != "step"}
            checkpoints.save(folder, step, progress, **self._parts())
            self._states[step] = self._values()

    def _parts(self) -> dict[str, Any]:
        return {"model": self._trainer, "optimizer": self._trainer.optimizer}

    def _values(self) -> list[np.ndarray]:
        return [np.array(keras.ops.convert_to_numpy(v.value)) for v in self._trainer.variables]

    def check(self, folder: Path) -> str:
        """Restores from a folder; returns which checkpoint, or raises ValueError if none is."""
        for variable, value in zip(self._trainer.variables, self._states[None]):
            variable.assign(value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            state = checkpoints.restore(folder, TrainingState, **self._parts())
        step = None if state is None else state.step
        if not all(map(np.array_equal, self._values(), self._states[step])):
            raise RuntimeError(f"The variables are not those of step {step}")
        return f"restored from step {step}"


def damage(config: Config, folder: Path) -> Outcome:
    """Damages files of finished runs, and checkpoints."""
    choices, outcome = random.Random(config.seed), Outcome()
    write_runs(folder / "runs")
    training = Training(folder / "checkpoints")
    members = [p for p in sorted((folder / "runs").rglob("*.*")) if p.suffix in (".json", ".h5")]
    stored = sorted(training.folder.glob("*.npz"))
    for number in range(config.damaged):
        path = choices.choice(stored if number % 4 == 0 else members)
        copy = folder / "copy" / path.parent.name
        shutil.copytree(path.parent, copy, ignore=shutil.ignore_patterns(".lock*"))
        kind = damage_file(copy / path.name, choices)
        original = path.exists() and (copy / path.name).exists()
        same = original and path.read_bytes() == (copy / path.name).read_bytes()
        outcome.counts["damaged"] += 1

        def read(copy: Path = copy, path: Path = path, same: bool = same) -> None:
            if path in stored:
                outcome.counts[training.check(copy)] += 1
            else:
                open_run(copy)
                if not same:
                    raise RuntimeError("A damaged file was taken for a whole one")

        whole = "checkpoints restored" if path in stored else f"harmless ({kind})"
        attempt(copy / path.name, read, outcome, whole)
        shutil.rmtree(folder / "copy")
    return outcome


def nonsense(marker: Path) -> tuple[Any, ...]:
    """Values for a forged file; some would run code where it is evaluated or imported."""
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    return (
        None, True, -1, 0, 10**9, 10**30, 1.5, -0.0, 1e308, "", "0", "x" * 10**4, [], {}, deep,
        [1] * 10**4, {"class_name": "Lambda", "config": {"function": "os.system"}}, "os.system",
        f"__import__('pathlib').Path({str(marker)!r}).touch()", "../../etc/passwd", "\ud800",
        {"$ref": "#"}, "lambda x: x", "keras.utils.get_file",
    )  # fmt: skip


def forge_value(content: Any, choices: random.Random, value: Any) -> Any:
    """Replaces, adds or removes a value at a random place of a JSON document."""
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        keys = item if isinstance(item, dict) else range(len(item))
        for key in list(keys):
            places.append((item, key))
            if isinstance(item[key], dict | list):
                walk(item[key])

    walk(content)
    container, key = choices.choice(places)
    action = choices.choice(("replace", "replace", "replace", "remove", "add"))
    if action == "remove":
        del container[key]
    elif action == "add" and isinstance(container, dict):
        container["function"] = value
    else:
        container[key] = value
    return content


SIZES = (1, 2, 3, 7, 8, 16, 64, 100, 128, 300, 900, 4096, 10**5)  # of a model that may exist
DEPTHS = ("num_layers", "num_blocks", "channels", "hidden_units")
MOST_ZEROS = 4 * 10**6  # numbers of a forged weights file, 16 MB


def forge_model(path: Path, choices: random.Random) -> None:
    """Replaces a size in a `model.json`, and the weights by as many zeros as the model then has."""
    document = json.loads(path.read_text("utf-8"))
    arguments, size = document["arguments"], choices.choice(SIZES)
    names = [name for name, value in arguments.items() if type(value) in (int, list)]
    deep = [name for name in names if name in DEPTHS]  # a deep model has few weights, but is slow
    name = choices.choice(deep if choices.random() < 0.5 else names)
    if isinstance(arguments[name], list):
        arguments[name] = [choices.choice(arguments[name])] * min(size, 1000)
    else:
        arguments[name] = size
    path.write_text(json.dumps(document), "utf-8")
    try:
        count = registry.get(document["builder"]).parameter_count(**arguments)
    except ValueError:  # the size is none
        return
    if count > MOST_ZEROS:
        return
    number = min(choices.choice((1, 10, 1000)), count)
    with h5py.File(path.with_suffix(".weights.h5"), "w") as file:
        for index, zeros in enumerate(np.array_split(np.zeros(count, np.float32), number)):
            file[f"array{index}"] = zeros


def forge(config: Config, folder: Path) -> Outcome:
    """Replaces values of JSON files, and the weights of models, with a manifest that fits."""
    choices, outcome = random.Random(config.seed), Outcome()
    write_runs(folder / "runs")
    marker = folder / "code-has-run"
    members = [p for p in sorted((folder / "runs").rglob("*.json")) if p.name != runs.MANIFEST]
    for _ in range(config.forged):
        path = choices.choice(members)
        copy = folder / "copy" / path.parent.name
        shutil.copytree(path.parent, copy, ignore=shutil.ignore_patterns(".lock*"))
        content = json.loads(path.read_text("utf-8"))
        if "builder" in content and choices.random() < 0.7:
            forge_model(copy / path.name, choices)
        else:
            forged = forge_value(content, choices, choices.choice(nonsense(marker)))
            (copy / path.name).write_text(json.dumps(forged), "utf-8")
        sign(copy)
        outcome.counts["forged"] += 1
        attempt(copy / path.name, lambda copy=copy: open_run(copy), outcome, "valid")
        if marker.exists():
            outcome.faults.append(f"{path.name} has run code")
            marker.unlink()
        shutil.rmtree(folder / "copy")
    return outcome


# ------------------------------------------------------------------ campaigns


def disturb(config: Config, folder: Path) -> dict[str, Outcome]:
    """The campaigns on runs in other processes: kills, disk, writers; two runs at a time."""
    names = [name for name in ("kills", "disk", "writers") if name in config.campaigns]
    if not names:
        return {}
    totals = {"kills": config.kills, "disk": config.disks, "writers": config.writers}
    work = {"kills": kill, "disk": fill_disk, "writers": write_twice}
    pairs = [
        (recipe, backend)
        for backend in config.backends or backends.installed()
        for recipe in config.recipes
    ]
    write_runs(folder / "runs")

    def campaign(number: int) -> dict[str, Outcome]:
        try:
            series = Runs(*pairs[number], folder, folder / "runs" / "classifier")
        except RuntimeError as error:
            return {name: Outcome(faults=[str(error)]) for name in names}
        outcomes = {}
        for name in names:
            share, rest = divmod(totals[name], len(pairs))
            outcomes[name] = work[name](series, share + (number < rest), config.seed + number)
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(campaign, range(len(pairs))))
    return {
        name: Outcome(
            sum((part[name].counts for part in parts), Counter()),
            [fault for part in parts for fault in part[name].faults],
        )
        for name in names
    }


def disturb_workers(config: Config, folder: Path) -> Outcome:
    """The campaign on runs of two workers."""
    whole = Outcome()
    for number, backend in enumerate(config.backends or backends.installed()):
        series = Runs("mnist", backend, folder, folder, "--devices", "2")
        outcome = kill_workers(series, config.worker_kills, config.seed + number)
        whole.counts += outcome.counts
        whole.faults += outcome.faults
    return whole


def exchange(folder: Path) -> Outcome:
    """Saves models of every builder on each backend, and trains them on after loading on each."""
    from tests.parity import saving  # needs pytest

    with Workers() as workers:
        results = saving.exchange(
            workers, folder, saving.train_and_save, saving.load_and_train, saving.NAMES
        )
    differences = saving.differences(*results)
    return Outcome(
        Counter({"models loaded": len(differences)}),
        [f"{name}: the loss differs by {d:.1e}" for name, d in differences.items() if not d < 1e-9],
    )


def call(config: Config) -> Outcome:
    """Calls public functions with random arguments."""
    from tests import fuzz  # needs Hypothesis

    result = fuzz.fuzz(config.calls, config.seed)
    counts = {"calls": config.calls, "returned": result.returned, "refused": result.refused}
    return Outcome(
        Counter(counts), [f"{text}: {reason}" for text, reason in result.failures.items()]
    )


def main(config: Config) -> dict[str, Outcome]:
    """Runs the campaigns; prints and returns their counts and faults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes = disturb(config, folder / "disturb")
        if "workers" in config.campaigns:
            outcomes["workers"] = disturb_workers(config, folder / "workers")
        if "damage" in config.campaigns:
            outcomes["damage"] = damage(config, folder / "damage")
        if "forgeries" in config.campaigns:
            outcomes["forgeries"] = forge(config, folder / "forgeries")
        if "models" in config.campaigns:
            (folder / "models").mkdir()
            outcomes["models"] = exchange(folder / "models")
        if "calls" in config.campaigns:
            outcomes["calls"] = call(config)
    for name, outcome in outcomes.items():
        counts = ", ".join(f"{count:,} {what}" for what, count in outcome.counts.items())
        print(f"{name}: {counts}, {len(outcome.faults)} faults", flush=True)
        for fault in outcome.faults:
            print(f"  {fault[:1000]}", flush=True)
    if config.out is not None:
        content = {n: {**o.counts, "faults": o.faults} for n, o in outcomes.items()}
        config.out.write_text(json.dumps(content, indent=1) + "\n")
    return outcomes


if __name__ == "__main__":
    sys.exit(int(any(outcome.faults for outcome in main(tyro.cli(Config)).values())))
