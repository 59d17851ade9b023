"""Training of `cnn_48x48` and exchange of its weights with PyTorch, for a worker."""

from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

import zoo
from zoo import datasets
from zoo.backends import name
from zoo.datasets.augmentation import ImageAugmentation
from zoo.interop import pytorch
from zoo.training import Adam, Batches, CrossEntropy

Arrays = dict[str, Any]
Results = dict[str, Arrays]  # arrays of each part by name


class TrainingSetup:
    """`cnn_48x48` with the first 640 images of MNIST and the settings of the recipe."""

    def __init__(self) -> None:
        self.data = datasets.load("mnist", 48, train_examples=640, test_examples=64)
        self.model = zoo.cnn_48x48(10)
        self.trainer = zoo.Trainer(self.model, ImageAugmentation(self.data.mean, self.data.std))
        self.trainer.compile(Adam(1e-3, l2=1e-4), CrossEntropy())

    def train(self, steps: int) -> np.ndarray:
        """Takes training steps with dropout and augmentation and returns the loss of each."""
        examples = self.data.x_train, self.data.y_train
        batches = Batches(examples, 64, seed=0, steps_per_epoch=1)
        return np.array(self.trainer.fit(batches, epochs=steps, verbose=0).history["loss"])

    def logits(self) -> np.ndarray:
        """Computes the logits of the test images."""
        return np.array(self.trainer.predict(Batches(self.data.x_test), verbose=0))

    def weights(self) -> Arrays:
        variables = self.model.trainable_variables
        return {v.path: np.array(ops.convert_to_numpy(v.value)) for v in variables}

    def augmented_batches(self) -> Arrays:
        """Three augmented batches, each of a training call."""
        augmentation = ImageAugmentation(self.data.mean, self.data.std)
        images = self.data.x_train[:64]
        return {
            str(step): np.array(ops.convert_to_numpy(augmentation(images, training=True)))
            for step in range(3)
        }


def run(folder: Path) -> Results:
    """Trains the model and loads PyTorch's weights.

    Args:
        folder: Folder of PyTorch's weights, *.safetensors; the trained weights are written to
            `exported/` with PyTorch's names.

    Returns:
        "initial": parameter count, logits of the test images; "weights": initial weights;
        "augmented": three augmented batches; "trained": losses and logits after ten steps;
        "loaded": logits with the weights of each safetensors file.
    """
    setup = TrainingSetup()
    initial = {"count": setup.model.count_params(), "logits": setup.logits()}
    weights, augmented = setup.weights(), setup.augmented_batches()
    trained = {"losses": setup.train(10), "logits": setup.logits()}
    pytorch.save(setup.model, folder / "exported" / f"{name}.safetensors")
    loaded = {}
    for path in sorted(folder.glob("*.safetensors")):
        pytorch.load(setup.model, path)
        loaded[path.stem] = setup.logits()
    return {
        "initial": initial, "weights": weights, "augmented": augmented, "trained": trained,
        "loaded": loaded,
    }  # fmt: skip


def step(state: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Loads PyTorch's weights, takes a training step without dropout and returns the weights."""
    model = zoo.cnn_48x48(10, dropout=0.0)
    pytorch.load(model, state)
    trainer = zoo.Trainer(model)
    trainer.compile(Adam(1e-3, l2=1e-4), CrossEntropy())
    trainer.train_on_batch(x, y)
    return pytorch.state_dict(model)
