"""Collects measured results in `results/` and writes the book's tables from them.

    python -m benchmarks.results cpu-2-cores --runs runs/a runs/b
    python -m benchmarks.results

Each machine has one file, results/MACHINE.json, with a description that is written by hand.
results/speed-NAME.json is the output of benchmarks/all.py, results/accuracy.json that of
benchmarks/accuracy.py, results/export.json that of benchmarks/export.py, results/gpu-NAME.json that
of benchmarks/gpu.py, and results/scaling.json that of benchmarks/scaling.py.
results/references.json has figures of other programs, by hand. Without a machine only the tables
are written, and zoo/data/catalogue.json, which `zoo list` and `zoo --help` print.
"""

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import zoo_command
from benchmarks import scaling
from benchmarks.accuracy import HEAD, cells
from benchmarks.all import share_of_limit
from benchmarks.contenders import quartiles, ratio
from zoo.__main__ import catalogue
from zoo.export import FORMATS
from zoo.files.weights import PACKED, WeightsFolder, packed_names

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    """Add results to a machine's file, and write the book's tables."""

    machine: tyro.conf.Positional[str | None] = None
    """Name of the file in results/, without its ending; by default only the tables are written."""
    runs: tuple[Path, ...] = ()
    """Finished run directories; each replaces an earlier run of the same settings."""

    def __post_init__(self) -> None:
        if self.machine is None and self.runs:
            raise SystemExit("`machine` must be given with results. Received: machine=None")


# ------------------------------------------------------------------ results/MACHINE.json

ORDER = ("recipe", "model", "cell", "train_examples", "epochs", "backend")


def read_run(folder: Path) -> dict[str, Any]:
    """Settings, metrics and history of a run."""
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    if len(metrics["backends"]) > 1:
        raise SystemExit(f"{folder} was trained on several backends: {metrics['backends']}")
    with open(folder / "history.csv", newline="") as file:
        rows = [{k: round(float(v), 6) for k, v in row.items()} for row in csv.DictReader(file)]
    return {"settings": config, **metrics, "history": rows}


