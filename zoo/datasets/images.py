"""Image data sets: MNIST, embedded in the package, files on the disk, and TensorFlow Datasets.

`load` returns an `ImageDataset`:

    data = zoo.datasets.load("mnist", image_size=48)
    data = zoo.datasets.load("photos/", image_size=48)  # photos/cat/1.jpg, photos/dog/2.png
    data = zoo.datasets.load("gtsrb", image_size=48, data_dir="~/GTSRB")
    data = zoo.datasets.load("visual_domain_decathlon/gtsrb", image_size=48, data_dir="~/tfds")
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets import archives, gtsrb, image_folder
from zoo.datasets.augmentation import resize
from zoo.datasets.embedded import embedded
from zoo.datasets.image_files import ImageDecoder, ImageFile
from zoo.validation import AnyPath, ArgumentName, Count, NumberArray, Size, validated

MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"


@validated
@dataclass(frozen=True)
class ImageDataset:
    """Labelled images for training and testing, in memory.

    Attributes:
        name: Name of the data set.
        x_train, x_test: Images, (N, H, W, C) uint8, with C = 1 (grey) or 3 (RGB).
        y_train, y_test: Labels, (N,) int32 in [0, num_classes).
        num_classes: Number of classes.
        mean, std: Mean and standard deviation of each channel of the training images, with pixels
            scaled to [0, 1]. Preprocessing normalizes images with them.
        class_names: Name of each class; None where the names are not known.

    Raises:
        ValueError: If a shape, a dtype or a label is not as described.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            check_images(images, f"x_{part}")
            check_labels(labels, self.num_classes, f"y_{part}")
            if len(images) != len(labels):
                raise ValueError(
                    f"`x_{part}` and `y_{part}` must be of the same length. "
                    f"Received: {len(images)} images, {len(labels)} labels"
                )


@validated
def check_images(images: NumberArray, name: ArgumentName = "images") -> None:
    """Raises ValueError unless `images` are uint8 of shape (N, H, W, 1) or (N, H, W, 3)."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"`{name}` must be uint8 of shape (N, height, width, 1) or (N, height, width, 3). "
            f"Received: shape={images.shape}, dtype={images.dtype}"
        )


@validated
def check_labels(labels: NumberArray, num_classes: Size, name: ArgumentName = "labels") -> None:
    """Raises ValueError unless `labels` are integers in [0, num_classes) of shape (N,)."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be integers of shape (N,). "
            f"Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    invalid = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(invalid):
        raise ValueError(
            f"`{name}` must lie in [0, num_classes). Received: label {labels[invalid[0]]} at index "
            f"{invalid[0]}, num_classes={num_classes}"
        )


