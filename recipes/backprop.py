"""Backpropagation by hand: an MLP on MNIST by the document's four steps, in `keras.ops`.

    KERAS_BACKEND=jax python recipes/backprop.py --quick

`--quick` takes half a minute on two CPU cores. Prints how far gradients by hand (by the chain rule,
in zoo/lessons/backprop.py) are from the backend's own: at most 1e-5 in float32, 1e-12 in float64.
Then one network learns by hand and one by `fit`, from the same seed; curves.png shows that they
coincide.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import tyro
from keras import ops
from rich.table import Table

from zoo import backends, cli, datasets, mlp
from zoo.backends import backend
from zoo.datasets.augmentation import ImageTransform
from zoo.evaluation import classification, plots
from zoo.evaluation.gradients import distances
from zoo.lessons.backprop import backward, cross_entropy, forward, layers_of, update
from zoo.training import batches, losses, optimizers, run_directory, trainer
from zoo.validation import check_sizes

ALLOWED = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Config:
    """Derive an MLP's gradients by hand, compare them with the backend's own, train by both."""

    hidden_units: tuple[int, ...] = (128, 64, 32)
    """Width of each hidden layer."""
    activation: tuple[Literal["sigmoid", "relu", "tanh"], ...] = ("relu", "tanh", "sigmoid")
    """Of each hidden layer, or one for all."""
    epochs: int | None = None
    """Passes over the training images; by default 5, with --quick 1."""
    train_examples: int | None = None
    """Training images, the first so many; by default all, with --quick 12,800."""
    batch_size: int = 64
    """Images of a training step."""
    learning_rate: float = 0.2
    """Step size of gradient descent; at 0.5 a long run carries rounding to where the two part."""
    seed: int = 0
    """Of initial weights and order; the same run on every backend."""
    dtype: Literal["float32", "float64"] = "float64"
    """Of the training; in float32 the two part in a long run, by rounding."""
    run_dir: Path | None = None
    """Where results and checkpoints go; by default a new folder in runs/."""
    quick: bool = False
    """A short run: 1 epoch over 12,800 images, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 1, "train_examples": 12_800}
        run_directory.set_defaults(self, **(quick if self.quick else {"epochs": 5}))
        check_sizes(epochs=self.epochs, batch_size=self.batch_size)
        optimizers.learning_rate_schedule("constant", self.learning_rate, 0)

    def build(self, dtype: str) -> keras.Model:
        """The network, from flattened images."""
        one = self.activation[0] if len(self.activation) == 1 else self.activation
        return mlp((784,), 10, self.hidden_units, one, seed=self.seed, dtype=dtype)


def train_by_hand(
    config: Config, pixels: Any, data: datasets.ImageDataset
) -> tuple[Any, list[float]]:
    """The layers in the end, and the loss of every step."""
    layers, losses = layers_of(config.build(config.dtype)), []
    for epoch in range(config.epochs or 0):
        order = batches.shuffled_indices(config.seed, epoch, len(data.x_train))
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            labels = ops.convert_to_tensor(data.y_train[batch])
            outputs = forward(layers, pixels(data.x_train[batch]))
            losses.append(float(cross_entropy(outputs[-1], labels)))
            gradients = backward(layers, outputs, labels)
            layers = update(layers, gradients, config.learning_rate)
    return layers, losses


@backend.float64()
def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, and returns its metrics."""
    console = cli.console()
    backend.disable_tf32()
    run = run_directory.open_run("backprop", config)
    if run.metrics:
        console.print(f"The run in {run.path} is finished; metrics.json holds its results")
        return run.metrics
    data = datasets.load("mnist", None, config.train_examples)
    transform = ImageTransform(data.mean, data.std, 0, 0, 0, shape=(784,))  # nothing is augmented
    model = config.build(config.dtype)

    x, labels = transform.test(data.x_train[: config.batch_size]), data.y_train[: config.batch_size]
    found = {dtype: distances(config.build(dtype), x, labels) for dtype in ALLOWED}
    table = Table("gradient of", *(f"{dtype}, at most {ALLOWED[dtype]:.0e}" for dtype in found))
    for weight in found["float32"]:
        table.add_row(weight, *(f"{far[weight]:.1e}" for far in found.values()))
    console.print(f"By hand against {backends.name}'s own, relative:", table)
    largest = {dtype: max(far.values()) for dtype, far in found.items()}

    layers, by_hand = train_by_hand(config, transform.test, data)
    logits = ops.convert_to_numpy(forward(layers, transform.test(data.x_test))[-1])
    _, accuracy_by_hand = classification.loss_and_accuracy(logits, data.y_test)
    evaluate = classification.image_evaluator(
        classification.image_predictor(model, transform), data
    )
    state = trainer.fit(
        model,
        keras.optimizers.SGD(config.learning_rate),
        losses.classification_objective(model, transform, config.seed),
        batches.InMemory(data.x_train, data.y_train),
        run,
        epochs=config.epochs or 1,
        batch_size=config.batch_size,
        seed=config.seed,
        evaluate=evaluate,
        console=console,
    )
    apart = plots.relative_distances(by_hand, state.losses)
    curves = plots.plot_same_run({"by hand": by_hand, "fit": state.losses})
    curves.savefig(run.path / "curves.png", dpi=120)
    model.save_weights(run.path / "model.weights.h5")
    metrics = trainer.metrics(
        "backprop",
        model,
        state,
        seed=config.seed,
        train_examples=len(data.x_train),
        epochs=config.epochs,
        **evaluate(),
        test_accuracy_by_hand=accuracy_by_hand,
        gradient_distances=largest,
        gradients_agree=all(largest[dtype] <= ALLOWED[dtype] for dtype in largest),
        loss_distance={"last": apart[-1], "largest": apart.max()},
    )
    run.write_metrics(metrics)
    console.print(
        f"{state.step} steps: {accuracy_by_hand:.2%} right by hand, {metrics['test_accuracy']:.2%} "
        f"by `fit`. The last loss differs by {apart[-1]:.1e} of itself, none by more than "
        f"{apart.max():.1e}: sums in another order round otherwise in {config.dtype}'s last digit, "
        f"and training carries that on. Results are in {run.path}"
    )
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: int(not main(tyro.cli(Config))["gradients_agree"])))
