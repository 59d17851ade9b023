"""Speed and memory while data, steps, generations and capacities grow: results/growth.json, .png.

    KERAS_BACKEND=jax python -m benchmarks.growth
    python -m benchmarks.growth --plot

Five curves, each of which should be flat. A command measures those of its backend:

    images      images/s of `mlp` in `fit`, while the images grow 100 times
    tokens      tokens/s of a small GPT in `fit`, while the text grows 100 times
    memory      MiB of the process, over `--steps` training steps and `--generations` generations
    checkpoint  ms of writing a checkpoint, and its bytes, after more and more steps
    capacity    ms a token, while the capacity of the cache of keys and values grows

The time a token has a part that grows, attention itself, which reads the whole cache: its own time,
measured beside it, is subtracted.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tyro
from keras import ops

import zoo
from benchmarks.contenders import quartiles
from benchmarks.step_timer import time_fit
from zoo import backends
from zoo.backends import backend
from zoo.datasets.token_windows import TokenWindows
from zoo.generation.decoding import decoder_for
from zoo.generation.sampling import generate
from zoo.training import Adam, Batches, CrossEntropy
from zoo.training.checkpoints import save

RESULTS = Path(__file__).parents[1] / "results"
VOCABULARY, LENGTH = 96, 64
Point = dict[str, float]

TITLES = {  # curve: title, x, y
    "images": ("training on images", "images", "images/s"),
    "tokens": ("training on a text", "tokens", "tokens/s"),
    "memory_training": ("memory over training steps", "steps", "MiB"),
    "memory_generation": ("memory over generations", "generations", "MiB"),
    "checkpoint_time": ("writing a checkpoint", "steps before", "ms"),
    "checkpoint_size": ("size of a checkpoint", "steps before", "MB"),
    "capacity": ("a token, without attention", "capacity of the cache", "ms"),
}


@dataclass(frozen=True)
class Config:
    """Measure how speed and memory grow on one backend, or plot what was measured."""

    steps: int = 100_000
    """Number of training steps over which the memory is measured."""
    generations: int = 2_000
    """Number of generations over which the memory is measured."""
    smallest: int = 1_000
    """Number of images and of windows of a text from which the data grow 100 times."""
    turns: int = 7
    """Number of timed turns of each point."""
    capacities: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Capacities of the cache of keys and values, in tokens."""
    plot: bool = False
    """Plot results/growth.json instead of measuring."""
    out: Path = RESULTS / "growth.json"
    """JSON file to which the curves are added; the plot lies beside it."""


def small_gpt(max_length: int = LENGTH) -> keras.Model:
    return zoo.gpt(VOCABULARY, max_length, num_layers=2, num_heads=2, hidden_dim=32)


def compiled(network: keras.Model) -> keras.Model:
    trainer = zoo.Trainer(network)
    trainer.compile(Adam(1e-3), CrossEntropy())
    return trainer