@validated
def load(
    name: str | os.PathLike[str],
    image_size: Size | None = None,
    train_examples: Count | None = None,
    test_examples: Count | None = None,
    data_dir: AnyPath | None = None,
    allow_fewer: bool = False,
    skip_unreadable: bool = False,
    verbose: bool = True,
) -> ImageDataset:
    """Loads an image data set into memory.

    Args:
        name: One of

            - "mnist", which is part of the package;
            - the path of a folder of class folders, with or without `train/` and `test/` above
              them (`zoo.datasets.image_folder` says which images are test images), or of an
              `.npz` file with `x_train`, `y_train`, `x_test`, `y_test` and, if wanted,
              `class_names`;
            - "idx", for MNIST's file format in `data_dir`;
            - "gtsrb", for the German traffic signs in `data_dir`, cropped to the signs;
            - the name of a TensorFlow Datasets data set with images and labels, such as
              "fashion_mnist" or "visual_domain_decathlon/gtsrb".

            A path exists, ends in .npz, or begins with `.`, `/` or `~`.
        image_size: Height and width of the resized images; by default images keep their size.
        train_examples: Number of training images, taken from the beginning; by default all.
        test_examples: Number of test images, taken from the beginning; by default all.
        data_dir: Folder of "idx" and "gtsrb", or the data directory of TensorFlow Datasets, by
            default that of the library.
        allow_fewer: Whether a smaller data set than the numbers ask for is used as a whole, and no
            error.
        skip_unreadable: Whether image files that cannot be read are left out, with a warning, and
            no error. They count as examples.
        verbose: Show the progress of decoding image files.

    Returns:
        The images and labels with their normalization constants. `zoo.datasets.image_files` says
        what becomes of transparency, orientation and other modes of image files.

    Raises:
        ValueError: If the name is unknown or that of a data set without images and labels, a path
            does not exist, a file is damaged or holds something else, a class has no training or
            test images, a number of examples exceeds the data set, or the images differ in size and
            `image_size` is not given.
        ImportError: If the data set needs TensorFlow Datasets, which is not installed.
        OSError: If the embedded data is damaged, a file cannot be read, or the data set is neither
            prepared nor can be downloaded.
    """
    requested = {"train": train_examples, "test": test_examples}
    title, parts, class_names = _open(name, data_dir)
    for part, (images, labels) in parts.items():
        count = requested[part] or len(labels)
        if count > len(labels) and not allow_fewer:
            raise ValueError(
                f"`{part}_examples` must be at most {len(labels)}, the size of {title}. "
                f"Received: {part}_examples={count}"
            )
        parts[part] = images[:count], labels[:count]
    if isinstance(parts["train"][0][0], ImageFile):
        decoder = ImageDecoder(title, image_size, skip_unreadable, verbose)
        arrays = decoder.decode(parts, class_names)
    else:
        arrays = {
            part: (_as_array(images, image_size), np.asarray(labels, np.int32))
            for part, (images, labels) in parts.items()
        }
    x_train = arrays["train"][0]
    # MNIST is normalized with the constants of the document; other data sets are measured.
    mean, std = ((0.1307,), (0.3081,)) if name == "mnist" else _statistics(x_train)
    return ImageDataset(
        title, *arrays["train"], *arrays["test"], len(class_names), mean, std, class_names
    )


def _open(
    name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """A short name, images (or image files) and labels of each part, and the classes' names."""
    if name == "mnist":
        return name, _mnist(), tuple("0123456789")
    if name in ("idx", "gtsrb"):
        if data_dir is None:
            remedy = "Give the folder of the IDX files" if name == "idx" else gtsrb.SOURCES
            raise ValueError(
                f"`data_dir` must be given with the data set {name}. Received: data_dir=None. "
                f"{remedy}"
            )
        folder = _existing(data_dir, "data_dir")
        if name == "gtsrb":
            return name, *gtsrb.find_signs(folder)
        return folder.resolve().name, *archives.load_idx(folder)
    if _is_path(name):
        path = _existing(name, "dataset")
        if path.is_dir():
            return path.resolve().name, *image_folder.find_images(path)
        if path.suffix == ".npz" and path.is_file():
            return path.stem, *archives.load_npz(path)
        raise ValueError(
            f"`dataset` must be a folder of class folders or an .npz file. Received: {path}, "
            "another file"
        )
    return str(name), *_tensorflow_datasets(str(name), data_dir)


def _is_path(name: str | os.PathLike[str]) -> bool:
    """Whether the name of a data set is a path, rather than a name of TensorFlow Datasets."""
    if not isinstance(name, str):
        return True
    is_marked = name.endswith(".npz") or name.startswith((".", "~")) or os.path.isabs(name)
    return is_marked or os.path.exists(name)


def _existing(path: str | os.PathLike[str], argument: str) -> Path:
    """The path with its ~ expanded, if it exists."""
    expanded = Path(os.path.expanduser(path))
    if not expanded.exists():
        raise ValueError(
            f"`{argument}` must be a path that exists. Received: {argument}={path}, and there is "
            "no such file or folder"
        )
    if not str(expanded).isprintable():
        raise ValueError(
            f"`{argument}` must be a path that can be printed. Received: {str(expanded)!r}. Rename "
            "it, or give a link with another name"
        )
    return expanded


def _as_array(images: Any, size: int | None) -> np.ndarray:
    if size is not None:
        return resize(images, size)
    if not isinstance(images, np.ndarray):
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"The images differ in size ({len(shapes)} shapes, {min(shapes)} to "
                f"{max(shapes)}): give `image_size`. Received: image_size=None"
            )
        images = np.stack(images)
    return np.reshape(images, (*images.shape[:3], -1))


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # A histogram of the 256 grey levels gives exact sums without a float copy of the data. Its
    # function makes a copy of 64-bit integers, so that a part of the images is counted at a time.
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        histogram = np.zeros(256, np.int64)
        for first in range(0, len(images), 256):
            histogram += np.bincount(images[first : first + 256, ..., channel].ravel(), None, 256)
        mean = float(histogram @ levels / histogram.sum())
        variance = histogram @ (levels - mean) ** 2 / histogram.sum()
        means.append(round(mean, 4))
        stds.append(round(float(np.sqrt(variance)), 4))
    if not all(stds):
        raise ValueError(
            "`dataset` must have training images with more than one level in each channel. "
            f"Received: std={stds}"
        )
    return tuple(means), tuple(stds)


