"""Times the zoo and what a user would pick instead, in one run: all rows of the tables of speed.

    python -m benchmarks.all --json results/speed-NAME.json
    python -m benchmarks.all --rows lstm gru --backends jax

In each row, contenders do the same work from the same weights, each in a process of its own with
its backend, and take turns (`benchmarks.contenders`). On each backend:

    zoo              the zoo, a training step within `Trainer.fit`
    keras            the same network of Keras' own layers, with Keras' loss, optimizer and `fit`
    hub              KerasHub's GPT-2
    native           the library itself, without Keras: see benchmarks/native/
    bfloat16         the zoo with the policy mixed_bfloat16
    augmented        the zoo, with the augmentation of the images within its step
    together         the zoo, with eight training steps in one call

and, in PyTorch, the document's own code as it stands, Hugging Face's GPT-2, and the product of two
matrices. Another contender than the document's code keeps large freed blocks of memory, as the
recipes do. The share of a contender is its operations a second, by the formulas of
`benchmarks.workloads`, divided by those of the matrix product in the same rounds. The JSON file
holds the seconds of a step in each round, from which `python -m benchmarks.results` makes tables.
Needs the three backends, keras-hub, transformers and optax; contenders whose packages are missing
do not take part.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import BACKENDS, Contender, quartiles, race, ratio, serve

PACKAGES = ("keras", "tensorflow", "torch", "jax", "keras-hub", "transformers", "optax")
MATRIX = 2048  # rows and columns of the matrix product
TOGETHER = 8  # training steps in one call
OURS = ("zoo", "augmented", "bfloat16", "together")
KINDS = (*OURS, "keras", "hub", "native")
PRODUCTS = {"matrix_product": "float32", "matrix_product_bfloat16": "bfloat16"}
IN_TORCH = ("document", "hugging_face", *PRODUCTS)  # kinds that PyTorch alone has
REQUIRED = {"hub": "keras_hub", "hugging_face": "transformers", "native jax": "optax"}


@dataclass(frozen=True)
class Row:
    """Contenders that do the same work.

    Attributes:
        title: What they do.
        workload: Class of `benchmarks.workloads` and its arguments.
        kinds: Kinds of the contenders; those of Keras and of a library are on each backend.
        steps: Number of timed steps in a turn, after one that is not timed.
        small: Arguments of the workload in a trial run.
    """

    title: str
    workload: tuple[str, dict[str, Any]]
    kinds: tuple[str, ...]
    steps: int = 1
    small: dict[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, small: bool) -> Any:
        """The workload."""
        from benchmarks import workloads

        kind, arguments = self.workload
        sizes = {name: value for name, value in self.small.items() if name != "gpt"}
        if "gpt" in self.small:
            sizes["gpt"] = workloads.GPT(**self.small["gpt"])
        return getattr(workloads, kind)(**arguments, **(sizes if small else {}))


SMALL_GPT = {"layers": 1, "width": 16, "length": 16}
ROWS = {
    "mlp": Row(
        "training step of `mlp`, 64 images", ("Images", {"model": "mlp"}),
        ("zoo", "keras", "native"), 100, {"batch_size": 4},
    ),
    "cnn_48x48": Row(
        "training step of `cnn_48x48`, 64 images", ("Images", {}),
        ("zoo", "augmented", "keras", "native", "document"), 2, {"batch_size": 4},
    ),
    "cnn_48x48_bfloat16": Row(
        "training step of `cnn_48x48` in bfloat16", ("Images", {}),
        ("zoo", "bfloat16", "matrix_product_bfloat16"), 2, {"batch_size": 4},
    ),
    "cnn_48x48_together": Row(
        "training step of `cnn_48x48`, eight in one call", ("Images", {}),
        ("zoo", "together"), TOGETHER, {"batch_size": 4},
    ),
    "lstm": Row(
        "training step of an LSTM language model", ("Recurrent", {"cell": "lstm"}),
        ("zoo", "keras", "native"), 3, {"vocabulary": 50, "width": 8, "length": 8},
    ),
    "gru": Row(
        "training step of a GRU language model", ("Recurrent", {"cell": "gru"}),
        ("zoo", "keras", "native"), 3, {"vocabulary": 50, "width": 8, "length": 8},
    ),
    "gpt_generate": Row(
        "4·240 greedy tokens of a small GPT-2", ("Generation", {}),
        ("zoo", "hub", "native", "hugging_face"), 1,
        {"prompt": 4, "new_tokens": 8, "gpt": SMALL_GPT},
    ),
    "gpt_sample": Row(
        "4·240 sampled tokens of a small GPT-2", ("Generation", {"temperature": 1.0}),
        ("zoo",), 1, {"prompt": 4, "new_tokens": 8, "gpt": SMALL_GPT},
    ),
    "gpt_train": Row(
        "training step of a small GPT-2, 4·256 tokens", ("GPT", {}),
        ("zoo", "keras", "hub", "native", "hugging_face"), 3, SMALL_GPT,
    ),
    "gpt_train_bfloat16": Row(
        "training step of a small GPT-2 in bfloat16", ("GPT", {}),
        ("zoo", "bfloat16", "matrix_product_bfloat16"), 3, SMALL_GPT,
    ),
    "shakespeare": Row(
        "training step of `recipes/shakespeare.py`",
        ("GPT", {"vocabulary": 96, "width": 128, "length": 64, "batch_size": 12}),
        ("zoo", "keras", "native"), 10,
    ),
    "unet_train": Row(
        "training step of a small `text_to_image`, 64 images", ("Diffusion", {}),
        ("zoo", "keras", "native"), 2, {"channels": (8, 16), "batch_size": 4},
    ),
    "unet_sample": Row(
        "16 images of a small `text_to_image` in 50 steps", ("Sampling", {}),
        ("zoo", "keras", "native"), 1, {"batch_size": 2, "steps": 2},
    ),
}  # fmt: skip


ON_GPU = ("cnn_48x48_together",)  # rows that help where a step is short beside its call


@dataclass(frozen=True)
class Config:
    """Time the zoo and its alternatives, which take turns."""

    rows: tuple[str, ...] = tuple(name for name in ROWS if name not in ON_GPU)
    """Names of the rows; by default all but those for GPUs."""
    backends: tuple[str, ...] = BACKENDS
    """Backends that take part, if they are installed."""
    kinds: tuple[str, ...] = (*KINDS, *IN_TORCH)
    """Kinds of contenders that take part; by default all."""
    rounds: int = 15
    """Largest number of timed turns of each contender."""
    warmup: int = 2
    """Number of turns of each contender before the timed ones."""
    minutes: float = 25.0
    """Time for all rows together. A row has at least three rounds."""
    steps: int | None = None
    """Number of timed steps in a turn; by default the row's own."""
    small: bool = False
    """Small sizes, for a trial run."""
    tf32: Literal["default", "off"] = "default"
    """Precision of float32 products on a GPU: the library's default, or TF32 turned off."""
    worker: str | None = None
    """Internal: the contender that this process is."""
    json: Path | None = None
    """JSON file to which the rows are added."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.rows) - set(ROWS)):
            raise SystemExit(f"`rows` must be among {', '.join(ROWS)}. Received: {unknown}")
        if unknown := sorted(set(self.kinds) - {*KINDS, *IN_TORCH}):
            raise SystemExit(
                f"`kinds` must be among {', '.join((*KINDS, *IN_TORCH))}. Received: {unknown}"
            )


# ------------------------------------------------------------------ a contender's process


def matrix_product(dtype: str) -> Callable[[], Any]:
    """Product of two square matrices in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(MATRIX, MATRIX, device=device).to(getattr(torch, dtype))
    return lambda: (x @ x)[0, 0]


