"""How good drawn images are, in the eyes of a classifier that recipes/mnist.py has trained.

prompt_accuracy     the share that it takes for what was asked for
frechet_distance    how far the images are from real ones, as clouds of the classifier's features:
                    |mean_1 - mean_2|² + trace(C_1 + C_2 - 2·(C_1·C_2)^½)
diversity           how far two images of a class are apart, as a part of what real ones are

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", 2017 (the distance).
"""

import json
from pathlib import Path

import keras
import numpy as np
from scipy.spatial.distance import pdist

from zoo import registry
from zoo.datasets.augmentation import ImageTransform, resize
from zoo.datasets.images import ImageDataset, check_images
from zoo.diffusion.sampler import noise
from zoo.evaluation import classification


class FeatureExtractor:
    """A classifier that looks at images.

    Args:
        model: from images to logits by a dense layer, its last.
        transform: what it takes for an image.
        size: height and width of it.
    """

    def __init__(self, model: keras.Model, transform: ImageTransform, size: int):
        self._size = size
        last = model.layers[-1]
        self._kernel, self._bias = (keras.ops.convert_to_numpy(w.value) for w in last.weights)
        self._features = classification.image_predictor(
            keras.Model(model.input, last.input), transform
        )

    @classmethod
    def load(cls, folder: Path, data: ImageDataset) -> "FeatureExtractor":
        """From the directory of a finished run of recipes/mnist.py on the same data.

        Raises:
            ValueError: if it holds no such run, or one on other data.
        """
        for name in ("config.json", "metrics.json", "model.weights.h5"):
            if not (folder / name).exists():
                raise ValueError(
                    "`classifier` must hold a finished run of recipes/mnist.py. "
                    f"Received: {folder}, which has no {name}"
                )
        config = json.loads((folder / "config.json").read_text())
        if config.get("recipe") != "mnist" or config["dataset"] != data.name:
            raise ValueError(
                f"`classifier` must hold a run of recipes/mnist.py on {data.name}. Received: "
                f"{folder}, of the recipe {config.get('recipe')} on {config.get('dataset')}"
            )
        classifier = registry.get_classifier(config["model"])
        shape = classifier.images.shape(data.x_train.shape[-1])
        given = {} if classifier.images.channels else {"input_shape": shape}
        model = classifier.build(num_classes=data.num_classes, **given)
        model.load_weights(folder / "model.weights.h5")
        metrics = json.loads((folder / "metrics.json").read_text())
        transform = ImageTransform(metrics["mean"], metrics["std"], shape=shape)
        return cls(model, transform, classifier.images.size)

    def features(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, C) uint8 to what the last layer sees, (N, width) float64."""
        check_images(images)
        if images.shape[1:3] != (self._size, self._size):
            images = resize(images, self._size)
        return self._features(images)

    def classes(self, features: np.ndarray) -> np.ndarray:
        """(N,): what it takes the images for."""
        return np.asarray((features @ self._kernel + self._bias).argmax(-1))


def evaluate_samples(
    judge: FeatureExtractor, images: np.ndarray, asked: np.ndarray | None, data: ImageDataset
) -> dict[str, float | None]:
    """The scores of drawn images, and of real ones and noise for comparison.

    Args:
        judge: looks at them.
        images: (N, H, W, C) uint8.
        asked: (N,), the class of each image's prompt; None if nothing was asked for.
        data: the real images: drawn ones are compared with its test images, and so are as many
            training images of the same classes (the floor) and as much noise (the ceiling).

    Returns:
        `prompt_accuracy`, None if nothing was asked for; `frechet_distance`, `frechet_floor`,
        `frechet_ceiling`; `diversity`, None if no two images are of a class.
    """
    test = judge.features(data.x_test)
    drawn = judge.features(images)
    classes = judge.classes(drawn)
    labels = classes if asked is None else asked
    normal = noise(0, "nothing but noise", images.shape[1:], range(len(images)))
    real = {
        part: getattr(data, f"x_{part}")[first_of_each(getattr(data, f"y_{part}"), labels)]
        for part in ("train", "test")
    }
    return {
        "prompt_accuracy": None if asked is None else float((classes == asked).mean()),
        "frechet_distance": frechet_distance(drawn, test),
        "frechet_floor": frechet_distance(judge.features(real["train"]), test),
        "frechet_ceiling": frechet_distance(judge.features(to_uint8(normal)), test),
        "diversity": intra_class_diversity(images, real["test"], labels),
    }


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between two clouds of points, (N, width) and (M, width), as normal distributions."""
    means = [cloud.mean(axis=0) for cloud in (first, second)]
    covariances = [np.cov(cloud, rowvar=False) for cloud in (first, second)]
    # The trace of (C_1·C_2)^½ is that of (R·C_2·R)^½, R² = C_1, which is symmetric.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    values = np.linalg.eigvalsh(root @ covariances[1] @ root)
    shared = np.sqrt(np.maximum(values, 0)).sum()
    apart = np.square(means[0] - means[1]).sum()
    return float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def intra_class_diversity(images: np.ndarray, real: np.ndarray, labels: np.ndarray) -> float | None:
    """How far two images of a class are apart, as a part of what real ones are.

    Args:
        images: (N, H, W, C).
        real: likewise, of the same classes.
        labels: (N,), the classes.

    Returns:
        None if no two images are of a class.
    """

    def spread(images: np.ndarray) -> np.ndarray:
        rows = images.reshape(len(images), -1).astype(np.float64)
        return np.concatenate([pdist(rows[labels == label]) for label in np.unique(labels)])

    pairs = spread(images)
    return float(pairs.mean() / spread(real).mean()) if len(pairs) else None


def first_of_each(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(N,): for each wanted label the index of the next example that has it."""
    places = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        found, asked = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(found):
            raise ValueError(f"There must be an example of each class. Received: none of {label}")
        places[asked] = np.resize(found, len(asked))
    return places


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1] as grey levels, uint8; what lies outside is clipped."""
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