def _mnist() -> dict[str, Any]:
    with embedded("mnist.npz", MNIST_SHA256) as file, np.load(file) as data:
        return {part: (data[f"x_{part}"], data[f"y_{part}"]) for part in ("train", "test")}


def _tensorflow_datasets(name: str, data_dir: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"The data set {name} comes from TensorFlow Datasets, which is not installed. Install "
            "it with `pip install tensorflow-datasets importlib-resources`, or use the embedded "
            "`mnist`, or give the path of a folder or of an .npz file"
        ) from error
    folder = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            "`dataset` must be mnist, idx, gtsrb, the path of a folder or of an .npz file, or a "
            "name that TensorFlow Datasets knows or holds prepared in `data_dir`. "
            f"Received: dataset={name}, data_dir={data_dir}"
        ) from error
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise ValueError(
            f"`dataset` must have the features image and label. Received: {name} with "
            f"{sorted(features or [])}"
        )
    if not builder.data_path.exists():
        try:
            builder.download_and_prepare(file_format="array_record")  # says its size first
        except Exception as error:  # the exception depends on the downloader
            raise OSError(
                f"Could not download {name}: {type(error).__name__}: {error}. Without a network, "
                "prepare it elsewhere (`tfds build --file_format=array_record`) and put it at "
                f"{builder.data_path}, or give its parent folder as `data_dir`"
            ) from error
    parts = {"train": _split(builder, "train")}
    # Some test sets (those of the visual decathlon) come without labels.
    for split in ("test", "validation"):
        if split in builder.info.splits:
            images, labels = _split(builder, split)
            if (labels >= 0).any():
                parts["test"] = images, labels
                break
    else:
        raise ValueError(
            f"`dataset` must have a test or validation split with labels. Received: {name} with "
            f"{sorted(builder.info.splits)}"
        )
    return parts, tuple(features["label"].names)


def _split(builder: Any, split: str) -> tuple[Any, np.ndarray]:
    """Images of a split as a list, since their sizes may differ, and their labels."""
    if split not in builder.info.splits:
        raise ValueError(
            f"`dataset` must have the split {split}. Received: {builder.info.full_name} with "
            f"{sorted(builder.info.splits)}"
        )
    examples: Iterable[Any]
    if str(builder.info.file_format.value) == "array_record":
        examples = builder.as_data_source(split)  # needs no TensorFlow
    else:
        import tensorflow_datasets as tfds

        try:
            examples = tfds.as_numpy(builder.as_dataset(split, shuffle_files=False))
        except ImportError as error:
            raise ImportError(
                f"{builder.data_path} is in the format {builder.info.file_format.value}, which "
                "only TensorFlow reads. Install TensorFlow, or prepare it again with "
                "`tfds build --file_format=array_record`"
            ) from error
    images, labels = [], []
    for example in examples:
        images.append(np.asarray(example["image"]))
        labels.append(int(example["label"]))
    return images, np.array(labels)
