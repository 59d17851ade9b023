"""Collects measured results into `results/` and rewrites the README's tables from them.

    python -m benchmarks.results cpu-2-cores --runs runs/a runs/b
    python -m benchmarks.results cpu-2-cores --train-step step.json --pipeline pipeline.json
    python -m benchmarks.results cpu-2-cores --recurrent-step recurrent.json
    python -m benchmarks.results cpu-2-cores --gpt-speed gpt.json
    python -m benchmarks.results cpu-2-cores --diffusion-speed diffusion.json

Each machine has one file, results/MACHINE.json, with a description that is written by hand.
results/accuracy.json is what benchmarks/accuracy.py wrote.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.accuracy import HEAD, cells

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    """Add results to a machine's file and rewrite the README's tables."""

    machine: tyro.conf.Positional[str]
    """Name of the file in results/, without its ending."""
    runs: tuple[Path, ...] = ()
    """Finished run directories; one of the same settings is replaced."""
    train_step: Path | None = None
    """What benchmarks/train_step.py wrote."""
    pipeline: Path | None = None
    """What benchmarks/pipeline.py wrote."""
    recurrent_step: Path | None = None
    """What benchmarks/recurrent_step.py wrote."""
    gpt_speed: Path | None = None
    """What benchmarks/gpt_speed.py wrote, for both tasks."""
    diffusion_speed: Path | None = None
    """What benchmarks/diffusion_speed.py wrote, for both tasks."""


ORDER = ("recipe", "model", "cell", "train_examples", "epochs", "backend")


def read_run(folder: Path) -> dict[str, Any]:
    """A run's settings, metrics and history."""
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    if len(metrics["backends"]) > 1:
        raise SystemExit(f"{folder} was made on several backends: {metrics['backends']}")
    with open(folder / "history.csv", newline="") as file:
        rows = [{k: round(float(v), 6) for k, v in row.items()} for row in csv.DictReader(file)]
    return {"settings": config, **metrics, "history": rows}


def update(machine: str, config: Config) -> None:
    path = ROOT / "results" / f"{machine}.json"
    content = json.loads(path.read_text())

    def place(run: dict[str, Any]) -> list[Any]:
        return [run.get(name, "") for name in ORDER]

    for folder in config.runs:
        run = read_run(folder)
        key = run["settings"], run["backend"]
        kept = [other for other in content["runs"] if (other["settings"], other["backend"]) != key]
        content["runs"] = sorted([*kept, run], key=place)
    for name in ("train_step", "pipeline", "recurrent_step", "gpt_speed", "diffusion_speed"):
        file = getattr(config, name)
        if file:
            content[name] = json.loads(file.read_text())
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [list(head), *map(list, rows)]]
    lines.insert(1, "|" + " --- |" * lines[0].count(" | ") + " --- |")
    return "\n".join(lines)


def machines() -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(ROOT.glob("results/*.json"))]
    return [content for content in found if "description" in content]


def runs(recipe: str) -> Iterator[tuple[dict[str, Any], str]]:
    """A recipe's runs, each with the name of its machine."""
    for machine in machines():
        for run in machine["runs"]:
            if run["recipe"] == recipe:
                yield run, machine["name"]


