"""Metrics of sampled images, computed with a classifier trained by recipes/mnist.py.

prompt_accuracy         fraction of the images that the classifier assigns to their prompt's class
frechet_distance        Fréchet distance between the classifier's features of sampled and real
                        images: |mean_1 - mean_2|² + trace(C_1 + C_2 - 2·(C_1·C_2)^½)
intra_class_diversity   mean distance between two images of a class, divided by that of real images

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", 2017 (the distance).
"""

from typing import Annotated

import keras
import numpy as np
from scipy.spatial.distance import pdist

from zoo import registry
from zoo.datasets.augmentation import ImageAugmentation, resize
from zoo.datasets.images import ImageDataset, check_images
from zoo.diffusion.sampler import noise
from zoo.files.classifiers import read_settings
from zoo.files.weights import open_saved
from zoo.training.batches import Batches
from zoo.training.trainer import Trainer
from zoo.validation import Features, Images, Labels, Size, Source, array, check_lengths, validated


class FeatureExtractor:
    """A classifier that gives its features and class predictions of images.

    Args:
        model: Classifier from images to logits, whose last layer is dense.
        preprocessing: Layer from uint8 images to the classifier's input.
        size: Height and width of the classifier's input.
    """

    @validated
    def __init__(self, model: keras.Model, preprocessing: ImageAugmentation, size: Size):
        last = model.layers[-1]
        if not isinstance(last, keras.layers.Dense) or not last.use_bias:
            raise ValueError(
                "`model` must be a classifier whose last layer is dense with biases. Received: "
                f"model={model.name}, whose last layer is {last.name}"
            )
        self._size = size
        self._kernel, self._bias = (keras.ops.convert_to_numpy(w.value) for w in last.weights)
        self._features = Trainer(keras.Model(model.input, last.input), preprocessing)

    @classmethod
    def load(cls, source: Source, data: ImageDataset) -> "FeatureExtractor":
        """Loads a trained classifier.

        Args:
            source: Directory of a finished run of recipes/mnist.py, a weights folder, or the name
                of weights in the package.
            data: Data set that the classifier was trained on.

        Raises:
            ValueError: if there is no such classifier, it was trained on another data set, or a
                file has changed or is damaged.
        """
        saved = open_saved(source, ["mnist"], argument="classifier")
        settings = read_settings(saved)
        if settings.dataset != data.name:
            raise ValueError(
                f"`classifier` must hold a classifier of {data.name}, such as a run of `zoo train "
                f"mnist`. Received: {source}, trained on {settings.dataset}"
            )
        builders = [name for name, entry in registry.models.items() if entry.images]
        model = saved.load_model(builders=builders)
        shape, classes = model.inputs[0].shape[1:], model.outputs[0].shape[1:]
        size, channels = shape[0], data.x_train.shape[-1]
        shapes = (size, size, channels), (size, size, 3), (size, size * channels)
        if shape not in shapes or classes != (data.num_classes,):
            raise ValueError(
                f"`classifier` must hold a model from images of {channels} channels to "
                f"{data.num_classes} classes of {data.name}. Received: {source}, with a model from "
                f"{shape} to {classes}"
            )
        preprocessing = ImageAugmentation(settings.mean, settings.std, shape=shape)
        return cls(model, preprocessing, size)

    @validated
    def features(self, images: Images) -> np.ndarray:
        """Computes the inputs of the last layer, (N, width) float64.

        Args:
            images: Images, (N, H, W, C) uint8; resized where the classifier's input differs.

        Raises:
            ValueError: if `images` are of another shape or dtype.
        """
        check_images(images)
        if images.shape[1:3] != (self._size, self._size):
            images = resize(images, self._size)
        features = self._features.predict(Batches(images, batch_size=256), verbose=0)
        return np.asarray(features, np.float64)

    @validated
    def classify(self, features: Features) -> np.ndarray:
        """Predicts the classes, (N,), from features, (N, width)."""
        return np.asarray((features @ self._kernel + self._bias).argmax(-1))


