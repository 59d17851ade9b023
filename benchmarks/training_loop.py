"""Training steps of `zoo.Trainer.fit` against those of the package's former loop, in turn.

    git worktree add ../former 447658a
    python -m benchmarks.training_loop ../former --out results/training_loop.json

The former loop, `zoo.training.fit` of commit 447658a, called one compiled step for each batch; the
images' augmentation was inside, as it is now. Each measurement is a process of its own, and the two
take turns, so that whatever else the machine does meets both. A ratio above 1 means that `fit` is
faster. Only backends that are installed in this environment are measured.
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

MODELS = {  # steps to time, after as many as in the second number
    "mlp": (300, 100),
    "cnn_48x48": (16, 3),
    "rnn_language_model": (20, 3),
    "gpt": (100, 20),
    "unet": (16, 3),
}
ROUNDS = 5


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


def former_steps(model: str, steps: int) -> list[float]:
    """Seconds of each step of the former loop."""
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
    seconds = []
    for number in range(steps):
        started = time.perf_counter()
        metrics = step(*data(order[number * batch : (number + 1) * batch]), np.int32(number))
        for value in metrics.values():
            float(value)
        seconds.append(time.perf_counter() - started)
    return seconds


def fit_steps(model: str, steps: int) -> list[float]:
    """Seconds of each step of `Trainer.fit`."""
    import keras

    import zoo
    from zoo import backends
    from zoo.datasets.augmentation import ImageAugmentation
    from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
    from zoo.diffusion.losses import DiffusionTrainer
    from zoo.diffusion.noise_schedule import cosine
    from zoo.training import Adam, Batches, CrossEntropy

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.times.append(time.perf_counter())

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])  # waits for the step, as a progress bar does

    backends.backend.keep_malloc_pages()
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
    clock = Clock()
    trainer.fit(Batches(data, batch, seed=0), callbacks=[clock], verbose=0)
    return np.diff(clock.times).tolist()


def measure(checkout: Path, loop: str, backend: str, model: str) -> float:
    """Median seconds of a step, in a process of its own."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(checkout),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, __file__, loop, model]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    seconds = json.loads(process.stdout.splitlines()[-1])
    return float(np.median(seconds[MODELS[model][1] :]))


def main() -> None:
    """Measures every model on every installed backend and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("former", type=Path, help="Checkout of commit 447658a.")
    parser.add_argument("--out", type=Path, help="JSON file for the results.")
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "torch", "jax"])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    results: dict[str, Any] = (
        json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    )
    for model in options.models:
        for backend in options.backends:
            pairs = [
                (
                    measure(options.former.resolve(), "former", backend, model),
                    measure(here, "fit", backend, model),
                )
                for _ in range(ROUNDS)
            ]
            ratios = sorted(former / fit for former, fit in pairs)
            former, fit = np.median(pairs, axis=0)
            results.setdefault(model, {})[backend] = {
                "former_ms": 1e3 * former, "fit_ms": 1e3 * fit, "ratios": ratios,
                "ratio": float(np.median(ratios)),
            }  # fmt: skip
            print(
                f"{model:20} {backend:12} {1e3 * former:8.2f} {1e3 * fit:8.2f}", ratios, flush=True
            )
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("former", "fit"):
        sys.path.pop(0)
        steps = sum(MODELS[sys.argv[2]]) + 1
        print(
            json.dumps((former_steps if sys.argv[1] == "former" else fit_steps)(sys.argv[2], steps))
        )
    else:
        main()
