"""Seconds of a training step on several devices, and what more devices would do.

    python -m benchmarks.scaling --devices 1,2 --out results/scaling.json

Each measurement is a training of its own, by `zoo.training.distributed`, with one thread for each
worker; on a CPU each worker has a core of its own while there are enough. The batch is that of all
workers together. A row that was measured before, for the same model, backend and number of devices,
is replaced. `python -m benchmarks.results` writes the book's tables, and
`python -m benchmarks.book write` those of docs/guides/planning.md.

Source of the arithmetic: Thakur et al., "Optimization of Collective Communication Operations in
MPICH", 2005, section 4.5 (ring).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODELS = ("cnn_48x48", "gpt", "lstm", "text_to_image")
WARM_UP = 3  # steps that compile, or allocate
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
    "NPROC": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A measured training.

    Attributes:
        model: Name in `MODELS`.
        backend: Backend of Keras.
        devices: Number of workers.
        seconds: Median of the seconds of a step.
        parameters: Number of trained parameters.
    """

    model: str
    backend: str
    devices: int
    seconds: float
    parameters: int


# ------------------------------------------------------------------ arithmetic


@dataclass(frozen=True)
class Link:
    """Connection of a device to its neighbours in a ring.

    Attributes:
        bandwidth: Bytes a second.
        latency: Seconds until the first byte arrives.
    """

    bandwidth: float
    latency: float


NETWORK = Link(bandwidth=12.5e9, latency=10e-6)  # 100 Gbit/s


def all_reduce_bytes(parameters: int, devices: int) -> float:
    """Bytes that each device sends in a step to add float32 gradients in a ring."""
    return 2 * (devices - 1) / devices * parameters * 4


def all_reduce_seconds(parameters: int, devices: int, link: Link) -> float:
    """Seconds in which a ring adds the gradients, in 2·(devices - 1) messages."""
    transfer = all_reduce_bytes(parameters, devices) / link.bandwidth
    return transfer + 2 * (devices - 1) * link.latency


def step_seconds(row: Row, devices: int, link: Link, same_batch: bool = True) -> float:
    """Seconds of a step on more devices, if nothing is computed while gradients are added.

    Args:
        row: Step on one device.
        devices: Number of devices.
        link: Connection of the devices.
        same_batch: Whether all devices share the batch of the one; otherwise each has as large a
            batch.
    """
    computed = row.seconds / devices if same_batch else row.seconds
    return computed + all_reduce_seconds(row.parameters, devices, link)


def implied_bandwidth(single: Row, row: Row) -> float:
    """Bytes a second at which the ring's arithmetic gives the measured step."""
    exchange = row.seconds - single.seconds / row.devices
    return all_reduce_bytes(row.parameters, row.devices) / max(exchange, 1e-9)


# ------------------------------------------------------------------ measurements


def measure(model: str, backend: str, devices: int, steps: int) -> Row:
    """Trains for some steps, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.scaling", "worker", model, str(devices)]
        environment = {**os.environ, **ONE_THREAD, "KERAS_BACKEND": backend}
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
        subprocess.run([*command, str(steps), str(path)], env=environment, check=True)
        return Row(**json.loads(path.read_text()))


def work(model: str, devices: int, steps: int, path: Path) -> None:
    """Trains as the launcher or one of its workers; the first writes the row."""
    from zoo.training import cluster, distributed

    place = cluster.Cluster.from_environment()
    cores = sorted(os.sched_getaffinity(0))
    if place is not None or devices == 1:  # before the backend starts its threads
        number = 0 if place is None else place.local_rank
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    with distributed(devices, max_restarts=0):
        seconds, parameters = train(model, steps)
        if cluster.is_first():
            from zoo import backends

            median = statistics.median(seconds[WARM_UP:])
            path.write_text(
                json.dumps(asdict(Row(model, backends.name, devices, median, parameters)))
            )


def train(model: str, steps: int) -> tuple[list[float], int]:
    """Seconds of each step of `Trainer.fit`, and the number of trained parameters."""
    import keras

    from benchmarks import workloads
    from zoo import backends

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self._begin = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])  # waits for the step
            self.seconds.append(time.perf_counter() - self._begin)

    backends.backend.keep_malloc_pages()
    workload: Any = {
        "cnn_48x48": workloads.Images(augmented=True),
        "gpt": workloads.GPT(),
        "lstm": workloads.Recurrent(),
        "text_to_image": workloads.Diffusion(),
    }[model]
    trainer, clock = workload.trainer(), Clock()
    trainer.fit(workload.batches(), steps_per_epoch=steps + WARM_UP, callbacks=[clock], verbose=0)
    return clock.seconds, sum(math.prod(v.shape) for v in trainer.trainable_variables)


def numbers(text: str) -> list[int]:
    """The numbers of a list such as "1,2,4"."""
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Measures every model on every backend, prints the rows and adds them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=numbers, default=[1, 2], help="Such as 1,2,4,8.")
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "torch", "jax"])
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--steps", type=int, default=20, help="Steps of each training.")
    parser.add_argument("--machine", default="", help="Description of the machine.")
    parser.add_argument("--out", type=Path, help="JSON file to which the rows are added.")
    options = parser.parse_args()
    for model in options.models:
        for backend in options.backends:
            for devices in options.devices:
                row = measure(model, backend, devices, options.steps)
                print(f"{model:12} {backend:12} {devices:4} {row.seconds:9.4f} s", flush=True)
                if options.out:
                    save(row, options.out, options.machine)


def save(row: Row, path: Path, machine: str) -> None:
    """Puts a row in the place of an earlier one of the same model, backend and devices."""
    content = json.loads(path.read_text()) if path.exists() else {"machine": machine, "rows": []}
    rows = [
        other
        for other in content["rows"]
        if (other["model"], other["backend"], other["devices"])
        != (row.model, row.backend, row.devices)
    ]
    content = {"machine": machine or content["machine"], "rows": [*rows, asdict(row)]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> tuple[str, list[Row]]:
    """Machine and rows of a file, the rows by model, backend and number of devices."""
    content = json.loads(path.read_text())
    rows = [Row(**row) for row in content["rows"]]
    order = MODELS
    rows.sort(key=lambda row: (order.index(row.model), row.backend, row.devices))
    return content["machine"], rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _, _, model, devices, steps, path = sys.argv
        work(model, int(devices), int(steps), Path(path))
    else:
        main()
