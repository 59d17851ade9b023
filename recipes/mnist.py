"""Trains the document's CNN on MNIST or any other set of labelled images.

    KERAS_BACKEND=jax python recipes/mnist.py --quick

`--quick` takes one to three minutes on two CPU cores and reaches about 97 % on the 10,000 test
images; the document's full setting reaches about 99 % (see results/). Run it again with the same
`--run-dir` to go on where it stopped, on this backend or another.

Source: the document's section "Exemple de code d'entraînement CNN".
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from zoo import backends, cli, datasets, registry
from zoo.datasets.augmentation import ImageTransform
from zoo.evaluation import classification
from zoo.training import batches, losses, trainer
from zoo.training.optimizers import Adam, learning_rate_schedule
from zoo.training.run_directory import TrainingConfig, open_run, set_defaults


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train an image classifier; the defaults are the document's setting."""

    dataset: str = "mnist"
    """mnist, or a name of TensorFlow Datasets such as fashion_mnist."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data; by default its own folder."""
    model: str = "cnn_48x48"
    """The network: cnn_48x48, mlp, simple_rnn, lstm or gru; the last three read rows of pixels."""
    epochs: int | None = None
    """Passes over the training images; by default 5, with --quick 1."""
    train_examples: int | None = None
    """Training images, the first so many; by default all, with --quick 12,800."""
    test_examples: int | None = None
    """Test images, the first so many; by default all."""
    batch_size: int = 64
    """Images of a training step."""
    learning_rate: float = 1e-3
    """Adam's step size, at its largest."""
    weight_decay: float = 1e-4
    """Factor of the L2 penalty's gradient, as in torch.optim.Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate over the run; cosine falls to 0 at the end."""
    quick: bool = False
    """A short run: 1 epoch over 12,800 images, where not set otherwise."""

    def __post_init__(self) -> None:
        chosen = {"epochs": 1, "train_examples": 12_800} if self.quick else {"epochs": 5}
        set_defaults(self, **chosen)
        for name in ("epochs", "train_examples", "test_examples", "batch_size", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if not self.weight_decay >= 0:
            raise ValueError(
                f"`weight_decay` must be 0 or more. Received: weight_decay={self.weight_decay}"
            )


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, and returns its metrics."""
    console = Console()
    classifier = registry.get_classifier(config.model)
    run = open_run("mnist", config, "data_dir")
    if run.metrics:
        score = run.metrics["test_accuracy"]
        console.print(f"The run in {run.path} is finished: {score:.2%} correct")
        return run.metrics
    if config.deterministic:
        backends.backend.make_deterministic()

    counts = config.train_examples, config.test_examples
    images = classifier.images
    data = datasets.load(config.dataset, images.size, *counts, config.data_dir)
    shape = images.shape(data.x_train.shape[-1])
    transform = ImageTransform(data.mean, data.std, shape=shape)
    model = classifier.build(
        num_classes=data.num_classes,
        seed=config.seed,
        dtype=config.dtype_policy,
        **({} if images.channels else {"input_shape": shape}),
    )
    epochs = config.epochs or 5
    steps = epochs * math.ceil(len(data.x_train) / config.batch_size)
    rate = learning_rate_schedule(config.schedule, config.learning_rate, steps)
    optimizer = Adam(rate, l2=config.weight_decay)
    console.print(
        f"{model.name} on {data.name} with {backends.name}: {len(data.x_train)} images to train "
        f"on, {len(data.x_test)} to test with; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    predict = classification.image_predictor(model, transform)
    state = trainer.fit(
        model,
        optimizer,
        losses.classification_objective(model, transform, config.seed),
        batches.InMemory(data.x_train, data.y_train),
        run,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        evaluate=classification.image_evaluator(predict, data),
        checkpoint_steps=config.checkpoint_steps,
        console=console,
    )
    scores = classification.write_report(run, state.history, data, predict(data.x_test), console)
    model.save_weights(run.path / "model.weights.h5")
    metrics = {
        "recipe": "mnist",
        "model": config.model,
        "dataset": data.name,
        "mean": data.mean,
        "std": data.std,
        **trainer.environment(),
        "backends": state.backends,
        "seed": config.seed,
        "parameters": model.count_params(),
        "train_examples": len(data.x_train),
        "test_examples": len(data.x_test),
        "epochs": epochs,
        **scores,
        "examples_per_second": state.examples_per_second,
        "wall_seconds": state.wall_seconds,
    }
    run.write_metrics(metrics)
    console.print(f"Results are in {run.path}")
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
