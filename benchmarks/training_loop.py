"""Training steps of `zoo.Trainer.fit` against those of the package's former loop, in turn.

    git worktree add ../former 447658a
    python -m benchmarks.training_loop ../former --out results/training_loop.json

The former loop, `zoo.training.fit` of commit 447658a, called one compiled step for each batch; the
images' augmentation was inside, as it is now. Both loops are started in processes of their own and
then take turns, a few steps each, so that whatever else the machine does meets both. A ratio above
1 means that `fit` is faster: the median over all turns, between their quartiles. All three backends
must be installed, or be left out by `--backends`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {  # steps of a turn
    "mlp": 200,
    "cnn_48x48": 4,
    "rnn_language_model": 6,
    "gpt": 20,
    "unet": 4,
}
TURNS = 10  # of each process, after one to warm up
ROUNDS = 2  # pairs of processes


def examples(model: str, steps: int) -> tuple[int, tuple[np.ndarray, ...]]:
    """Batch size and examples of a training, the same for both loops."""
    generator = np.random.default_rng(0)
    if model in ("mlp", "cnn_48x48"):
        size = 48 if model == "cnn_48x48" else 28
        images = generator.integers(0, 256, (64 * steps, size, size, 1), np.uint8)
        return 64, (images, generator.integers(0, 10, 64 * steps).astype(np.int32))
    if model == "unet":
        return 64, (generator.integers(0, 256, (64 * steps, 28, 28, 1), np.uint8),)
    batch, length, vocabulary = (32, 64, 5000) if model == "rnn_language_model" else (12, 64, 65)
    ids = generator.integers(0, vocabulary, (batch * steps, length + 1)).astype(np.int32)
    return batch, (ids,)


def build(zoo: Any, model: str) -> Any:
    """The model that is trained, from either checkout."""
    if model == "mlp":
        return zoo.mlp((28, 28, 1), 10, seed=0)
    if model == "cnn_48x48":
        return zoo.cnn_48x48(10, seed=0)
    if model == "rnn_language_model":
        return zoo.rnn_language_model(5000, "lstm", 256, 256, 1, 0.2, seed=0)
    if model == "gpt":
        return zoo.gpt(65, 64, 4, 4, 128, seed=0)
    return zoo.unet((28, 28, 1), (24, 48, 96), seed=0)


class Turns:
    """Waits for a line of input before each turn and answers with the seconds that it took."""

    def __init__(self, steps: int):
        self.steps = steps
        self.started = time.perf_counter()

    def before(self, step: int) -> None:
        if step and step % self.steps == 0:
            print(time.perf_counter() - self.started, flush=True)
            sys.stdin.readline()
            self.started = time.perf_counter()


def train_by_former_loop(model: str, turns: Turns, steps: int) -> None:
    """Trains with the loop of commit 447658a."""
    import zoo
    from zoo import augment, backends, objectives, optimizers, training
    from zoo.diffusion import learning, process, schedule

    backends.backend.keep_freed_memory()
    network = build(zoo, model)
    batch, arrays = examples(model, steps)
    optimizer = optimizers.Adam(1e-3)
    optimizer.build(network.trainable_variables)
    if model in ("mlp", "cnn_48x48"):
        shape = (28, 28, 1) if model == "mlp" else None
        transform = augment.ImageTransform((0.13,), (0.31,), shape=shape)
        objective = objectives.classification_objective(network, transform, 0)
        data: Any = training.InMemory(*arrays)
    elif model == "unet":
        diffusion = process.Process(schedule.cosine(1000), "v")
        objective = learning.diffusion_objective(network, diffusion, 0)
        data = training.InMemory(*arrays, np.zeros(len(arrays[0]), np.int32))
    else:
        objective = objectives.language_objective(network)

        def data(indices: np.ndarray) -> tuple[np.ndarray]:
            return (arrays[0][indices],)

    step = backends.backend.train_step(network, optimizer, objective)
    order = training.batch_order(0, 0, len(arrays[0]))
    for number in range(steps):
        turns.before(number)
        metrics = step(*data(order[number * batch : (number + 1) * batch]), np.int32(number))
        for value in metrics.values():
            float(value)


def compiled_trainer(zoo: Any, model: str, steps: int) -> tuple[Any, Any, int]:
    """Trainer of a model, the examples of so many steps, and their batch size."""
    from zoo.datasets.augmentation import ImageAugmentation
    from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
    from zoo.diffusion.losses import DiffusionTrainer
    from zoo.diffusion.noise_schedule import cosine
    from zoo.training import Adam, CrossEntropy

    network = build(zoo, model)
    batch, arrays = examples(model, steps)
    data: Any
    if model in ("mlp", "cnn_48x48"):
        shape = (28, 28, 1) if model == "mlp" else None
        trainer = zoo.Trainer(network, ImageAugmentation((0.13,), (0.31,), shape=shape))
        trainer.compile(Adam(1e-3), CrossEntropy(), metrics=["accuracy"])
        data = arrays
    elif model == "unet":
        trainer = DiffusionTrainer(network, GaussianDiffusion(cosine(1000), "v"))
        trainer.compile(Adam(1e-3))
        data = {"image": arrays[0]}
    else:
        trainer = zoo.Trainer(network)
        trainer.compile(Adam(1e-3), CrossEntropy())
        data = arrays[0][:, :-1], arrays[0][:, 1:]
    return trainer, data, batch


def train_by_fit(model: str, turns: Turns, steps: int) -> None:
    """Trains with `Trainer.fit`."""
    import keras

    import zoo
    from zoo import backends
    from zoo.training import Batches

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            turns.before(batch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])  # waits for the step, as a progress bar does

    backends.backend.keep_malloc_pages()
    trainer, data, batch = compiled_trainer(zoo, model, steps)
    trainer.fit(Batches(data, batch, seed=0), callbacks=[Clock()], verbose=0)


def start(checkout: Path, loop: str, backend: str, model: str) -> subprocess.Popen[str]:
    """A process that trains with one of the loops and waits for its turns."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(checkout),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, __file__, loop, model],
        env=environment, stdin=pipe, stdout=pipe, text=True,
    )  # fmt: skip


