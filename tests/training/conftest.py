"""A small image classifier, compiled once, that the tests of training share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import random
from zoo.datasets.augmentation import ImageAugmentation
from zoo.initializers import FanInUniform
from zoo.training import Adam, Batches, CrossEntropy, StepCheckpoint, Trainer
from zoo.training.callbacks import TrainingState

EXAMPLES, BATCH = 40, 12
STEPS = 4  # of an epoch; the last has four examples
X = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 6, 6, 1), dtype=np.uint8)
Y = np.arange(EXAMPLES, dtype=np.int32) % 3


def network() -> keras.Model:
    """A convolution, dropout and a classifier of images (6, 6, 1), always the same at first."""
    layers = [
        keras.Input((6, 6, 1), name="images"),
        keras.layers.Conv2D(
            2, 3, activation="tanh", kernel_initializer=FanInUniform(0, "conv"), name="conv"
        ),
        keras.layers.Flatten(),
        random.Dropout(0.5, name="dropout"),
        keras.layers.Dense(3, kernel_initializer=FanInUniform(0, "dense"), name="logits"),
    ]
    return keras.Sequential(layers, name="network")


def trainer() -> Trainer:
    """The network behind augmentation, trained to its averaged weights."""
    whole = Trainer(network(), ImageAugmentation((0.5,), (0.25,), shape=(6, 6, 1)))
    optimizer = Adam(1e-2, use_ema=True, ema_momentum=0.9)
    whole.compile(optimizer, CrossEntropy(), metrics=["accuracy"])
    return whole


@dataclass
class Outcome:
    """What a training has led to.

    Attributes:
        weights: Values of all variables of the network.
        history: What `fit` has returned.
        state: State of the training, from its checkpoint.
    """

    weights: list[np.ndarray]
    history: keras.callbacks.History
    state: TrainingState

    def assert_equal(self, other: "Outcome") -> None:
        """Checks that weights and history are the same to the bit."""
        for weight, expected in zip(self.weights, other.weights, strict=True):
            np.testing.assert_array_equal(weight, expected)
        assert self.history.history == other.history.history
        assert self.history.epoch == other.history.epoch
        assert self.state.history == other.state.history
        assert self.state.step == other.state.step


class Training:
    """A compiled trainer whose every `fit` begins as that of a new process does."""

    def __init__(self) -> None:
        self.trainer = trainer()
        self.trainer.optimizer.build(self.trainer.trainable_variables)
        self.train = Batches((X, Y), BATCH, seed=3)
        self.validation = Batches((X[::2], Y[::2]), BATCH)
        self._initial = [(v, np.array(ops.convert_to_numpy(v.value))) for v in self._variables()]

    def _variables(self) -> list[Any]:
        return [*self.trainer.variables, *self.trainer.optimizer.variables]

    def reset(self) -> None:
        """Assigns the initial values of all variables."""
        for variable, value in self._initial:
            variable.assign(value)

    def fit(
        self,
        folder: Path | StepCheckpoint,
        epochs: int = 3,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **options: Any,
    ) -> Outcome:
        """Trains, or resumes, with a checkpoint after every third step and each epoch."""
        self.reset()
        checkpoint = StepCheckpoint(folder, every=3) if isinstance(folder, Path) else folder
        history = self.trainer.fit(
            self.train,
            epochs=epochs,
            validation_data=self.validation,
            callbacks=list(callbacks),
            checkpoint=checkpoint,
            **{"verbose": 0, **options},
        )
        return Outcome(self.trainer.network.get_weights(), history, checkpoint.state)


@pytest.fixture(scope="session")
def training() -> Training:
    return Training()


@pytest.fixture(scope="session")
def whole(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Three epochs without an interruption."""
    return training.fit(tmp_path_factory.mktemp("whole"))
