from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.pictures import save
from zoo import datasets
from zoo.datasets import gtsrb

pytestmark = pytest.mark.once

COLUMNS = ("Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
LABELS = {"train": (0, 14, 14, 42), "test": (42, 0)}


def colour(label: int) -> tuple[int, int, int]:
    return 5 * label, 5 * label, 250 - 5 * label


def sign(label: int, index: int) -> tuple[Image.Image, tuple[int, ...]]:
    """A sign, whose colour tells its class, with a frame of noise; and its row of a table."""
    width, height = 20 + index, 24 + 2 * index
    box = (3, 5, width - 4 - index, height - 2)
    noise = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[box[1] : box[3], box[0] : box[2]] = colour(label)
    return Image.fromarray(noise), (width, height, *box, label)


def table(path: Path, delimiter: str, column: str, rows: dict[str, tuple[int, ...]]) -> None:
    """Writes a table; its column of paths is the first or the last, as in the two layouts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = column == "Filename"
    lines = [(column, *COLUMNS) if first else (*COLUMNS, column)]
    lines += [(name, *row) if first else (*row, name) for name, row in rows.items()]
    path.write_text("".join(delimiter.join(map(str, line)) + "\r\n" for line in lines))


def benchmark(root: Path) -> Path:
    """The layout of the benchmark's archives."""
    images = root / "GTSRB" / "Final_Training" / "Images"
    for label in sorted(set(LABELS["train"])):
        rows = {}
        for index in range(LABELS["train"].count(label)):
            name = f"{index:05d}_00000.ppm"
            image, rows[name] = sign(label, index)
            save(image, images / f"{label:05d}" / name)
        table(images / f"{label:05d}" / f"GT-{label:05d}.csv", ";", "Filename", rows)
    images, rows = root / "GTSRB" / "Final_Test" / "Images", {}
    for index, label in enumerate(LABELS["test"]):
        name = f"{index:05d}.ppm"
        image, rows[name] = sign(label, index)
        save(image, images / name)
    table(images / "GT-final_test.csv", ";", "Filename", rows)
    # As it comes with the images: without the labels.
    (images / "GT-final_test.test.csv").write_text("Filename;Width;Height\r\n")
    return root


def copy(root: Path) -> Path:
    """The layout of the copy."""
    for part, name in (("train", "Train"), ("test", "Test")):
        rows = {}
        for index, label in enumerate(LABELS[part]):
            folder = f"{name}/{label}" if part == "train" else name
            path = f"{folder}/{label:05d}_{index:05d}.png"
            image, rows[path] = sign(label, index)
            save(image, root / path)
        table(root / f"{name}.csv", ",", "Path", rows)
    return root


@pytest.mark.parametrize("make", [benchmark, copy])
def test_load_crops_the_signs_of_both_layouts(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    make(tmp_path)
    data = datasets.load("gtsrb", 12, data_dir=tmp_path, verbose=False)
    assert (data.name, data.num_classes) == ("gtsrb", 43)
    assert (data.class_names[14], data.class_names[42]) == ("stop", "end of no passing, trucks")
    for part, labels in LABELS.items():
        images, loaded_labels = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        assert sorted(loaded_labels) == sorted(labels)
        # Nothing of the noise around a sign is left.
        expected = np.array([colour(label) for label in loaded_labels])[:, None, None]
        np.testing.assert_array_equal(images, np.broadcast_to(expected, images.shape))


def test_load_crops_up_to_the_lower_right_corner(tmp_path: Path) -> None:
    copy(tmp_path)
    parts, _ = gtsrb.find_signs(tmp_path)
    for files, labels in parts.values():
        for file, label in zip(files, labels):
            with Image.open(file.path) as image:
                left, top, right, bottom = file.box
                pixels = np.asarray(image)
            inside = pixels[top:bottom, left:right]
            assert (inside == colour(label)).all()
            assert (pixels[top:bottom, right] != colour(label)).any()
            assert (pixels[bottom, left:right] != colour(label)).any()


def test_load_finds_the_folder_itself_and_labels_above_the_images(tmp_path: Path) -> None:
    root = benchmark(tmp_path) / "GTSRB"
    images = root / "Final_Test" / "Images"
    (images / "GT-final_test.csv").rename(tmp_path / "GT-final_test.csv")
    for folder in (tmp_path, root):
        assert len(datasets.load("gtsrb", 12, data_dir=folder, verbose=False).y_test) == 2


def replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


STOP = "GTSRB/Final_Training/Images/00014/GT-00014.csv"


@pytest.mark.parametrize(
    ("make", "change", "text"),
    [
        (
            copy,
            remove("Test.csv"),
            "GTSRB/Final_Training and GTSRB/Final_Test, or the tables Train",
        ),
        (
            copy,
            replace("Test.csv", "Roi.X2", "X2"),
            r"Test\.csv: no column Roi\.X2 \(Width, Height,",
        ),
        (copy, replace("Train.csv", "Path", "File"), r"Train\.csv: no column Path \("),
        (copy, replace("Test.csv", ",42,", ",43,"), r"Test\.csv: ClassId 43 in line 2"),
        (copy, replace("Test.csv", ",42,", ",x,"), r"Test\.csv: ClassId 'x'"),
        (copy, replace("Test.csv", ",42,", ",-1,"), r"Test\.csv: ClassId '-1'"),
        (copy, replace("Test.csv", ",42,Test/00042_00000.png", ""), r"Test\.csv: ClassId ''"),
        (copy, replace("Test.csv", "Test/00042_00000.png", ""), r"Test\.csv: no Path in line 2"),
        (
            copy,
            replace("Test.csv", ",3,5,16,22,", ",3,5,21,22,"),
            r"\(3, 5, 21, 22\) for .*20 x 24",
        ),
        (
            copy,
            replace("Test.csv", ",3,5,16,22,", ",3,5,3,22,"),
            r"\(3, 5, 3, 22\) for .*/Test/0004",
        ),
        (copy, lambda root: (root / "Test.csv").write_text(""), r"no column Path \(none\)"),
        (copy, lambda root: (root / "Test.csv").write_bytes(b"\xff"), r"Test\.csv: 'utf-8' codec"),
        (copy, lambda root: table(root / "Test.csv", ",", "Path", {}), "must have test images"),
        (copy, remove("Test/00042_00000.png"), r"00042_00000\.png: No such file or directory"),
        (benchmark, remove("GTSRB/Final_Test/Images/GT-final_test.csv"), "GTSRB_Final_Test_GT.zip"),
        (benchmark, remove(STOP), r"a table for each class\. Received: no file .*GT-00014\.csv"),
        (benchmark, replace(STOP, ";", ","), r"GT-00014\.csv: no column Filename"),
        (benchmark, replace(STOP, "ClassId", "Class"), r"GT-00014\.csv: no column ClassId"),
    ],
)
def test_load_rejects_a_damaged_folder_of_signs(
    tmp_path: Path, make: Callable[[Path], Path], change: Callable[[Path], None], text: str
) -> None:
    change(make(tmp_path))
    with pytest.raises(ValueError, match=text) as error:
        datasets.load("gtsrb", 12, data_dir=tmp_path, verbose=False)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_load_says_where_to_get_the_signs(tmp_path: Path) -> None:
    for data_dir in (None, tmp_path):
        with pytest.raises(ValueError, match=r"`data_dir` must .*https://benchmark\.ini\.rub\.de"):
            datasets.load("gtsrb", data_dir=data_dir)


def test_class_names_are_43_different_ones() -> None:
    assert len(set(gtsrb.CLASS_NAMES)) == 43
