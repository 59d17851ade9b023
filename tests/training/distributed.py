"""Trainings of small networks, for one process or the workers of a cluster."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

import zoo
from zoo import cli, random
from zoo.datasets.augmentation import ImageAugmentation
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import DiffusionTrainer
from zoo.diffusion.noise_schedule import cosine
from zoo.initializers import FanInUniform
from zoo.training import (
    Adam,
    AdamW,
    Batches,
    CrossEntropy,
    StepCheckpoint,
    Trainer,
    cluster,
    distributed,
)

EPOCHS = 2
EXAMPLES = 12
# The classifier's last batch has two examples, fewer than three workers. Compiled backends take
# longer for batches of several sizes.
RAGGED, BATCH = 5, 4
TEST_EXAMPLES, TEST_BATCH = 7, 3  # of the classifier; the language model's are one batch
# The gradient of an attention's key bias is 0; Adam's usual epsilon would turn its rounding errors
# into steps.
EPSILON = 1e-5

_NUMBERS = np.random.default_rng(0)
IMAGES = _NUMBERS.integers(0, 256, (EXAMPLES, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(EXAMPLES, dtype=np.int32) % 3
IDS = _NUMBERS.integers(1, 11, (EXAMPLES, 7), dtype=np.int32)
WEIGHTS = _NUMBERS.random((EXAMPLES, 6), np.float32)  # of the targets
PROMPTS = _NUMBERS.integers(1, 9, (3, 2, 4), dtype=np.int32)  # of the classes


@dataclass
class Setup:
    """A compiled trainer, its batches, those that it is evaluated on, and arguments of `fit`."""

    trainer: Trainer
    batches: Batches
    test: Batches | None = None
    options: dict[str, Any] = field(default_factory=dict)
    predicts: bool = False


def classifier() -> Trainer:
    """A convolution, whose kernel is penalized, and dropout, behind augmentation."""
    layers = [
        keras.Input((8, 8, 1), name="images"),
        keras.layers.Conv2D(
            2, 3, activation="tanh", kernel_initializer=FanInUniform(0, "conv"), name="conv",
            kernel_regularizer=keras.regularizers.L2(0.1),
        ),
        keras.layers.Flatten(),
        random.Dropout(0.5, name="dropout"),
        keras.layers.Dense(3, kernel_initializer=FanInUniform(0, "dense"), name="logits"),
    ]  # fmt: skip
    augmentation = ImageAugmentation((0.5,), (0.25,), shape=(8, 8, 1))
    return Trainer(keras.Sequential(layers, name="classifier"), augmentation)


def cnn() -> Setup:
    """Classes with weights, by whose sum the loss is divided, and averaged weights."""
    trainer = classifier()
    optimizer = Adam(1e-2, use_ema=True, ema_momentum=0.9, global_clipnorm=0.5)
    trainer.compile(optimizer, CrossEntropy(), metrics=["accuracy"])
    test = Batches((IMAGES[:TEST_EXAMPLES], LABELS[:TEST_EXAMPLES]), TEST_BATCH)
    class_weight = {0: 0.5, 1: 1.0, 2: 3.0}
    batches = Batches((IMAGES, LABELS), RAGGED, seed=3)
    return Setup(trainer, batches, test, {"class_weight": class_weight}, predicts=True)


def accumulated() -> Setup:
    """The same in parts, whose numbers differ among workers."""
    setup = cnn()
    setup.options["gradient_accumulation"] = 2
    return setup


def lstm() -> Setup:
    """Targets with weights, which Keras' own loss does not divide by."""
    trainer = Trainer(zoo.rnn_language_model(11, "lstm", 4, 6, dropout=0.3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(Adam(1e-2, global_clipnorm=0.5), loss, weighted_metrics=["accuracy"])
    examples = IDS[:, :-1], IDS[:, 1:], WEIGHTS
    test = Batches(tuple(array[:TEST_EXAMPLES] for array in examples))
    return Setup(trainer, Batches(examples, BATCH, seed=3), test)


def gpt() -> Setup:
    trainer = Trainer(zoo.gpt(11, 6, 1, 2, 8, dropout=0.3))
    optimizer = AdamW(1e-2, global_clipnorm=0.5, epsilon=EPSILON)
    trainer.compile(optimizer, CrossEntropy(), metrics=["accuracy"])
    return Setup(trainer, Batches((IDS[:, :-1], IDS[:, 1:]), BATCH, seed=3))


def text_to_image() -> Setup:
    network = zoo.text_to_image(
        9, 4, hidden_dim=8, input_shape=(8, 8, 1), channels=(8,), num_steps=20, dropout=0.3
    )
    return _diffusion(network)


def diffusion() -> Setup:
    """A network that compiles in a tenth of the time of `text_to_image`."""
    image, time = keras.Input((8, 8, 1), name="image"), keras.Input((), dtype="int32", name="time")
    prompt = keras.Input((4,), dtype="int32", name="prompt")
    kernel = FanInUniform(0, "kernel")
    embedding = keras.layers.Embedding(20, 8, embeddings_initializer=kernel)(time)
    prompts = keras.layers.Embedding(9, 8, embeddings_initializer=kernel)(prompt)
    embedding += keras.ops.mean(prompts, axis=1)
    outputs = keras.layers.Conv2D(8, 3, padding="same", kernel_initializer=kernel)(image)
    outputs = random.Dropout(0.3, name="dropout")(outputs)
    outputs += keras.ops.reshape(embedding, (-1, 1, 1, 8))
    outputs = keras.layers.Dense(1, kernel_initializer=kernel)(keras.ops.tanh(outputs))
    return _diffusion(keras.Model({"image": image, "time": time, "prompt": prompt}, outputs))


def _diffusion(network: keras.Model) -> Setup:
    """Noise, time steps and prompts of each image, of which some are dropped."""
    trainer = DiffusionTrainer(network, GaussianDiffusion(cosine(20)), 0, PROMPTS)
    trainer.compile(Adam(1e-2, global_clipnorm=0.5, epsilon=EPSILON))
    return Setup(trainer, Batches({"image": IMAGES, "label": LABELS}, BATCH, seed=3))


class _EachStep(keras.callbacks.Callback):
    """Records the logs of each step, and calls a function with the step's number before it."""

    def __init__(self, before: Callable[[int], None]):
        super().__init__()
        self.logs: list[list[float]] = []
        self._before = before
        self._step = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._before(self._step)
        self._step += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.logs.append([float(logs[name]) for name in sorted(logs)])


def train(
    setup: Setup,
    folder: Path | None = None,
    before_step: Callable[[int], None] = lambda step: None,
) -> dict[str, np.ndarray]:
    """Trains, evaluates and predicts; with a folder, from its last checkpoint on."""
    trainer, steps = setup.trainer, _EachStep(before_step)
    checkpoint = None if folder is None else StepCheckpoint(folder, every=1)
    history = trainer.fit(
        setup.batches, epochs=EPOCHS, validation_data=setup.test, verbose=0, callbacks=[steps],
        checkpoint=checkpoint, **setup.options,
    )  # fmt: skip
    optimizer = trainer.optimizer.variables
    predictions = trainer.predict(setup.test, verbose=0) if setup.predicts else []
    scores = trainer.evaluate(setup.test, verbose=0) if setup.test is not None else []
    return {
        "predictions": np.asarray(predictions),
        "steps": np.array(steps.logs),
        "history": np.array([history.history[name] for name in sorted(history.history)]),
        "scores": np.array(scores),
        **{f"weight {number}": w for number, w in enumerate(trainer.network.get_weights())},
        **{
            f"optimizer {number}": np.array(keras.ops.convert_to_numpy(variable.value))
            for number, variable in enumerate(optimizer)
        },
    }


def two_losses() -> Setup:
    """Two outputs, each with a loss and weights of the examples."""
    inputs = keras.Input((8, 8, 1), name="images")
    flat = keras.layers.Flatten()(inputs)
    outputs = [
        keras.layers.Dense(3, kernel_initializer=FanInUniform(0, name), name=name)(flat)
        for name in ("logits", "values")
    ]
    trainer = Trainer(keras.Model(inputs, outputs, name="two_outputs"))
    trainer.compile(Adam(1e-2), [CrossEntropy(), "mean_squared_error"], loss_weights=[1.0, 0.5])
    examples = (
        (IMAGES / 255).astype(np.float32),
        (LABELS, np.eye(3, dtype=np.float32)[LABELS]),
        (WEIGHTS[:, 0], WEIGHTS[:, 1]),
    )
    # Batches of one size, since Keras on TensorFlow weighs the losses of others alike.
    return Setup(trainer, Batches(examples, BATCH, seed=3), Batches(examples))


def unequal() -> Setup:
    """A network that each worker would begin with weights of its own."""
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)], name="unequal")
    trainer = Trainer(network)
    trainer.compile("sgd", "mean_squared_error")
    examples = IDS[:, :6].astype(np.float32), LABELS.astype(np.float32)[:, None]
    return Setup(trainer, Batches(examples, BATCH, seed=3))