def answer(process: subprocess.Popen[str], request: str = "") -> float:
    """Seconds of the turn that a process takes, after the request if there is one."""
    assert process.stdin
    assert process.stdout
    if request:
        print(request, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def measure(former: Path, backend: str, model: str) -> np.ndarray:
    """Milliseconds of a step in each turn of the former loop and of `fit`, (turns, 2)."""
    seconds = []
    for _ in range(ROUNDS):
        loops = [
            start(former, "former", backend, model),
            start(Path(__file__).resolve().parents[1], "fit", backend, model),
        ]
        for process in loops:
            answer(process)  # the first turn compiles
        seconds += [[answer(process, "go") for process in loops] for _ in range(TURNS)]
        for process in loops:
            process.kill()
            process.wait()
    return 1e3 * np.array(seconds) / MODELS[model]


def main() -> None:
    """Measures every model on every backend and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("former", type=Path, help="Checkout of commit 447658a.")
    parser.add_argument("--out", type=Path, help="JSON file for the results.")
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "torch", "jax"])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    results: dict[str, Any] = (
        json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    )
    for model in options.models:
        for backend in options.backends:
            times = measure(options.former.resolve(), backend, model)
            former, fit = np.median(times, axis=0)
            low, ratio, high = np.percentile(times[:, 0] / times[:, 1], (25, 50, 75))
            results.setdefault(model, {})[backend] = {
                "former_ms": round(former, 2), "fit_ms": round(fit, 2),
                "ratio": round(ratio, 3), "quartiles": [round(low, 3), round(high, 3)],
            }  # fmt: skip
            print(
                f"{model:20} {backend:12} {former:8.2f} {fit:8.2f} ms  "
                f"{ratio:.3f} ({low:.3f} to {high:.3f})",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("former", "fit"):
        sys.path.pop(0)
        _, loop, model = sys.argv
        turns = Turns(MODELS[model])
        train = train_by_former_loop if loop == "former" else train_by_fit
        train(model, turns, (TURNS + 1) * turns.steps + 1)
    else:
        main()
