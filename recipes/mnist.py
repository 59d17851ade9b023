"""Trains the document's CNN on MNIST or any other set of labelled images.

    KERAS_BACKEND=jax python recipes/mnist.py --quick

`--quick` takes one to three minutes on two CPU cores and reaches about 97 % on the 10,000 test
images; the document's full setting reaches about 99 % (see results/). The same `--run-dir` resumes
a run, on this backend or another; a finished run goes on if `--epochs` is raised.

Source: the document's section "Exemple de code d'entraînement CNN".
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from zoo import Trainer, backends, cli, datasets, registry, tasks
from zoo.datasets.augmentation import ImageAugmentation
from zoo.evaluation import classification
from zoo.training import Adam, Batches, CrossEntropy
from zoo.training.config import TrainingConfig, open_run, set_defaults
from zoo.training.optimizers import learning_rate_schedule
from zoo.training.run_directory import RunDirectory
from zoo.training.transfer import transfer_weights
from zoo.validation import Count, NonNegative, Positive, Size, validated

QUICK_EXAMPLES = 12_800  # or, of a smaller data set, all


@validated
@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train an image classifier; the defaults are the document's setting."""

    dataset: str = "mnist"
    """mnist; the path of a folder with a folder of images for each class, or of an .npz file with
    x_train, y_train, x_test, y_test; idx or gtsrb, with --data-dir; or a name of TensorFlow
    Datasets such as fashion_mnist. Without train/ and test/ above the folders of the classes, an
    image is a test image if the SHA-256 of its file name is below 20 %. Transparency becomes
    white; EXIF's orientation is respected."""
    data_dir: Path | None = None
    """Directory of TensorFlow Datasets, by default its own; for idx, of four files in MNIST's
    format; for gtsrb, of the German traffic signs, unpacked from the archives of
    https://benchmark.ini.rub.de or from the copy on Kaggle,
    meowmeowmeowmeowmeow/gtsrb-german-traffic-sign."""
    skip_unreadable: bool = False
    """Leave out image files that cannot be read, with a warning."""
    model: str = "cnn_48x48"
    """Network: cnn_48x48, mlp, simple_rnn, lstm or gru; the last three read rows of pixels."""
    weights: str | None = None
    """Trained weights to begin with: a name that `zoo weights` prints, a weights folder or a
    finished run. A head of another width is begun anew."""
    epochs: Count | None = None
    """Passes over the training images; by default 5, with --quick 1."""
    train_examples: Count | None = None
    """Number of training images, from the first on; by default all, with --quick 12,800
    or, in a smaller data set, all."""
    test_examples: Count | None = None
    """Number of test images, from the first on; by default all."""
    batch_size: Size = 64
    """Number of images in a training step."""
    learning_rate: Positive = 1e-3
    """Largest step size of Adam."""
    weight_decay: NonNegative = 1e-4
    """Factor of the L2 penalty's gradient, as in torch.optim.Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run; cosine falls to 0 at the end."""
    quick: bool = False
    """A short run: 1 epoch over 12,800 images, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 1, "train_examples": QUICK_EXAMPLES}
        set_defaults(self, **(quick if self.quick else {"epochs": 5}))


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, and returns its metrics."""
    console = cli.recipe_console(config.quiet)
    registry.get_classifier(config.model)  # raises ValueError for an unknown name
    with open_run("mnist", config, "data_dir", "skip_unreadable", extendable="epochs") as run:
        if metrics := run.metrics:
            score = run.result("test_accuracy")
            console.print(f"The run in {run.path} is finished: {score:.2%} correct")
            return metrics
        config.prepare()
        return train(config, run, console)


def train(config: Config, run: RunDirectory, console: Console) -> dict[str, Any]:
    """Trains the network, or resumes its training; writes and returns the metrics."""
    classifier = registry.get_classifier(config.model)
    sizes = config.train_examples, config.test_examples
    images = classifier.images
    fewer = config.quick and config.train_examples == QUICK_EXAMPLES
    data = datasets.load(
        config.dataset, images.size, *sizes, config.data_dir, allow_fewer=fewer,
        skip_unreadable=config.skip_unreadable, verbose=not config.quiet,
    )  # fmt: skip
    shape = images.shape(data.x_train.shape[-1])
    network = classifier.build(
        num_classes=data.num_classes,
        seed=config.seed,
        dtype=config.dtype_policy,
        **({} if images.channels else {"input_shape": shape}),
    )
    if config.weights is not None:
        head = transfer_weights(network, tasks.load(config.weights, "weights").model)
        anew = f"; {head}, the head for {data.num_classes} classes, is begun anew" if head else ""
        console.print(f"{network.name} begins with the weights of {config.weights}{anew}")
    batch_size = config.batch_size * config.gradient_accumulation
    train = Batches((data.x_train, data.y_train), batch_size, seed=config.seed)
    test = Batches((data.x_test, data.y_test), batch_size=256)
    steps = config.epochs * train.steps_per_epoch
    rate = learning_rate_schedule(config.schedule, config.learning_rate, steps)

    trainer = Trainer(
        network, ImageAugmentation(data.mean, data.std, shape=shape, seed=config.seed)
    )
    trainer.compile(Adam(rate, l2=config.weight_decay), CrossEntropy(), metrics=["accuracy"])
    run.write_config()
    console.print(
        f"{network.name} on {data.name} with {backends.name}: {len(data.x_train)} images to train "
        f"on, {len(data.x_test)} to test with; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    checkpoint = run.checkpoint(config.checkpoint_steps, console)
    history = trainer.fit(
        train,
        epochs=config.epochs,
        validation_data=test,
        callbacks=config.callbacks(),
        verbose=config.verbose,
        checkpoint=checkpoint,
        gradient_accumulation=config.gradient_accumulation,
    )
    test_loss, test_accuracy = trainer.evaluate(test, verbose=0)

    logits = trainer.predict(test, verbose=0)
    classification.write_report(run, history, data, logits, console)
    run.save_model(network)
    return run.finish(
        "mnist", network, checkpoint.state, console, model=config.model, dataset=data.name,
        class_names=data.class_names, mean=data.mean, std=data.std, seed=config.seed,
        train_examples=len(data.x_train), test_examples=len(data.x_test), epochs=config.epochs,
        test_loss=test_loss, test_accuracy=test_accuracy,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
