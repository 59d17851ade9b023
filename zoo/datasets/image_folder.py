"""Folders of images: each class is a folder, whose name is the name of the class.

    photos/cat/1.jpg          or          photos/train/cat/1.jpg
    photos/dog/2.png                      photos/test/cat/2.jpg

Without the folders `train` and `test`, a file is a test image if the SHA-256 of its name, as a
fraction of the largest SHA-256, is below 20 %. It therefore is one on every machine, and stays one
when files are added. The files of a part are in the order of the same number, which mixes the
classes.
"""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from zoo.datasets.classes import check_classes
from zoo.datasets.image_files import FileParts, ImageFile
from zoo.validation import MAX_COUNT, AnyPath, Rule, each, validated

TEST_PERCENT = 20


def _check_labelled(value: Any) -> tuple[int, ImageFile]:
    label, file = value
    if type(label) is not int or not isinstance(file, ImageFile):
        raise TypeError
    return label, file


LABELLED = Rule("a pair of a label and an `ImageFile`", _check_labelled)
LabelledFiles = Annotated[Sequence[tuple[int, ImageFile]], each(LABELLED, 0, MAX_COUNT)]


@validated
def find_images(folder: AnyPath) -> tuple[FileParts, tuple[str, ...]]:
    """Finds the images of a folder; their content is not read.

    Hidden files are left out, and so are files beside the folders of the classes.

    Args:
        folder: Path of a folder of class folders, or of one with such folders named `train` and
            `test`.

    Returns:
        Files and labels of "train" and "test", and the names of the classes, which are sorted.

    Raises:
        ValueError: If there are no class folders, only one of `train` and `test`, fewer than two
            classes, a class without training or test images, or a folder within a class.
        OSError: If a folder cannot be read.
    """
    root = Path(folder)
    if _is_divided(root):
        train, test = (_class_folders(root / part) for part in ("train", "test"))
        unknown = sorted(set(test) - set(train))
        if unknown:
            raise ValueError(
                "`dataset` must have training images of each class of the test images. Received: "
                f"{test[unknown[0]]}, but no folder {unknown[0]} in {root / 'train'}. Add it"
            )
        class_names = sorted(train)
        parts = {
            "train": in_hash_order(_list(train, class_names)),
            "test": in_hash_order(_list(test, class_names)),
        }
        remedy = "Add some"
    else:
        folders = _class_folders(root)
        class_names = sorted(folders)
        parts = _divide(*in_hash_order(_list(folders, class_names)))
        remedy = (
            f"A hash of the file names makes {TEST_PERCENT} % of the images test images: add "
            f"images, or divide them yourself, into the folders train and test of {root}"
        )
    labels = {part: labels for part, (_, labels) in parts.items()}
    check_classes(labels, class_names, str(root), remedy)
    return parts, tuple(class_names)


def _is_divided(root: Path) -> bool:
    """Whether the folder has the folders `train` and `test`, rather than those of classes."""
    train, test = root / "train", root / "test"
    if train.is_dir() and test.is_dir():
        return True
    for present, missing in ((train, test), (test, train)):
        # A folder of images is a class, even if it is named train.
        if present.is_dir() and any(entry.is_dir() for entry in _entries(present)):
            raise ValueError(
                "`dataset` must have both folders, train and test, or none of them. Received: "
                f"{present} without {missing}. Add it, or give {present} as the data set, of which "
                f"{TEST_PERCENT} % become test images"
            )
    return False


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The files and folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _class_folders(root: Path) -> dict[str, str]:
    """Paths of the folders in a folder, by name; accents in the form of Unicode's NFC."""
    entries = _entries(root)
    folders = {_normalize(entry.name): entry.path for entry in entries if entry.is_dir()}
    if not folders:
        received = "files, but no folders" if entries else "an empty folder"
        raise ValueError(
            f"`dataset` must have a folder of images for each class. Received: {root}, {received}. "
            "Move the images of each class into a folder with its name"
        )
    return folders


def _list(folders: dict[str, str], class_names: list[str]) -> list[tuple[int, ImageFile]]:
    """The files of the class folders, each after its label."""
    files = []
    for label, name in enumerate(class_names):
        for entry in _entries(folders[name]) if name in folders else ():
            if entry.is_dir():
                raise ValueError(
                    "`dataset` must have images, and no folders, in the folder of a class. "
                    f"Received: {entry.path}. Move its images up, or give {folders[name]} as the "
                    "data set if its folders are the classes"
                )
            files.append((label, ImageFile(entry.path)))
    return files


def _normalize(name: str) -> str:
    """The name with accents in one form: some systems write é as two characters."""
    return unicodedata.normalize("NFC", name)


def _hash(file: ImageFile) -> int:
    """SHA-256 of the file's name, without its folders, in UTF-8."""
    name = _normalize(os.path.basename(file.path))
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(), "big")


@validated
def in_hash_order(files: LabelledFiles) -> tuple[list[ImageFile], np.ndarray]:
    """Sorts files by the SHA-256 of their names, and those of the same name by their labels.

    Args:
        files: Label and file of each image.

    Returns:
        The files, and their labels (N,).
    """
    ordered = sorted(files, key=lambda item: (_hash(item[1]), item))
    return [file for _, file in ordered], np.array([label for label, _ in ordered], np.int32)


def _divide(files: list[ImageFile], labels: np.ndarray) -> FileParts:
    """Training and test images, by the SHA-256 of the files' names."""
    is_test = np.array([100 * _hash(file) < TEST_PERCENT << 256 for file in files], bool)
    return {
        part: ([files[index] for index in np.flatnonzero(chosen)], labels[chosen])
        for part, chosen in (("train", ~is_test), ("test", is_test))
    }