def work(config: Config, row: Row, kind: str) -> None:
    """Takes the turns of a contender."""
    import keras

    from benchmarks import stock, workloads
    from benchmarks.step_timer import serve_fit
    from zoo.backends import backend, name
    from zoo.diffusion.sampler import noise

    steps = config.steps or row.steps
    if kind != "document":
        backend.keep_malloc_pages()
    if config.tf32 == "off":
        backend.disable_tf32()
    if kind in PRODUCTS:
        serve(matrix_product(PRODUCTS[kind]), 2, 1, float)
        return
    if kind == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    workload = row.build(config.small)
    if kind == "augmented":
        workload = dataclasses.replace(workload, augmented=True)
    if kind == "together":
        workload = dataclasses.replace(workload, steps_per_execution=TOGETHER)
    is_zoo = kind in OURS
    native: Any = None
    if kind in ("native", "document", "hugging_face"):
        native = importlib.import_module(f"benchmarks.native.{name}_code")

    def weights(network: Any) -> Any:
        return network if name == "torch" else workloads.weights_of(network)

    if isinstance(workload, workloads.Generation):
        network = workload.network()
        if is_zoo:
            generate = workload.generator(network)
        elif kind == "hub":
            generate = stock.hub_generator(workload, network)
        elif kind == "hugging_face":
            generate = native.hugging_face_generator(workload, network)
        else:
            generate = native.generator(workload, weights(network))
        serve(generate)
    elif isinstance(workload, workloads.Sampling):
        network = workload.network()
        if is_zoo:
            serve(workload.sampler(network))
            return
        if kind == "keras":
            sample = stock.sampler(workload, network)
        else:
            sample = native.sampler(workload, workloads.weights_of(network))
        size = workload.model.size
        first = noise(0, "first", (size, size, 1), range(workload.batch_size))
        serve(lambda: sample(first))
    else:
        batches, trainer = workload.batches(), workload.trainer()
        if kind == "keras":
            trainer = stock.trainer(workload, trainer.network)
        elif kind == "hub":
            trainer = stock.hub_trainer(workload, trainer.network)
        elif not is_zoo:
            make = native.hugging_face_step if kind == "hugging_face" else native.training_step
            step, numbers = make(workload, weights(trainer.network)), itertools.count()
            serve(lambda: step(batches[next(numbers)]), steps, 1, float)
            return
        if kind == "together":
            calls = -(-steps // TOGETHER)
            serve_fit(trainer, batches, calls * TOGETHER, skip=TOGETHER)
            return
        serve_fit(trainer, batches, steps)


# ------------------------------------------------------------------ all rows


def contender_names(config: Config, row: Row) -> Iterator[str]:
    """Names of the contenders that can take part, such as "zoo jax"."""
    for kind in (*row.kinds, "matrix_product"):
        for backend in ("torch",) if kind in IN_TORCH else config.backends:
            name = f"{kind} {backend}"
            packages = [backend, REQUIRED.get(kind), REQUIRED.get(name)]
            installed = all(importlib.util.find_spec(package) for package in packages if package)
            if name != "together torch" and installed and kind in (*config.kinds, "matrix_product"):
                yield name


def measure(config: Config, name: str, seconds: float) -> dict[str, Any]:
    """Times the contenders of a row."""
    row = ROWS[name]
    command = ["-m", "benchmarks.all", "--rows", name, "--tf32", config.tf32]
    command += ["--steps", str(config.steps)] if config.steps else []
    command += ["--small"] if config.small else []
    contenders = {
        contender: Contender([*command, "--worker", contender.split()[0]], contender.split()[1])
        for contender in contender_names(config, row)
    }
    turns = race(contenders, config.warmup, config.rounds, seconds)
    workload = row.build(config.small)
    return {
        "title": row.title,
        "unit": workload.unit,
        "examples": workload.examples,
        "flops": workload.flops(),
        "seconds": {key: [float(f"{s:.4g}") for s in values] for key, values in turns.items()},
    }


def share_of_limit(row: dict[str, Any], contender: str) -> float | None:
    """Operations a second of a contender, relative to those of the matrix product."""
    product = "matrix_product"
    if contender.startswith("bfloat16"):
        product += "_bfloat16"
    seconds = row["seconds"].get(f"{product} torch")
    if seconds is None:
        return None
    limit = 2 * MATRIX**3 / quartiles(seconds)[1]
    return float(row["flops"] / quartiles(row["seconds"][contender])[1] / limit)


def show(row: dict[str, Any]) -> None:
    """Prints a row: how many times as fast as the others each contender of the zoo is."""
    seconds = row["seconds"]
    ours = [name for name in seconds if name.split()[0] in OURS]
    table = Table("", "ms", f"{row['unit']}/s", "share", *ours, title=row["title"])
    for name, turns in seconds.items():
        middle = quartiles(turns)[1]
        is_product = name.startswith("matrix_product")
        share = None if is_product else share_of_limit(row, name)
        table.add_row(
            name,
            f"{1000 * middle:.1f}",
            "" if is_product else f"{row['examples'] / middle:,.0f}",
            "" if share is None else f"{share:.0%}",
            *("" if is_product else "{1:.2f} ({0:.2f}-{2:.2f})".format(*ratio(turns, seconds[our]))
              for our in ours),
        )  # fmt: skip
    Console(width=160).print(table)


def machine() -> dict[str, Any]:
    """The processor, its matrix instructions, and the versions of the libraries."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in names if flag in flags],
        "date": date.today().isoformat(),
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
    }


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        work(config, ROWS[config.rows[0]], config.worker)
        return {}
    content: dict[str, Any] = {"machine": machine(), "rows": {}}
    if config.json and config.json.exists():
        content["rows"] = json.loads(config.json.read_text())["rows"]
    deadline = time.monotonic() + 60 * config.minutes
    for number, name in enumerate(config.rows):
        left = (deadline - time.monotonic()) / (len(config.rows) - number)
        content["rows"][name] = measure(config, name, left)
        show(content["rows"][name])
        if config.json:
            ordered = {key: content["rows"][key] for key in ROWS if key in content["rows"]}
            config.json.write_text(json.dumps({**content, "rows": ordered}, indent=1) + "\n")
    return content


if __name__ == "__main__":
    main(tyro.cli(Config))