@validated
def evaluate_samples(
    extractor: FeatureExtractor,
    images: Images,
    prompt_labels: Labels | None,
    data: ImageDataset,
) -> dict[str, float | None]:
    """Computes the metrics of sampled images, and of real images and noise for comparison.

    Args:
        extractor: Feature extractor and classifier.
        images: Sampled images, (N, H, W, C) uint8.
        prompt_labels: Class of each image's prompt, (N,); None for an unconditional model.
        data: Real images. The test images are the reference of the Fréchet distances: of the
            samples, of as many training images of the same classes, and of as many images of noise.

    Returns:
        `prompt_accuracy`, None for an unconditional model; `frechet_distance`, `frechet_real`,
        `frechet_noise`; `intra_class_diversity`, None if no two images have the same class.

    Raises:
        ValueError: if `data` has no image of one of the classes.
    """
    test = extractor.features(data.x_test)
    sampled = extractor.features(images)
    classes = extractor.classify(sampled)
    labels = classes if prompt_labels is None else prompt_labels
    normal = noise(0, "nothing but noise", images.shape[1:], range(len(images)))
    real = {
        part: getattr(data, f"x_{part}")[indices_of_labels(getattr(data, f"y_{part}"), labels)]
        for part in ("train", "test")
    }
    return {
        "prompt_accuracy": (
            None if prompt_labels is None else float((classes == prompt_labels).mean())
        ),
        "frechet_distance": frechet_distance(sampled, test),
        "frechet_real": frechet_distance(extractor.features(real["train"]), test),
        "frechet_noise": frechet_distance(extractor.features(to_uint8(normal)), test),
        "intra_class_diversity": intra_class_diversity(images, real["test"], labels),
    }


@validated
def frechet_distance(first: Features, second: Features) -> float:
    """Fréchet distance of two sets of features, each modelled as a normal distribution.

    Args:
        first: Features of one set, (N, width).
        second: Features of the other set, (M, width).
    """
    means = [features.mean(axis=0) for features in (first, second)]
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    # The trace of (C_1·C_2)^½ is that of (R·C_2·R)^½ with R² = C_1, which is symmetric.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    values = np.linalg.eigvalsh(root @ covariances[1] @ root)
    root_trace = np.sqrt(np.maximum(values, 0)).sum()
    mean_distance = np.square(means[0] - means[1]).sum()
    traces = np.trace(covariances[0]), np.trace(covariances[1])
    return float(mean_distance + traces[0] + traces[1] - 2 * root_trace)


@validated
def intra_class_diversity(images: Images, real: Images, labels: Labels) -> float | None:
    """Mean distance between two images of a class, divided by that of real images.

    Args:
        images: Sampled images, (N, H, W, C).
        real: Real images of the same classes, (N, H, W, C).
        labels: Class of each sampled and of each real image, (N,).

    Returns:
        The ratio, or None if no two images have the same class.
    """
    check_lengths(images=images, real=real, labels=labels)

    def pairwise_distances(images: np.ndarray) -> np.ndarray:
        pixels = images.reshape(len(images), -1).astype(np.float64)
        return np.concatenate([pdist(pixels[labels == label]) for label in np.unique(labels)])

    distances = pairwise_distances(images)
    if not len(distances):
        return None
    return float(distances.mean() / pairwise_distances(real).mean())


@validated
def indices_of_labels(labels: Labels, wanted: Labels) -> np.ndarray:
    """Selects an example for each wanted label, in turn from the examples of that label.

    Args:
        labels: Labels of the examples, (M,).
        wanted: Labels to select examples of, (N,).

    Returns:
        Indices of the examples, (N,).

    Raises:
        ValueError: if a wanted label has no example.
    """
    indices = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        examples = np.flatnonzero(labels == label)
        if not len(examples):
            raise ValueError(
                f"`labels` must have an example of each class. Received: none of {label}"
            )
        selected = wanted == label
        indices[selected] = np.resize(examples, np.count_nonzero(selected))
    return indices


@validated
def to_uint8(images: Annotated[np.ndarray, array("f")]) -> np.ndarray:
    """Converts images in [-1, 1] to uint8; values outside the range are clipped."""
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