def growing_data(config: Config, batches: Callable[[int], Batches], network: Any) -> list[Point]:
    """Examples a second of `fit`, while the examples grow 100 times."""
    points = []
    for factor in (1, 10, 100):
        examples = factor * config.smallest
        data = batches(examples)
        steps = max(1, config.steps // 2000)
        seconds = time_fit(compiled(network()), data, config.turns + 1, steps)[1:]
        points.append({"x": examples, "y": data.batch_size / quartiles(seconds)[1]})
    return points


def image_batches(examples: int) -> Batches:
    generator = np.random.default_rng(0)
    images = generator.random((examples, 28, 28, 1), np.float32)
    return Batches((images, np.arange(examples, dtype=np.int32) % 10), 64, seed=0)


def text_batches(windows: int) -> Batches:
    """Windows of a text on the disk, side by side."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, windows * LENGTH + 1).astype(np.uint16)
    with tempfile.TemporaryFile() as file:
        file.write(ids.tobytes())
        file.flush()
        return Batches(TokenWindows(np.memmap(file, np.uint16, "r"), LENGTH), 12, seed=0)


def resident_mebibytes() -> float:
    """Memory of this process that is in use now, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 2**10


def training_memory(config: Config) -> list[Point]:
    """Memory after each tenth of the training steps."""
    points: list[Point] = []
    turns = 10

    def between() -> None:
        points.append({"x": len(points) * config.steps / turns, "y": resident_mebibytes()})

    trainer, data = compiled(small_gpt()), text_batches(config.smallest)
    time_fit(trainer, data, turns, steps=config.steps // turns - 1, between=between)
    return points[1:]  # before the first turn nothing is compiled


def generation_memory(config: Config) -> list[Point]:
    """Memory after each tenth of the generations, of prompts of ten lengths in turn."""
    network, points = small_gpt(), []
    for number in range(1, config.generations + 1):
        prompt = np.arange(1 + number % 10, dtype=np.int32)
        generate(network, [prompt], 16, seed=number)
        if number % (config.generations // 10) == 0:
            points.append({"x": number, "y": resident_mebibytes()})
    return points


def checkpoints(config: Config) -> tuple[list[Point], list[Point]]:
    """Milliseconds and megabytes of a checkpoint after more and more steps."""
    times: list[Point] = []
    sizes: list[Point] = []
    trainer, data = compiled(small_gpt()), text_batches(config.smallest)
    done = 0
    for steps in (config.steps // 1000, config.steps // 100, config.steps // 10):
        batches = Batches(
            data.examples, data.batch_size, seed=0, steps_per_epoch=max(steps - done, 1)
        )
        trainer.fit(batches, verbose=0)
        done = steps
        seconds = []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(config.turns):
                started = time.perf_counter()
                path = save(Path(folder), steps, {}, model=trainer, optimizer=trainer.optimizer)
                seconds.append(time.perf_counter() - started)
            sizes.append({"x": steps, "y": path.stat().st_size / 1e6})
        times.append({"x": steps, "y": 1000 * quartiles(seconds)[1]})
    return times, sizes


def token_times(config: Config) -> list[Point]:
    """Milliseconds of one token, less those of attention, while the capacity grows."""
    points = []
    for capacity in config.capacities:
        network = small_gpt(capacity)
        decoder = decoder_for(network)
        decoder.prefill([np.zeros(1, np.int32)], capacity)
        token = np.zeros((1, 1), np.int32)
        total = median_seconds(lambda d=decoder, t=token: d.decode(t), config.turns)
        block = decoder.blocks[0]
        shape, dtype = block.cache_spec(1, capacity)
        keys = ops.zeros(shape, dtype)
        query = ops.zeros((1, 1, shape[1], shape[3]), dtype)
        mask = ops.ones((1, 1, 1, capacity), "bool")
        attend = backend.inference_function(
            network, lambda q, k, m: backend.cached_attention(q, k, k, m, 1.0)
        )
        attention = median_seconds(
            lambda f=attend, q=query, k=keys, m=mask: f(q, k, m), config.turns
        )
        points.append({"x": capacity, "y": 1000 * (total - len(decoder.blocks) * attention)})
    return points


def median_seconds(call: Callable[[], Any], turns: int, calls: int = 20) -> float:
    """Median time of a call, whose result is read."""
    seconds = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        for _ in range(calls):
            ops.convert_to_numpy(call())
        seconds.append((time.perf_counter() - started) / calls)
    return quartiles(seconds[1:])[1]


def plot(config: Config) -> None:
    """Draws a panel for each curve, with a line for each backend."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    content = json.loads(config.out.read_text())
    figure, panels = pyplot.subplots(2, 4, figsize=(16, 7), layout="constrained")
    for panel, (curve, (title, x, y)) in zip(panels.flat, TITLES.items()):
        for name, curves in content.items():
            points = curves[curve]
            panel.plot([p["x"] for p in points], [p["y"] for p in points], "o-", label=name)
        panel.set(title=title, xlabel=x, ylabel=y)
        panel.set_xscale("linear" if curve.startswith("memory") else "log")
        panel.set_ylim(bottom=0)
    panels.flat[0].legend()
    panels.flat[-1].set_axis_off()
    figure.savefig(config.out.with_suffix(".png"), dpi=80)
    pyplot.close(figure)


def main(config: Config) -> None:
    if config.plot:
        plot(config)
        return
    backend.keep_malloc_pages()
    curves: dict[str, list[Point]] = {
        "images": growing_data(config, image_batches, zoo.mlp),
        "tokens": [
            {"x": LENGTH * point["x"], "y": LENGTH * point["y"]}
            for point in growing_data(config, text_batches, small_gpt)
        ],
        "memory_training": training_memory(config),
        "memory_generation": generation_memory(config),
    }
    curves["checkpoint_time"], curves["checkpoint_size"] = checkpoints(config)
    curves["capacity"] = token_times(config)
    content = json.loads(config.out.read_text()) if config.out.exists() else {}
    content[backends.name] = curves
    config.out.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")
    for curve, points in curves.items():
        print(f"{TITLES[curve][0]}: ", ", ".join(f"{p['x']:g}: {p['y']:.4g}" for p in points))


if __name__ == "__main__":
    main(tyro.cli(Config))