def identity(run: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Settings and backend of a run; two runs with the same ones are the same measurement."""
    settings = {name: value for name, value in run["settings"].items() if value is not None}
    return settings, run["backend"]


def update(machine: str, config: Config) -> None:
    """Adds runs to a machine's file."""
    path = ROOT / "results" / f"{machine}.json"
    content = json.loads(path.read_text())

    def sort_key(run: dict[str, Any]) -> list[Any]:
        return [run.get(name, "") for name in ORDER]

    for folder in config.runs:
        run = read_run(folder)
        others = [other for other in content["runs"] if identity(other) != identity(run)]
        content["runs"] = sorted([*others, run], key=sort_key)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def machines() -> list[dict[str, Any]]:
    """The content of all machines' files."""
    contents = [json.loads(path.read_text()) for path in sorted(ROOT.glob("results/*.json"))]
    return [content for content in contents if "description" in content]


def runs(recipe: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The runs of a recipe, each with the name of its machine."""
    for machine in machines():
        for run in machine["runs"]:
            if run["recipe"] == recipe:
                yield run, machine["name"]


# ------------------------------------------------------------------ tables


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in [list(head), *map(list, rows)]]
    lines.insert(1, "|" + " --- |" * lines[0].count(" | ") + " --- |")
    return "\n".join(lines)


def accuracy() -> str:
    head = (
        "model", "data", "training images", "epochs", "backend", "test accuracy", "test loss",
        "images/s", "seconds", "machine",
    )  # fmt: skip
    return table(
        head,
        (
            (
                run["model"],
                run["dataset"],
                f"{run['train_examples']:,}",
                str(run["epochs"]),
                run["backend"],
                f"**{run['test_accuracy']:.2%}**",
                f"{run['test_loss']:.4f}",
                f"{run['examples_per_second']:.0f}",
                f"{run['wall_seconds']:.0f}",
                machine,
            )
            for run, machine in runs("mnist")
        ),
    )


def equivalence() -> str:
    comparisons = json.loads((ROOT / "results" / "accuracy.json").read_text())
    rows = [
        (model, *cells(pair))
        for model, comparison in comparisons.items()
        for pair in comparison["pairs"]
    ]
    return table(("model", *HEAD), rows)


def words() -> str:
    head = (
        "cell", "training tokens", "epochs", "backend", "test perplexity", "of bigrams",
        "of unigrams", "minutes", "machine",
    )  # fmt: skip
    return table(
        head,
        (
            (
                run["cell"],
                f"{run['train_examples'] * run['settings']['length']:,}",
                str(run["epochs"]),
                run["backend"],
                f"**{run['test_perplexity']:.1f}**",
                f"{run['bigram_test_perplexity']:.1f}",
                f"{run['unigram_test_perplexity']:.1f}",
                f"{run['wall_seconds'] / 60:.1f}",
                machine,
            )
            for run, machine in runs("next_word")
        ),
    )


def shakespeare() -> str:
    head = ("tokens", "test text", "steps", "backend", "test loss", "bits/character", "seconds",
            "machine")  # fmt: skip
    return table(
        head,
        (
            (
                run["tokens"],
                {"works": "two plays", "first_90": "the last tenth"}[run["settings"]["split"]],
                f"{run['steps']:,}",
                run["backend"],
                f"**{run['test_loss']:.3f}**",
                f"{run['test_bits_per_character']:.3f}",
                f"{run['wall_seconds']:.0f}",
                machine,
            )
            for run, machine in runs("shakespeare")
        ),
    )


def translations() -> str:
    """BLEU and chrF of the model and of the baselines on the same verses."""
    names = {
        "": "", "word_by_word": "word by word", "copied_source": "copied source",
        "most_frequent_word": "most frequent word",
    }  # fmt: skip
    head = (
        "pairs", "epochs", "backend", "test loss", "of unigrams", "BLEU", "chrF",
        *(f"{name}: BLEU, chrF" for name in names.values() if name), "minutes", "machine",
    )  # fmt: skip
    rows = []
    for run, machine in runs("translate"):
        scores = [
            tuple(run[f"{name}_{metric}".strip("_")] for metric in ("bleu", "chrf"))
            for name in names
        ]
        ours, *baselines = scores
        rows.append(
            (
                f"{run['train_examples']:,}",
                str(run["epochs"]),
                run["backend"],
                f"{run['test_loss']:.2f}",
                f"{run['unigram_test_loss']:.2f}",
                *(f"**{score:.1f}**" for score in ours),
                *(f"{bleu:.1f}, {chrf:.1f}" for bleu, chrf in baselines),
                f"{run['wall_seconds'] / 60:.1f}",
                machine,
            )
        )
    return table(head, rows)


def pictures() -> str:
    head = (
        "training images", "epochs", "backend", "show their prompt", "Fréchet distance",
        "of real images", "of noise", "diversity", "training, minutes", "sampling, minutes",
        "machine",
    )  # fmt: skip
    return table(
        head,
        (
            (
                f"{run['train_examples']:,}",
                str(run["epochs"]),
                run["backend"],
                f"**{run['prompt_accuracy']:.1%}** of {run['samples']:,}",
                f"{run['frechet_distance']:.1f}",
                f"{run['frechet_real']:.1f}",
                f"{run['frechet_noise']:.1f}",
                f"{run['intra_class_diversity']:.2f}",
                f"{run['wall_seconds'] / 60:.1f}",
                f"{run['drawing_seconds'] / 60:.1f}",
                machine,
            )
            for run, machine in runs("text_to_image")
        ),
    )


# ------------------------------------------------------------------ results/speed-NAME.json

UNMEASURED = "(Not measured yet.)"


def speed() -> str:
    """Training steps of classifiers."""
    return speed_table("mlp", "cnn_48x48", "cnn_48x48_bfloat16")


def recurrent() -> str:
    """Training steps of recurrent language models."""
    return speed_table("lstm", "gru")


def gpt_speed() -> str:
    """Generation and training of GPTs."""
    return speed_table(
        "gpt_generate", "gpt_sample", "gpt_train", "gpt_train_bfloat16", "shakespeare"
    )


def diffusion_speed() -> str:
    """Training steps and sampling of a text-to-image model."""
    return speed_table("unet_train", "unet_sample")


def speed_files() -> list[dict[str, Any]]:
    """The content of all files of benchmarks/all.py."""
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob("results/speed-*.json"))]


def speed_table(*names: str) -> str:
    """For each row of benchmarks/all.py a line a contender: its speed and share of the limit.

    The lines of the zoo have its ratios to Keras and KerasHub and to native code on the same
    backend, and to the code that PyTorch alone has. A ratio above 1 means that the zoo is faster.
    """
    lines = [
        line
        for content in speed_files()
        for name in names
        if name in content["rows"]
        for line in _speed_lines(content["rows"][name], _processor(content["machine"]))
    ]
    if not lines:
        return UNMEASURED
    head = (
        "work", "contender", "ms", "a second", "share of the limit", "against Keras",
        "against native code", "against PyTorch's", "machine",
    )  # fmt: skip
    return table(head, lines)


def _processor(machine: dict[str, Any]) -> str:
    return f"{machine['cores']} cores, {machine['processor']}"


def _speed_lines(row: dict[str, Any], machine: str) -> Iterator[Iterable[str]]:
    seconds = row["seconds"]

    def ratios(name: str, *others: str) -> str:
        texts = []
        for other in others:
            if other in seconds:
                low, middle, high = ratio(seconds[other], seconds[name])
                kind = other.split()[0]
                label = f"{kind.replace('_', ' ')} " if kind not in ("keras", "native") else ""
                texts.append(f"{label}**{middle:.2f}** ({low:.2f} to {high:.2f})")
        return ", ".join(texts)

    for name, turns in seconds.items():
        kind, backend = name.split()
        if kind.startswith("matrix_product"):
            continue
        middle = quartiles(turns)[1]
        share = share_of_limit(row, name)
        yield (
            row["title"],
            name.replace("_", " "),
            f"{1000 * middle:.{0 if middle >= 0.1 else 1}f}",
            f"{row['examples'] / middle:,.0f} {row['unit']}",
            "" if share is None else f"{share:.0%}",
            *(
                (
                    ratios(name, f"keras {backend}", f"hub {backend}"),
                    ratios(name, f"native {backend}"),
                    ratios(name, "document torch", "hugging_face torch")
                    or (ratios(name, "native torch") if backend != "torch" else ""),
                )
                if kind == "zoo"
                else (ratios(name, f"zoo {backend}"), "", "")
                if kind in ("bfloat16", "augmented")
                else ("", "", "")
            ),
            machine,
        )


# ------------------------------------------------------------------ results/gpu-NAME.json


def gpu_files() -> list[dict[str, Any]]:
    """The content of all files of benchmarks/gpu.py."""
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob("results/gpu-*.json"))]


def gpu() -> str:
    """A row for each job that was done on a GPU."""
    rows = [
        (job["title"], job["backend"], GPU_TEXTS[job["job"]](job), content["device"])
        for content in gpu_files()
        for job in content["jobs"]
        if job["status"] == "done" and content["backends"][job["backend"]]["device"] != "cpu"
    ]
    return table(("measurement", "backend", "result", "device"), rows)


def _parameters(job: dict[str, Any]) -> str:
    counts = job["result"]["parameters"]
    return f"{len(counts)} models, each as its formula says"


def _check(job: dict[str, Any]) -> str:
    texts = []
    for model, report in job["result"].items():
        row = next((row for row in report["rows"] if row["comparison"] == "CPU"), None)
        distance = "" if row is None else f" ({row['distance']:.1e} of {row['tolerance']:.1e})"
        texts.append(f"`{model}` {report['verdict']}{distance}")
    return ", ".join(texts)


def _accuracies(job: dict[str, Any]) -> str:
    history = job["result"]["history"]
    accuracies = ", ".join(f"{100 * row['val_accuracy']:.2f}" for row in history)
    seconds = ", ".join(f"{row['seconds']:.0f}" for row in history)
    rate = job["result"]["examples_per_second"]
    return f"{accuracies} % after {seconds} s; {rate:,.0f} images/s"


def _contenders(job: dict[str, Any]) -> str:
    contenders = job["result"]["contenders"]
    times = ", ".join(f"{name} {1000 * one['seconds']:.2f} ms" for name, one in contenders.items())
    *_, last = contenders.values()
    tf32 = ", ".join(f"{name} {state}" for name, state in job["result"]["tf32"].items())
    return f"{times}; ratio {last['ratio']:.2f}; TF32: {tf32}"


def _samples(job: dict[str, Any]) -> str:
    result = job["result"]
    return (
        f"{result['prompt_accuracy']:.1%} of {result['samples']:,} images show their prompt, "
        f"after {job['seconds']:.0f} s"
    )


GPU_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "parameters": _parameters,
    "check": _check,
    "quick": _accuracies,
    "document_setting": _accuracies,
    "cosine": _accuracies,
    "cnn_step": _contenders,
    "gpt_step": _contenders,
    "cnn_steps_together": _contenders,
    "text_to_image": _samples,
    "cnn_step_without_tf32": _contenders,
}


# ------------------------------------------------------------------ zoo/weights

METRICS: dict[str, Callable[[float], str]] = {
    "test_accuracy": lambda value: f"{value:.2%} correct",
    "test_perplexity": lambda value: f"perplexity {value:.1f}",
    "test_bits_per_character": lambda value: f"{value:.3f} bits a character",
    "bleu": lambda value: f"BLEU {value:.1f}",
    "chrf": lambda value: f"chrF {value:.1f}",
    "prompt_accuracy": lambda value: f"{value:.1%} as asked",
    "frechet_distance": lambda value: f"Fréchet distance {value:.0f}",
    "frechet_real": lambda value: f"of real images {value:.0f}",
}


def weights() -> str:
    """A row for each weights folder, with the metrics of the backend that has trained it."""
    measured = json.loads((ROOT / "results" / "weights.json").read_text())
    loading, backend = measured["weights"], measured["backend"]
    rows = []
    for name in packed_names():
        card = WeightsFolder(PACKED / name).card
        training = card.training
        metrics = card.metrics[training.backend.partition(" ")[0]].whole
        rows.append(
            (
                f"`{name}`",
                f"{card.parameters:,}",
                f"{sum(record.bytes for record in card.files.values()) / 1e6:.2g}",
                ", ".join(text(metrics[key]) for key, text in METRICS.items() if key in metrics),
                training.backend.partition(" ")[0],
                f"{training.seconds / 60:.0f}" if training.seconds >= 90 else "1",
                f"{loading[name]['load_seconds']:.2f}",
                f"{loading[name]['mebibytes']:.0f}",
            )
        )
    head = (
        "weights", "parameters", "MB", "on the test data", "trained on", "minutes",
        "loading, s", "MiB",
    )  # fmt: skip
    sizes = (
        f"(Loading is measured on {backend} after the imports, in a process of its own; MiB is "
        "what it adds to the process' largest memory. The wheel has "
        f"{measured['wheel_bytes'] / 1e6:.0f} MB. `python -m benchmarks.weights measure` writes "
        "these figures.)"
    )
    return f"{table(head, rows)}\n\n{sizes}"


def commands() -> str:
    """What the commands with trained weights print, and their seconds on each backend."""
    results = json.loads((ROOT / "results" / "commands.json").read_text())
    lines = []
    for command, by_backend in results.items():
        outputs = {result["output"].rstrip() for result in by_backend.values()}
        lines += [f"$ {command}", outputs.pop(), ""]
        if outputs:
            raise SystemExit(f"{command} must print the same on all backends. Received: {outputs}")
    rows = [
        (f"`{command}`", *(f"{by_backend[name]['seconds']:.1f}" for name in by_backend))
        for command, by_backend in results.items()
    ]
    head = ("seconds, with the import of Keras", *next(iter(results.values())))
    return "\n".join(["```", *lines[:-1], "```", "", table(head, rows)])


# ------------------------------------------------------------------ results/scaling.json

SCALING = ROOT / "results" / "scaling.json"
PLANNED = (8, 64, 512)  # devices


def scaling_table() -> str:
    """Milliseconds of a step for each number of workers, and the last against the first."""
    if not SCALING.exists():
        return UNMEASURED
    machine, rows = scaling.read(SCALING)
    counts = sorted({row.devices for row in rows})
    steps: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        steps.setdefault((row.model, row.backend), {})[row.devices] = row.seconds
    lines = [
        (
            f"`{model}`", backend,
            *(f"{1000 * seconds[n]:.0f}" if n in seconds else "" for n in counts),
            f"{seconds[min(seconds)] / seconds[max(seconds)]:.2f}" if len(seconds) > 1 else "",
        )
        for (model, backend), seconds in steps.items()
    ]  # fmt: skip
    head = ("model", "backend", *(f"ms with {n}" for n in counts), "speed-up")
    return f"{table(head, lines)}\n\n({machine}; one thread for each worker.)"


def planning() -> str:
    """Speed-up that the ring's arithmetic promises, from the fastest step on one device."""
    if not SCALING.exists():
        return UNMEASURED
    singles: dict[str, scaling.Row] = {}
    for row in scaling.read(SCALING)[1]:
        fastest = singles.setdefault(row.model, row) if row.devices == 1 else None
        if fastest is not None and row.seconds < fastest.seconds:
            singles[row.model] = row
    link = scaling.NETWORK
    lines = [
        (
            f"`{row.model}`", row.backend, f"{row.parameters:,}", f"{1000 * row.seconds:.0f}",
            f"{scaling.all_reduce_bytes(row.parameters, PLANNED[0]) / 1e6:.1f}",
            *(
                f"{factor * row.seconds / scaling.step_seconds(row, n, link, same):.1f}"
                for n in PLANNED for same, factor in ((True, 1), (False, n))
            ),
        )
        for row in singles.values()
    ]  # fmt: skip
    head = (
        "model", "backend", "parameters", "ms on one", f"MB a step, {PLANNED[0]} devices",
        *(f"{n} devices, {batch}" for n in PLANNED for batch in ("one batch", "a batch each")),
    )  # fmt: skip
    return table(head, lines)


def planning_check() -> str:
    """Measured steps of several workers, and those that the arithmetic gives."""
    if not SCALING.exists():
        return UNMEASURED
    rows = scaling.read(SCALING)[1]
    singles = {(row.model, row.backend): row for row in rows if row.devices == 1}
    pairs = [
        (singles[row.model, row.backend], row)
        for row in rows
        if row.devices > 1 and (row.model, row.backend) in singles
    ]
    lines = []
    for single, row in pairs:
        implied = scaling.implied_bandwidth(single, row)
        others = [scaling.implied_bandwidth(*pair) for pair in pairs if pair[1] is not row]
        bandwidth = statistics.median(others or [implied])
        expected = scaling.step_seconds(single, row.devices, scaling.Link(bandwidth, 0))
        lines.append(
            (
                f"`{row.model}`", row.backend, str(row.devices), f"{1000 * row.seconds:.0f}",
                f"{1000 * expected:.0f}",
                f"{implied / 1e9:.2f}" if implied < 1e12 else "",  # no time was lost
            )
        )  # fmt: skip
    head = ("model", "backend", "workers", "ms measured", "ms by arithmetic", "GB/s implied")
    return table(head, lines)


# ------------------------------------------------------------------ results/export.json


def export_rows() -> list[dict[str, Any]]:
    """The content of results/export.json."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "results" / "export.json").read_text())
    return rows


def exports() -> str:
    """A row for each model: in each format the backends from which its file is proven."""
    rows = [row for row in export_rows() if row["model"] not in packed_names()]
    formats = [name for name in FORMATS if any(row["format"] == name for row in rows)]
    notes: list[str] = []

    def cell(model: str, format_name: str) -> str:
        texts = []
        for row in rows:
            if (row["model"], row["format"]) == (model, format_name):
                texts.append(row["starting_backend"])
                if not row["proven"]:
                    reason = " ".join([row["verdict"], *row["failures"][:1]])
                    notes.append(f"{len(notes) + 1}. `{model}` as {format_name}: {reason}")
                    texts[-1] += f": no ({len(notes)})"
        return ", ".join(texts)

    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [(f"`{model}`", *(cell(model, name) for name in formats)) for model in models]
    content = table(("model", *formats), lines)
    return "\n".join([content, "", *notes]) if notes else content


def quantized() -> str:
    """A row for trained weights in a format: size and metrics of each type of the weights."""
    results: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in export_rows():
        if row["model"] in packed_names():
            results.setdefault((row["model"], row["format"]), {})[row["weights"]] = row

    def cells(row: dict[str, Any] | None) -> tuple[str, str]:
        if row is None:
            return "", ""
        if "file_metrics" not in row:
            return "", row["verdict"]
        metrics = [
            f"{name.removeprefix('test_').replace('_', ' ')} {value:.4g}"
            for name, value in row["file_metrics"].items()
        ]
        prefix = "" if row["proven"] else f"{row['verdict']}: "
        return f"{row['bytes'] / 1e6:.2f}", prefix + ", ".join(metrics)

    dtypes = ("float32", "float16", "int8")
    head = ["weights", "format", "test data", "before"]
    head += [text for dtype in dtypes for text in (f"{dtype}, MB", "metrics")]
    lines = []
    for (name, format_name), by_dtype in results.items():
        measured = [row for row in by_dtype.values() if "model_metrics" in row]
        if measured:
            examples, metrics = measured[0]["examples"], measured[0]["model_metrics"]
            before = ", ".join(f"{value:.4g}" for value in metrics.values())
            columns = [text for dtype in dtypes for text in cells(by_dtype.get(dtype))]
            lines.append((f"`{name}`", format_name, examples, before, *columns))
    return table(head, lines)


# ------------------------------------------------------------------ docs/


def tables() -> dict[str, str]:
    """The book's tables by name, in Markdown."""
    return {
        "accuracy": accuracy(),
        "equivalence": equivalence(),
        "words": words(),
        "shakespeare": shakespeare(),
        "translations": translations(),
        "pictures": pictures(),
        "speed": speed(),
        "recurrent": recurrent(),
        "gpt_speed": gpt_speed(),
        "diffusion_speed": diffusion_speed(),
        "gpu": gpu(),
        "scaling": scaling_table(),
        "weights": weights(),
        "commands": commands(),
        "exports": exports(),
        "quantized": quantized(),
        "machines": "\n".join(f"- **{m['name']}**: {m['description']}" for m in machines()),
    }


def main(config: Config) -> None:
    if config.machine is not None:
        update(config.machine, config)
    zoo_command.CATALOGUE.write_text(
        json.dumps(catalogue(), indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    from benchmarks import book  # which needs the tables of this module

    book.write()


if __name__ == "__main__":
    main(tyro.cli(Config))
