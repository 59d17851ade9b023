"""Worker process of `test_parity.py`: FOLDER DTYPE TASK ...; writes the results as .npz files."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

import zoo
from zoo import datasets, random
from zoo.backends import backend, name
from zoo.datasets.augmentation import ImageAugmentation
from zoo.interop import pytorch
from zoo.training import Adam, Batches, CrossEntropy

Arrays = dict[str, Any]
DTYPE = sys.argv[2]


class TrainingSetup:
    """`cnn_48x48` with the first 640 images of MNIST and the settings of the recipe."""

    def __init__(self, seed: int = 0):
        self.data = datasets.load("mnist", 48, train_examples=640, test_examples=64)
        self.augmentation = ImageAugmentation(self.data.mean, self.data.std, seed=seed)
        self.model = zoo.cnn_48x48(10, seed=seed, dtype=DTYPE)
        self.trainer = zoo.Trainer(self.model, self.augmentation)
        self.trainer.compile(Adam(1e-3, l2=1e-4), CrossEntropy(dtype=DTYPE))
        examples = self.data.x_train, self.data.y_train
        self.batches = Batches(examples, 64, seed=seed, steps_per_epoch=1)

    def train(self, steps: int) -> np.ndarray:
        """Takes training steps and returns the loss before each."""
        history = self.trainer.fit(self.batches, epochs=steps, verbose=0)
        return np.array(history.history["loss"])

    def logits(self) -> np.ndarray:
        """Computes the logits of the test images."""
        inputs = self.augmentation(self.data.x_test)
        # A copy: PyTorch's arrays share the tensor's memory.
        return np.array(ops.convert_to_numpy(self.model(inputs, training=False)))

    def weights(self) -> Arrays:
        variables = self.model.trainable_variables
        return {v.path.replace("/", "."): ops.convert_to_numpy(v.value) for v in variables}


def model(folder: Path) -> Arrays:
    """Returns the parameter count, the initial weights and the logits of the test images."""
    setup = TrainingSetup()
    count = setup.model.count_params()
    return {"count": count, "logits": setup.logits(), **setup.weights()}


def augmented(folder: Path) -> Arrays:
    """Returns three augmented batches."""
    setup = TrainingSetup()
    key = random.key(0, "augmentation")
    images = setup.data.x_train[:64]
    return {
        str(step): ops.convert_to_numpy(
            setup.augmentation.normalize(
                setup.augmentation.augment(images, random.fold_in(key, step))
            )
        )
        for step in range(3)
    }


def ten_steps(folder: Path) -> Arrays:
    """Takes ten training steps with dropout and augmentation; returns losses and logits.

    The trained weights are written to `exported/` with PyTorch's names.
    """
    setup = TrainingSetup()
    losses = setup.train(10)
    pytorch.save(setup.model, folder / "exported" / f"{name}.safetensors")
    return {"losses": losses, "logits": setup.logits()}


def one_step(folder: Path) -> Arrays:
    """Returns `random.safetensors` after one step on `batch.npz` without dropout."""
    with np.load(folder / "batch.npz") as batch:
        x, y = batch["x"].astype(DTYPE), batch["y"]
    model = zoo.cnn_48x48(10, dropout=0.0, dtype=DTYPE)
    pytorch.load(model, folder / "random.safetensors")
    trainer = zoo.Trainer(model)
    trainer.compile(Adam(1e-3, l2=1e-4), CrossEntropy(dtype=DTYPE))
    trainer.train_on_batch(x, y)
    return pytorch.state_dict(model)


def from_pytorch(folder: Path) -> Arrays:
    """Returns the logits of the test images with the weights of each safetensors file."""
    setup = TrainingSetup()
    results = {}
    for path in sorted(folder.glob("*.safetensors")):
        pytorch.load(setup.model, path)
        results[path.stem] = setup.logits()
    return results


TASKS: dict[str, Callable[[Path], Arrays]] = {
    task.__name__: task for task in (model, augmented, ten_steps, one_step, from_pytorch)
}

if __name__ == "__main__":
    backend.disable_tf32()
    folder, tasks = Path(sys.argv[1]), sys.argv[3:]
    for task in tasks:
        np.savez(folder / f"{task}-{name}.npz", **TASKS[task](folder))
