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
from zoo.datasets.augmentation import ImageTransform
from zoo.interop import pytorch
from zoo.training import batches, losses
from zoo.training.optimizers import Adam

Arrays = dict[str, Any]
DTYPE = sys.argv[2]


class TrainingSetup:
    """`cnn_48x48` with the first 640 images of MNIST and the settings of the recipe."""

    def __init__(self, seed: int = 0):
        self.data = datasets.load("mnist", 48, train_examples=640, test_examples=64)
        self.transform = ImageTransform(self.data.mean, self.data.std)
        self.model = zoo.cnn_48x48(10, seed=seed, dtype=DTYPE)
        self.optimizer = Adam(1e-3, l2=1e-4)
        self.optimizer.build(self.model.trainable_variables)
        objective = losses.classification_objective(self.model, self.transform, seed)
        self.step = backend.train_step(self.model, self.optimizer, objective)
        self.arrays = [backend.on_device(a) for a in (self.data.x_train, self.data.y_train)]
        self.order = batches.shuffled_indices(seed, 0, 640)

    def take_step(self, number: int) -> float:
        indices = self.order[number * 64 : (number + 1) * 64]
        metrics = self.step(*self.arrays, indices, np.int32(number))
        return float(metrics["loss"])

    def logits(self) -> np.ndarray:
        """Computes the logits of the test images."""
        inputs = self.transform.test(self.data.x_test)
        # A copy: PyTorch's arrays share the tensor's memory.
        return np.array(ops.convert_to_numpy(self.model(inputs, training=False)))

    def weights(self) -> Arrays:
        self.step.sync()
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
    return {
        str(step): ops.convert_to_numpy(
            setup.transform.training(setup.data.x_train[:64], random.fold_in(key, step))
        )
        for step in range(3)
    }


def ten_steps(folder: Path) -> Arrays:
    """Takes ten training steps with dropout and augmentation; returns losses and logits.

    The trained weights are written to `exported/` with PyTorch's names.
    """
    setup = TrainingSetup()
    losses = np.array([setup.take_step(number) for number in range(10)])
    setup.step.sync()
    pytorch.save(setup.model, folder / "exported" / f"{name}.safetensors")
    return {"losses": losses, "logits": setup.logits()}


def one_step(folder: Path) -> Arrays:
    """Returns `random.safetensors` after one step on `batch.npz` without dropout."""
    with np.load(folder / "batch.npz") as batch:
        x, y = batch["x"].astype(DTYPE), batch["y"]
    model = zoo.cnn_48x48(10, dropout=0.0, dtype=DTYPE)
    pytorch.load(model, folder / "random.safetensors")
    optimizer = Adam(1e-3, l2=1e-4)
    optimizer.build(model.trainable_variables)

    def objective(x: Any, y: Any) -> Any:
        logits = model(x, training=True)
        return ops.mean(ops.sparse_categorical_crossentropy(y, logits, from_logits=True)), {}

    step = backend.train_step(model, optimizer, objective)
    step(backend.on_device(x), backend.on_device(y))
    step.sync()
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
