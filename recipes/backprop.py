"""Backpropagation by hand: an MLP on MNIST by the document's four steps, in `keras.ops`.

    KERAS_BACKEND=jax python recipes/backprop.py --quick

`--quick` takes half a minute on two CPU cores. Prints how far gradients by hand (by the chain rule,
in zoo/lessons/backprop.py) are from the backend's own: at most 1e-5 in float32, 1e-12 in float64.
Then one network learns by hand and one by `fit`, from the same seed; curves.png shows that they
coincide.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table

from zoo import Trainer, backends, cli, datasets, mlp
from zoo.backends import backend
from zoo.datasets.augmentation import ImageAugmentation
from zoo.evaluation import classification, plots
from zoo.evaluation.gradients import distances
from zoo.lessons.backprop import backward, cross_entropy, forward, layers_of, update
from zoo.progress import Progress
from zoo.training import Batches, CrossEntropy
from zoo.training.config import TrainingConfig, open_run, set_defaults
from zoo.training.run_callbacks import StepLosses
from zoo.training.run_directory import RunDirectory
from zoo.validation import MAX_LAYERS, Count, Positive, Size, each, validated, whole

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@validated
@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Derive an MLP's gradients by hand, compare them with the backend's own, train by both."""

    hidden_units: Annotated[tuple[int, ...], each(whole(), 0, MAX_LAYERS)] = (128, 64, 32)
    """Width of each hidden layer."""
    activation: tuple[Literal["sigmoid", "relu", "tanh"], ...] = ("relu", "tanh", "sigmoid")
    """Activation of each hidden layer, or one for all."""
    epochs: Count | None = None
    """Passes over the training images; by default 5, with --quick 1."""
    train_examples: Count | None = None
    """Number of training images, from the first on; by default all, with --quick 12,800."""
    batch_size: Size = 64
    """Number of images in a training step."""
    learning_rate: Positive = 0.2
    """Step size of gradient descent; at 0.5 rounding grows in a long run until the two differ."""
    dtype_policy: Literal["float32", "float64"] = "float64"
    """Dtype of the training; in float32 the two differ by rounding after a long run."""
    quick: bool = False
    """A short run: 1 epoch over 12,800 images, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 1, "train_examples": 12_800}
        set_defaults(self, **(quick if self.quick else {"epochs": 5}))

    def build(self, dtype: str) -> keras.Model:
        """The network, from flattened images."""
        one = self.activation[0] if len(self.activation) == 1 else self.activation
        return mlp((784,), 10, self.hidden_units, one, seed=self.seed, dtype=dtype)


def train_by_hand(
    config: Config, pixels: Any, batches: Batches, steps: int
) -> tuple[Any, list[float]]:
    """The trained layers, and the mean loss of the epoch so far after each step."""
    layers, means = layers_of(config.build(config.dtype_policy)), []
    progress = Progress("by hand", steps, config.quiet)
    for step in range(steps):
        images, labels = batches[step]
        labels = ops.convert_to_tensor(labels)
        outputs = forward(layers, pixels(images))
        if step % batches.steps_per_epoch == 0:
            losses, sizes = [], []
        losses.append(float(cross_entropy(outputs[-1], labels)))
        sizes.append(len(images))
        means.append(np.dot(losses, sizes) / sum(sizes))
        layers = update(layers, backward(layers, outputs, labels), config.learning_rate)
        progress.advance()
    return layers, means


@backend.float64()
def main(config: Config) -> dict[str, Any]:
    """Runs the recipe and returns its metrics."""
    console = cli.recipe_console(config.quiet)
    backend.disable_tf32()
    with open_run("backprop", config) as run:
        if run.metrics:
            console.print(f"The run in {run.path} is finished; metrics.json holds its results")
            return {**run.metrics, "gradients_agree": run.result("gradients_agree", bool)}
        config.prepare()
        return train(config, run, console)


def train(config: Config, run: RunDirectory, console: Console) -> dict[str, Any]:
    """Compares the gradients, trains by hand and by `fit`; writes and returns the metrics."""
    data = datasets.load("mnist", None, config.train_examples)
    normalization = ImageAugmentation(data.mean, data.std, 0, 0, 0, shape=(784,))

    x, labels = normalization(data.x_train[: config.batch_size]), data.y_train[: config.batch_size]
    by_dtype = {dtype: distances(config.build(dtype), x, labels) for dtype in TOLERANCES}
    limits = (f"{dtype}, at most {limit:.0e}" for dtype, limit in TOLERANCES.items())
    table = Table("gradient of", *limits)
    for weight in by_dtype["float32"]:
        table.add_row(weight, *(f"{distance[weight]:.1e}" for distance in by_dtype.values()))
    console.print(f"By hand against {backends.name}'s own, relative:", table)
    largest = {dtype: max(distance.values()) for dtype, distance in by_dtype.items()}

    batch_size = config.batch_size * config.gradient_accumulation
    batches = Batches((data.x_train, data.y_train), batch_size, seed=config.seed)
    network = config.build(config.dtype_policy)
    trainer = Trainer(network, normalization)
    trainer.compile(
        keras.optimizers.SGD(config.learning_rate, name="sgd"), CrossEntropy(), metrics=["accuracy"]
    )
    test = Batches((data.x_test, data.y_test), batch_size=256)
    checkpoint = run.checkpoint(config.checkpoint_steps, console)
    step_losses = StepLosses(run, checkpoint)
    trainer.fit(
        batches,
        epochs=config.epochs,
        validation_data=test,
        callbacks=[step_losses, *config.callbacks()],
        verbose=config.verbose,
        checkpoint=checkpoint,
        gradient_accumulation=config.gradient_accumulation,
    )
    test_loss, test_accuracy = trainer.evaluate(test, verbose=0)

    steps = checkpoint.state.step  # fewer than asked for if `patience` ran out
    layers, losses_by_hand = train_by_hand(config, normalization, batches, steps)
    logits = ops.convert_to_numpy(forward(layers, normalization(data.x_test))[-1])
    _, accuracy_by_hand = classification.loss_and_accuracy(logits, data.y_test)
    losses = step_losses.values
    apart = plots.relative_distances(losses_by_hand, losses)
    curves = plots.plot_same_run({"by hand": losses_by_hand, "fit": losses})
    run.save_plot("curves.png", curves)
    run.save_model(network)
    console.print(
        f"{steps} steps: {accuracy_by_hand:.2%} right by hand, {test_accuracy:.2%} "
        f"by `fit`. The last loss differs by {apart[-1]:.1e} of itself, none by more than "
        f"{np.nanmax(apart):.1e}: sums in another order round differently in the last digit of "
        f"{config.dtype_policy}, and training amplifies that"
    )
    return run.finish(
        "backprop", network, checkpoint.state, console, seed=config.seed,
        train_examples=len(data.x_train), epochs=config.epochs, test_loss=test_loss,
        test_accuracy=test_accuracy, test_accuracy_by_hand=accuracy_by_hand,
        gradient_distances=largest,
        gradients_agree=all(largest[dtype] <= TOLERANCES[dtype] for dtype in largest),
        loss_distance={"last": float(apart[-1]), "largest": float(np.nanmax(apart))},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: int(not cli.run_recipe(main, Config)["gradients_agree"])))
