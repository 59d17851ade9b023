import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import datasets
from zoo.datasets import embedded

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")


@pytest.mark.once
def test_load_mnist_is_the_original_data() -> None:
    data = datasets.load("mnist")
    assert data.x_train.shape == (60000, 28, 28, 1)
    assert data.x_test.shape == (10000, 28, 28, 1)
    assert data.num_classes == 10
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))
    # MD5 digests of the four original IDX files.
    for images, count, expected in (
        (data.x_train, 60000, "6bbc9ace898e44ae57da46a324031adb"),
        (data.x_test, 10000, "2646ac647ad5339dbf082846283269ea"),
    ):
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        assert hashlib.md5(header + images.tobytes()).hexdigest() == expected
    for labels, expected in (
        (data.y_train, "a25bea736e30d166cdddb491f175f624"),
        (data.y_test, "27ae3e4e09519cfbb04c329615203637"),
    ):
        header = np.array([0x801, len(labels)], ">i4").tobytes()
        assert hashlib.md5(header + labels.astype(np.uint8).tobytes()).hexdigest() == expected


@pytest.mark.once
def test_mnist_constants_are_its_statistics() -> None:
    mean, std = datasets.images._statistics(datasets.load("mnist").x_train)
    assert (mean, std) == ((0.1307,), (0.3081,))


@pytest.mark.once
def test_load_resizes_and_truncates() -> None:
    data = datasets.load("mnist", image_size=48, train_examples=7, test_examples=3)
    assert data.x_train.shape == (7, 48, 48, 1)
    assert data.y_test.tolist() == [7, 2, 1]


@pytest.mark.once
def test_load_detects_damaged_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(Path(zoo.__file__).parent / "data", folder / "data")
    content = bytearray((folder / "data" / "mnist.npz").read_bytes())
    content[5_000_000] ^= 1
    (folder / "data" / "mnist.npz").write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda _: folder)
    with pytest.raises(OSError, match=r"damaged: .*mnist\.npz must have the SHA-256 06af5dfe"):
        datasets.load("mnist")


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Data set of colour images of different sizes, prepared by TensorFlow Datasets."""

    VERSION = tfds.core.Version("1.0.0")
    images = Path()

    def _info(self) -> "tfds.core.DatasetInfo":
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager: object) -> dict:
        del manager
        return {"train": self._generate_examples(12), "test": self._generate_examples(6)}

    def _generate_examples(self, count: int):  # type: ignore[no-untyped-def]
        for i in range(count):
            path = self.images / f"{count}-{i}.png"
            shade = np.full((20 + i, 30, 3), [10 * i, 5 * i, 200 - 10 * i], np.uint8)
            Image.fromarray(shade).save(path)  # encoding an array would need TensorFlow
            yield i, {"image": path, "label": i % 3}


class UnreachableShapes(TinyShapes):
    """Data set whose download fails because there is no network."""

    def _split_generators(self, manager: object) -> dict:
        raise ConnectionError("no route to host")


@pytest.fixture
def prepared_folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    TinyShapes.images = tmp_path / "images"
    builder = TinyShapes(data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare()
    return tmp_path / "data"


@pytest.mark.once
def test_load_reads_prepared_tensorflow_dataset(prepared_folder: Path) -> None:
    data = datasets.load("tiny_shapes", image_size=48, data_dir=prepared_folder)
    assert data.x_train.shape == (12, 48, 48, 3)
    assert data.x_test.shape == (6, 48, 48, 3)
    assert data.num_classes == 3
    assert sorted(data.y_train.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    # The red value of an image encodes its number, and therefore its label.
    numbers = data.x_train[:, 0, 0, 0] // 10
    assert (numbers % 3 == data.y_train).all()
    expected = (55 / 255, 27.5 / 255)
    np.testing.assert_allclose(data.mean[:2], expected, atol=1e-4)


def test_load_does_not_import_tensorflow(prepared_folder: Path) -> None:
    datasets.load("tiny_shapes", image_size=48, data_dir=prepared_folder)
    installed = zoo.backends.installed()
    assert "tensorflow" in installed or "tensorflow" not in sys.modules


@pytest.mark.once
def test_load_rejects_different_sizes_without_image_size(prepared_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"12 shapes, \(20, 30, 3\) to \(31, 30, 3\).*image_size"):
        datasets.load("tiny_shapes", data_dir=prepared_folder)


@pytest.mark.once
def test_load_takes_a_smaller_data_set_as_a_whole_if_allowed(prepared_folder: Path) -> None:
    options = {"image_size": 8, "data_dir": prepared_folder}
    with pytest.raises(ValueError, match="`train_examples` must be at most 12, the size of tiny"):
        datasets.load("tiny_shapes", train_examples=100, **options)
    data = datasets.load("tiny_shapes", train_examples=100, allow_fewer=True, **options)
    assert (len(data.x_train), len(data.x_test)) == (12, 6)
    data = datasets.load("tiny_shapes", train_examples=5, allow_fewer=True, **options)
    assert len(data.x_train) == 5


class OnlyTexts(TinyShapes):
    """Data set without images."""

    def _info(self) -> "tfds.core.DatasetInfo":
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)


@pytest.mark.once
def test_load_rejects_a_data_set_without_images_before_its_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"features image and label. .*only_texts with \['text'\]"):
        datasets.load("only_texts", image_size=8, data_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    assert "Downloading" not in capsys.readouterr().out


@pytest.mark.once
def test_load_tells_the_size_before_a_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="no route to host"):
        datasets.load("unreachable_shapes", image_size=8, data_dir=tmp_path)
    assert "Downloading and preparing dataset Unknown size" in capsys.readouterr().out


@pytest.mark.once
def test_load_names_data_path_if_download_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"ConnectionError: no route to host.*unreachable_shapes"):
        datasets.load("unreachable_shapes", image_size=48, data_dir=tmp_path)


@pytest.mark.once
def test_load_names_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        datasets.load("fashion_mnist")


@pytest.mark.once
def test_load_rejects_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset=no_such_data"):
        datasets.load("no_such_data", data_dir=tmp_path)


def dataset(**changes: object) -> datasets.ImageDataset:
    images, labels = np.zeros((4, 48, 48, 1), np.uint8), np.arange(4)
    fields = {"name": "mine", "num_classes": 4, "mean": (0.5,), "std": (0.5,)}
    fields |= {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    return datasets.ImageDataset(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y_train": np.array([0, 1, 43, 2])}, "label 43 at index 2, num_classes=4"),
        ({"y_test": np.array([0, -1, 1, 2])}, "label -1 at index 1"),
        ({"y_test": np.zeros((4, 2), int)}, r"shape=\(4, 2\)"),
        ({"y_test": np.zeros(4)}, "dtype=float64"),
        ({"y_train": np.zeros(3, int)}, "4 images, 3 labels"),
        ({"x_train": np.zeros((4, 48, 48), np.uint8)}, r"x_train.*shape=\(4, 48, 48\)"),
        ({"x_test": np.zeros((4, 48, 48, 1))}, "dtype=float64"),
    ],
)
@pytest.mark.once
def test_image_dataset_rejects_invalid_arrays(changes: dict, text: str) -> None:
    dataset()
    with pytest.raises(ValueError, match=text):
        dataset(**changes)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "train_examples=0"), (60001, "train_examples=60001")]
)
@pytest.mark.once
def test_load_rejects_invalid_number_of_examples(count: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        datasets.load("mnist", train_examples=count)
