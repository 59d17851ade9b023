"""Checks of the classes of a data set: their number, their names, and the images of each."""

from collections.abc import Mapping

import numpy as np

from zoo.validation import Labels, TextList, validated


@validated
def check_classes(
    labels: Mapping[str, Labels], class_names: TextList, source: str, remedy: str
) -> None:
    """Checks that there are two classes or more, and images of each class in each part.

    Args:
        labels: Labels of the images of each part, "train" and "test".
        class_names: Name of each class.
        source: Path of the data set, for error messages.
        remedy: Sentence that says what to do where a class has no images.

    Raises:
        ValueError: If a name cannot be printed, there are fewer than two classes, or a part has no
            images of a class.
    """
    for name in class_names:
        if not name.isprintable():
            raise ValueError(
                f"`dataset` must have class names that can be printed. Received: {name!r} in "
                f"{source}"
            )
    if len(class_names) < 2:
        raise ValueError(
            f"`dataset` must have at least two classes. Received: {source} with the class "
            f"{', '.join(class_names)}. Add a folder, or labels, of another class"
        )
    for part, numbers in labels.items():
        missing = np.setdiff1d(np.arange(len(class_names)), numbers)
        if len(missing):
            names = ", ".join(class_names[index] for index in missing[:5])
            more = f" and {len(missing) - 5} more classes" if len(missing) > 5 else ""
            raise ValueError(
                f"`dataset` must have {part} images of each class. Received: {source}, where "
                f"{names}{more} has none. {remedy}"
            )