def accuracy() -> str:
    head = (
        "model", "training images", "epochs", "backend", "test accuracy", "test loss", "images/s",
        "seconds", "machine",
    )  # fmt: skip
    return table(
        head,
        (
            (
                run["model"],
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


def speed() -> str:
    head = ("", "images/s", "against the document's code", "of it augmentation", "machine")
    return table(
        head,
        (
            (
                name,
                f"{step['examples_per_second']:.0f}",
                f"{step['ratio']:.2f}",
                f"{machine['pipeline'][name]['share_of_step']:.1%}"
                if name in machine["pipeline"]
                else "",
                machine["name"],
            )
            for machine in machines()
            if "train_step" in machine and "pipeline" in machine
            for name, step in machine["train_step"].items()
        ),
    )


def gpt_speed() -> str:
    """Tokens a second and ratios: a row a contender, two columns a task."""
    tasks = {"generate": "written", "train": "trained on"}
    rows = [
        (
            name,
            *(
                cell
                for task in tasks
                for found in [machine["gpt_speed"][task][name]]
                for cell in (f"{found['examples_per_second']:.0f}", f"{found['ratio']:.2f}")
            ),
            machine["name"],
        )
        for machine in machines()
        if "gpt_speed" in machine
        for name in machine["gpt_speed"]["generate"]
    ]
    columns = [text for verb in tasks.values() for text in (f"tokens/s {verb}", "ratio")]
    return table(("", *columns, "machine"), rows)


def diffusion_speed() -> str:
    """Milliseconds and ratios: a row a contender, two columns a task."""
    rows = [
        (
            name,
            *(
                cell
                for task in ("train", "sample")
                for found in [machine["diffusion_speed"][task][name]]
                for cell in (f"{found['seconds']:.2f}", f"{found['ratio']:.2f}")
            ),
            machine["name"],
        )
        for machine in machines()
        if "diffusion_speed" in machine
        for name in machine["diffusion_speed"]["train"]
    ]
    head = ("", "seconds a training step", "ratio", "seconds for 16 images", "ratio", "machine")
    return table(head, rows)


def pictures() -> str:
    head = (
        "training images", "epochs", "backend", "as asked for", "Fréchet distance", "of real ones",
        "of noise", "as varied as real ones", "training, minutes", "drawing, minutes", "machine",
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


def recurrent() -> str:
    """Seconds and ratios of recurrent steps: a row a contender, two columns a cell."""
    rows = [
        (
            name,
            *(
                cell
                for found in machine["recurrent_step"].values()
                for cell in (f"{1000 * found[name]['seconds']:.0f}", f"{found[name]['ratio']:.2f}")
            ),
            machine["name"],
        )
        for machine in machines()
        if "recurrent_step" in machine
        for name in next(iter(machine["recurrent_step"].values()))
    ]
    cells = next(m["recurrent_step"] for m in machines() if "recurrent_step" in m)
    columns = [text for cell in cells for text in (f"{cell}, ms", "against PyTorch's own")]
    return table(("", *columns, "machine"), rows)


def words() -> str:
    head = (
        "cell", "training tokens", "epochs", "backend", "test perplexity", "bigrams'", "unigrams'",
        "minutes", "machine",
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


def translations() -> str:
    """BLEU and chrF of translations, with those of the baselines on the same verses."""
    names = {
        "": "", "word_by_word": "word by word", "copied_source": "the source, copied",
        "most_frequent_word": "the most frequent word",
    }  # fmt: skip
    head = (
        "pairs", "epochs", "backend", "test loss", "by frequency", "BLEU", "chrF",
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


def shakespeare() -> str:
    head = ("tokens", "held out", "steps", "backend", "test loss", "bits/character", "seconds",
            "machine")  # fmt: skip
    return table(
        head,
        (
            (
                run["tokens"],
                {"works": "four plays", "first_90": "the last tenth"}[run["settings"]["split"]],
                f"{run['settings']['steps']:,}",
                run["backend"],
                f"**{run['test_loss']:.3f}**",
                f"{run['test_bits_per_character']:.3f}",
                f"{run['wall_seconds']:.0f}",
                machine,
            )
            for run, machine in runs("shakespeare")
        ),
    )


def equivalence() -> str:
    found = json.loads((ROOT / "results" / "accuracy.json").read_text())
    rows = [(model, *cells(pair)) for model, about in found.items() for pair in about["pairs"]]
    return table(("model", *HEAD), rows)


def tables() -> dict[str, str]:
    """The README's tables by name, in Markdown."""
    return {
        "accuracy": accuracy(),
        "equivalence": equivalence(),
        "words": words(),
        "shakespeare": shakespeare(),
        "translations": translations(),
        "gpt_speed": gpt_speed(),
        "pictures": pictures(),
        "diffusion_speed": diffusion_speed(),
        "speed": speed(),
        "recurrent": recurrent(),
        "machines": "\n".join(f"- **{m['name']}**: {m['description']}" for m in machines()),
    }


def with_tables(readme: str) -> str:
    """The README with each table between its markers replaced."""
    for name, content in tables().items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return readme


def main(config: Config) -> None:
    update(config.machine, config)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    main(tyro.cli(Config))
