"""Image classifiers: the preprocessing and the labels that a card or a run's results have."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from zoo.files import documents
from zoo.files.saved import SavedModel
from zoo.files.weights import Channels, Scales, WeightsFolder


class _Results(documents.Document):
    """Results of a recipe that trains a classifier; metrics.json has others, too."""

    model_config = ConfigDict(extra="ignore")

    dataset: str
    mean: Channels
    std: Scales
    class_names: Annotated[list[str], Field(max_length=1 << 20)] | None = None


@dataclass(frozen=True)
class ClassifierSettings:
    """Preprocessing and labels of an image classifier.

    Attributes:
        dataset: Name of the data set that the classifier was trained on.
        mean: Mean of each channel of the images, with pixels in [0, 1].
        std: Standard deviation of each channel.
        labels: Name of each class; None if they are not known.
    """

    dataset: str
    mean: list[float]
    std: list[float]
    labels: list[str] | None


def is_image_classifier(saved: SavedModel) -> bool:
    """Whether a model has the preprocessing of an image classifier.

    Args:
        saved: Finished run or weights folder.

    Raises:
        ValueError: If a file has changed or is damaged.
        OSError: If a file cannot be read.
    """
    if isinstance(saved, WeightsFolder):
        return saved.card.normalization is not None
    return "mean" in saved.read("metrics.json", dict[str, JsonValue])


def read_settings(saved: SavedModel) -> ClassifierSettings:
    """Reads the preprocessing and the labels of an image classifier.

    Args:
        saved: Finished run or weights folder.

    Raises:
        ValueError: If the model is no image classifier, or a file has changed or is damaged.
        OSError: If a file cannot be read.
    """
    if not isinstance(saved, WeightsFolder):
        results = saved.read("metrics.json", _Results)
        return ClassifierSettings(results.dataset, results.mean, results.std, results.class_names)
    card = saved.card
    if card.normalization is None:
        raise ValueError(
            f"{saved.folder} must hold an image classifier, whose card has `normalization`. "
            f"Received: a {card.builder} without"
        )
    return ClassifierSettings(
        card.data.name, card.normalization.mean, card.normalization.std, card.labels
    )