TRAININGS: dict[str, Callable[[], Setup]] = {
    "cnn": cnn,
    "accumulated": accumulated,
    "lstm": lstm,
    "gpt": gpt,
    "text_to_image": text_to_image,
    "diffusion": diffusion,
    "two_losses": two_losses,
    "unequal": unequal,
}

# ------------------------------------------------------------------ with faults


def killed(folder: Path) -> dict[str, np.ndarray]:
    """The classifier's training, of which the last worker is killed once in the second epoch."""
    marker, place = folder / "killed", cluster.current()

    def kill(step: int) -> None:
        if step == 4 and place and place.rank == place.num_workers - 1 and not marker.exists():
            marker.touch()
            print("Killed in step", step, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    return train(cnn(), folder / "killed-checkpoints", kill)


def interrupted(folder: Path) -> dict[str, np.ndarray]:
    """The language model's training, whose launcher gets Ctrl-C before the last step."""

    def interrupt(step: int) -> None:
        if step == 5 and cluster.is_first():
            before = signal.getsignal(signal.SIGINT)
            os.kill(os.getppid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is before:  # `StepCheckpoint` is told
                time.sleep(0.01)

    return train(gpt(), folder / "checkpoints", interrupt)


def resumed(folder: Path) -> dict[str, np.ndarray]:
    """The rest of the training that was interrupted."""
    return train(gpt(), folder / "checkpoints")


class _AddsLoss(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(keras.ops.mean(inputs))
        return inputs


class _Largest(keras.metrics.Metric):
    def __init__(self) -> None:
        super().__init__(name="largest")
        self.largest = self.add_variable((), "zeros", aggregation="only_first_replica", name="it")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return keras.ops.convert_to_tensor(self.largest)


def refused(folder: Path) -> dict[str, np.ndarray]:
    """Texts of the errors of trainings that cannot be split among workers, by name."""
    x, y = IDS[:, :6].astype(np.float32), LABELS.astype(np.float32)[:, None]
    batches = Batches((x, y), BATCH, seed=0)

    def error(layer: Any, data: Any, loss: Any = "mean_squared_error", metrics: Any = None) -> Any:
        network = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(1)])
        trainer = Trainer(network)
        trainer.compile("sgd", loss, metrics=metrics)
        try:
            trainer.fit(data, verbose=0)
        except ValueError as error:
            return np.array(str(error))
        return np.array("")

    return {
        "arrays": error(keras.layers.Dense(2), x),
        "order": error(keras.layers.Dense(2), Batches((x, y), BATCH)),
        "statistics": error(keras.layers.BatchNormalization(), batches),
        "draws": error(keras.layers.Dropout(0.5), batches),
        "own loss": error(_AddsLoss(), batches),
        "scalar": error(keras.layers.Dense(2), batches, lambda y, p: keras.ops.mean(y - p)),
        "metric": error(keras.layers.Dense(2), batches, metrics=[_Largest()]),
    }


FAULTS = {
    "killed": killed,
    "interrupted": interrupted,
    "resumed": resumed,
    "refused": refused,
}


def main() -> int:
    """The worker's program: writes the results of each training to FOLDER/NAME-RANK.npz.

    Its arguments are the folder and names of `TRAININGS` and `FAULTS`.
    """
    return cli.run(lambda: run(Path(sys.argv[1]), sys.argv[2:]))


def run(folder: Path, names: list[str]) -> None:
    with distributed() as place:
        for name in names:
            results = train(TRAININGS[name]()) if name in TRAININGS else FAULTS[name](folder)
            rank = 0 if place is None else place.rank
            np.savez(folder / f"{name}-{rank}.npz", allow_pickle=False, **results)
