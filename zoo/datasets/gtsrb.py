"""The German Traffic Sign Recognition Benchmark, GTSRB, from files on the disk.

Two layouts are read: that of the benchmark's three archives,

    GTSRB/Final_Training/Images/00000/00000_00000.ppm    with GT-00000.csv in each folder
    GTSRB/Final_Test/Images/00000.ppm                    with GT-final_test.csv in this folder or
                                                         in one above it

and that of the copy that most tutorials use,

    Train/0/00000_00000_00000.png                        with Train.csv
    Test/00000.png                                       with Test.csv

Each image is cropped to the region of interest, whose corners are in the columns `Roi`.

Source: Stallkamp et al., "Man vs. computer: Benchmarking machine learning algorithms for traffic
sign recognition" (Neural Networks 32, 2012).
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from zoo.datasets.image_files import FileParts, ImageFile
from zoo.datasets.image_folder import in_hash_order
from zoo.validation import AnyPath, validated

CLASS_NAMES = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
    "speed limit 80", "end of limit 80", "speed limit 100", "speed limit 120", "no passing",
    "no passing, trucks", "right of way", "priority road", "yield", "stop", "no vehicles",
    "no trucks", "no entry", "danger", "curve left", "curve right", "double curve", "bumpy road",
    "slippery road", "road narrows right", "road work", "traffic signals", "pedestrians",
    "children", "bicycles", "ice or snow", "wild animals", "end of all limits", "turn right",
    "turn left", "ahead only", "ahead or right", "ahead or left", "keep right", "keep left",
    "roundabout", "end of no passing", "end of no passing, trucks",
)  # fmt: skip

SOURCES = (
    "Get it from https://benchmark.ini.rub.de (GTSRB_Final_Training_Images.zip, "
    "GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip), or the copy "
    "https://www.kaggle.com/datasets/meowmeowmeowmeowmeow/gtsrb-german-traffic-sign"
)

_BOX = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")


@validated
def find_signs(folder: AnyPath) -> tuple[FileParts, tuple[str, ...]]:
    """Finds the images of GTSRB; their content is not read.

    Args:
        folder: Path of the folder with `GTSRB`, or with `Train.csv` and `Test.csv`; or that of
            `GTSRB` itself.

    Returns:
        Files with their boxes, and labels, of "train" and "test", in the order of a hash of the
        files' names, which mixes the classes; and the names of the classes.

    Raises:
        ValueError: If the folder has neither layout, a table lacks a column, a number is invalid,
            or a part has no images.
        OSError: If a table cannot be read.
    """
    folder = Path(folder)
    for root in (folder, folder / "GTSRB"):
        if (root / "Final_Training").is_dir() and (root / "Final_Test").is_dir():
            parts = {"train": _training(root), "test": _test(root)}
            break
        if (root / "Train.csv").is_file() and (root / "Test.csv").is_file():
            parts = {
                part: list(_table(root / f"{name}.csv", root, ",", "Path"))
                for part, name in (("train", "Train"), ("test", "Test"))
            }
            break
    else:
        raise ValueError(
            "`data_dir` must have the folders GTSRB/Final_Training and GTSRB/Final_Test, or the "
            f"tables Train.csv and Test.csv. Received: {folder}. {SOURCES}"
        )
    for part, files in parts.items():
        if not files:
            raise ValueError(
                f"`data_dir` must have {part} images. Received: {folder}, whose tables name none"
            )
    return {part: in_hash_order(files) for part, files in parts.items()}, CLASS_NAMES


def _training(root: Path) -> list[tuple[int, ImageFile]]:
    files: list[tuple[int, ImageFile]] = []
    images = root / "Final_Training" / "Images"
    for folder in sorted(path for path in images.glob("[0-9]*") if path.is_dir()):
        table = folder / f"GT-{folder.name}.csv"
        if not table.is_file():
            raise ValueError(
                f"`data_dir` must have a table for each class. Received: no file {table}. {SOURCES}"
            )
        files.extend(_table(table, folder, ";", "Filename"))
    return files


def _test(root: Path) -> list[tuple[int, ImageFile]]:
    images = root / "Final_Test" / "Images"
    for folder in (images, root / "Final_Test", root, root.parent):
        table = folder / "GT-final_test.csv"
        if table.is_file():
            return list(_table(table, images, ";", "Filename"))
    raise ValueError(
        "`data_dir` must have the labels of the test images, the file GT-final_test.csv of "
        f"GTSRB_Final_Test_GT.zip. Received: {images} without it. {SOURCES}"
    )


def _table(path: Path, folder: Path, delimiter: str, name: str) -> Iterator[tuple[int, ImageFile]]:
    """Yields the images of a table; `name` is the column of their paths within the folder."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        try:
            missing = [n for n in (name, *_BOX, "ClassId") if n not in (rows.fieldnames or ())]
            if missing:
                columns = ", ".join(rows.fieldnames or ()) or "none"
                raise ValueError(f"no column {missing[0]} ({columns})")
            for row in rows:
                left, top, right, bottom, label = (_number(row, n) for n in (*_BOX, "ClassId"))
                if label >= len(CLASS_NAMES):
                    raise ValueError(f"ClassId {label} in line {rows.line_num}")
                if not row[name]:
                    raise ValueError(f"no {name} in line {rows.line_num}")
                yield label, ImageFile(str(folder / row[name]), (left, top, right, bottom))
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"`data_dir` must have tables with the columns {name}, {', '.join(_BOX)} and "
                f"ClassId (0 to 42), separated by '{delimiter}'. Received: {path}: {error}. "
                f"{SOURCES}"
            ) from error


def _number(row: dict[str, str], column: str) -> int:
    text = row[column] or ""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ValueError(f"{column} {text!r}")
    return int(text)
