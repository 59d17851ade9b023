import hashlib
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import pictures
from tests.datasets.pictures import save
from zoo import datasets
from zoo.datasets.image_folder import find_images

pytestmark = pytest.mark.once

TINY = Image.new("RGB", (4, 4), (10, 20, 30))


def names(root: Path) -> dict[str, set[str]]:
    """Class and name of the files of each part."""
    parts, _ = find_images(root)
    return {
        part: {"/".join(Path(file.path).parts[-2:]) for file in files}
        for part, (files, _) in parts.items()
    }


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes of 40 images, in a path with spaces and accents."""
    return pictures.shapes_folder(tmp_path_factory.mktemp("mes données") / "été 1", 40)


def test_load_reads_a_folder_of_class_folders(shapes: Path) -> None:
    data = datasets.load(shapes, 16, verbose=False)
    assert data.name == "été 1"
    assert data.class_names == ("circle", "square", "triangle")
    assert data.num_classes == 3
    assert len(data.x_train) + len(data.x_test) == 120
    assert data.x_train.shape[1:] == (16, 16, 3)
    # The largest channel of the middle tells the class.
    for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        np.testing.assert_array_equal(images[:, 8, 8].argmax(-1), labels)
    expected = data.x_train.reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, expected.mean(0), atol=1e-4)
    np.testing.assert_allclose(data.std, expected.std(0), atol=1e-4)


def test_find_images_divides_by_the_sha256_of_names(shapes: Path) -> None:
    fraction = {
        f"{i:03d}.jpg": int(hashlib.sha256(f"{i:03d}.jpg".encode()).hexdigest(), 16) / 2**256
        for i in range(40)
    }
    test = {name for name, value in fraction.items() if value < 0.2}
    assert 0 < len(test) < 20
    parts, class_names = find_images(shapes)
    for part, (files, labels) in parts.items():
        chosen = sorted(test if part == "test" else fraction.keys() - test, key=fraction.get)
        assert [Path(file.path).name for file in files] == [n for n in chosen for _ in class_names]
        assert labels.tolist() == [0, 1, 2] * len(chosen)
        assert [Path(file.path).parent.name for file in files[:3]] == list(class_names)


def test_find_images_keeps_files_in_their_part_when_others_are_added(
    shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes, tmp_path / "more")
    names_at_first = names(tmp_path / "more")
    for i in range(40, 90):
        save(TINY, tmp_path / "more" / "circle" / f"{i:03d}.jpg")
    names_later = names(tmp_path / "more")
    assert all(names_at_first[part] < names_later[part] for part in names_at_first)


def test_load_takes_examples_of_all_classes_first(shapes: Path) -> None:
    data = datasets.load(shapes, 8, train_examples=9, test_examples=3, verbose=False)
    assert np.bincount(data.y_train).tolist() == [3, 3, 3]
    assert np.bincount(data.y_test).tolist() == [1, 1, 1]
    assert len(datasets.load(shapes, 8, 500, 3, allow_fewer=True, verbose=False).x_train) > 80
    with pytest.raises(ValueError, match="`train_examples` must be at most 102, the size of été 1"):
        datasets.load(shapes, 8, train_examples=500)


def test_load_reads_train_and_test_folders(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in ("b", "a", "c"):
            for i in range(count):
                save(TINY if i else Image.new("L", (4, 4)), tmp_path / part / name / f"{i}.png")
    (tmp_path / "LICENSE").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "train" / ".DS_Store").touch()
    (tmp_path / "train" / "a" / ".DS_Store").touch()
    data = datasets.load(f"{tmp_path}/", verbose=False)
    assert data.class_names == ("a", "b", "c")
    assert np.bincount(data.y_train).tolist() == [3, 3, 3]
    assert np.bincount(data.y_test).tolist() == [2, 2, 2]


def test_find_images_takes_train_as_a_class_if_it_holds_images(tmp_path: Path) -> None:
    for name in ("train", "car"):
        for i in range(20):
            save(TINY, tmp_path / name / f"{i}.png")
    assert find_images(tmp_path)[1] == ("car", "train")


def test_find_images_knows_accents_in_both_forms(tmp_path: Path) -> None:
    """Some systems write é as the letter and an accent."""
    forms = {form: unicodedata.normalize(form, "épée") for form in ("NFC", "NFD")}
    assert forms["NFC"] != forms["NFD"]
    parts = {}
    for form, name in forms.items():
        for part, folder in (("train", name), ("test", forms["NFC"])):
            for other in ("chat", folder):
                save(TINY, tmp_path / form / part / other / f"{name}.png")
        parts[form], class_names = find_images(tmp_path / form)
        assert class_names == ("chat", forms["NFC"])
    assert parts["NFC"]["train"][1].tolist() == parts["NFD"]["train"][1].tolist()


def test_load_takes_an_existing_path_and_marked_names_for_paths(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shapes.parent)
    monkeypatch.setenv("HOME", str(shapes.parent))
    (shapes.parent / "mnist").symlink_to(shapes)
    for name in (shapes.name, f"./{shapes.name}", f"~/{shapes.name}", Path(shapes.name), "./mnist"):
        assert datasets.load(name, 8, 9, 9, verbose=False).num_classes == 3
    assert datasets.load("mnist", 8, 9, 9).num_classes == 10
    monkeypatch.chdir(shapes)
    assert datasets.load(".", 8, 9, 9, verbose=False).name == "été 1"


@pytest.mark.parametrize("name", ["./photos", "../photos", "~/photos", "/photos", "photos.npz"])
def test_load_rejects_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match="no such file or folder") as error:
        datasets.load(name)
    assert f"Received: dataset={name}, " in str(error.value)


def only_train(root: Path) -> None:
    save(TINY, root / "train" / "cat" / "1.png")


def only_test(root: Path) -> None:
    save(TINY, root / "test" / "cat" / "1.png")


def nothing(root: Path) -> None:
    root.mkdir()


def without_classes(root: Path) -> None:
    save(TINY, root / "1.png")


def parts_without_classes(root: Path) -> None:
    save(TINY, root / "train" / "1.png")
    save(TINY, root / "test" / "1.png")


def single_class(root: Path) -> None:
    for i in range(20):
        save(TINY, root / "cat" / f"{i}.png")


def class_without_training_images(root: Path) -> None:
    for part, name in (("train", "cat"), ("test", "cat"), ("test", "dog")):
        save(TINY, root / part / name / "1.png")
    (root / "train" / "dog").mkdir()


def class_without_test_images(root: Path) -> None:
    for part, name in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        save(TINY, root / part / name / "1.png")


def class_whose_images_are_all_training_images(root: Path) -> None:
    single_class(root)
    assert hashlib.sha256(b"1.png").digest()[0] > 51
    save(TINY, root / "dog" / "1.png")


def class_in_test_only(root: Path) -> None:
    class_without_test_images(root)
    save(TINY, root / "test" / "bird" / "1.png")


def folder_in_a_class(root: Path) -> None:
    single_class(root)
    save(TINY, root / "cat" / "more" / "1.png")


def control_character(root: Path) -> None:
    single_class(root)
    (root / "cat").rename(root / "a\nb")
    single_class(root)


def file(root: Path) -> None:
    root.write_text("no image")


FAULTS = [
    (only_train, r"both folders, train and test.*train without .*/test\."),
    (only_test, r"both folders.*Received: .*/test without .*/train\."),
    (nothing, r"a folder of images for each class\. Received: .*/data, an empty folder\. Move"),
    (without_classes, r"for each class\. Received: .*/data, files, but no folders"),
    (parts_without_classes, r"for each class\. Received: .*/train, files, but no folders"),
    (single_class, r"at least two classes\. Received: .*/data with the class cat\. Add"),
    (class_without_training_images, "train images of each class.*, where dog has none. Add some"),
    (class_without_test_images, r"test images of each class.*/data, where dog has none\. Add some"),
    (
        class_whose_images_are_all_training_images,
        r"test images of each class.*dog has none\. A hash .* 20 % .* or divide them yourself",
    ),
    (class_in_test_only, r"Received: .*/test/bird, but no folder bird in .*/train"),
    (folder_in_a_class, r"no folders, in the folder of a class\. Received: .*/cat/more\. Move"),
    (control_character, r"can be printed\. Received: 'a\\nb' in .*/data"),
    (file, r"a folder of class folders or an \.npz file\. Received: .*/data, another file"),
]


@pytest.mark.parametrize(("make", "text"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_load_rejects_a_folder_that_is_no_data_set(
    tmp_path: Path, make: Callable[[Path], None], text: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(ValueError, match=text) as error:
        datasets.load(tmp_path / "data", 8)
    assert "\n" not in str(error.value)


def test_load_skips_unreadable_files_if_it_may(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    broken = root / "circle" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"circle/000\.jpg: .*Remove the file, or leave"):
        datasets.load(root, 8, verbose=False)
    with pytest.warns(UserWarning, match=r"without 1 unreadable file: 000\.jpg") as caught:
        data = datasets.load(root, 8, skip_unreadable=True, verbose=False)
    assert len(data.x_train) + len(data.x_test) == 119
    assert len(caught) == 1


def test_load_rejects_images_of_one_colour(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            save(TINY, tmp_path / part / name / "1.png")
    with pytest.raises(
        ValueError, match=r"one level in each channel\. Received: std=\[0\.0, 0\.0, "
    ):
        datasets.load(tmp_path, verbose=False)


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist there")
def test_load_rejects_names_that_are_no_text(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"a\xe9")
    shutil.copytree(shapes, root)
    with pytest.raises(ValueError, match=r"that can be printed. Received: .*a\\udce9'"):
        datasets.load(root, 8)
