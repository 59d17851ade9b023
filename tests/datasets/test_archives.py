import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import datasets

pytestmark = pytest.mark.once


def arrays(**changes: Any) -> dict[str, Any]:
    """Arrays of three classes, 6 images to train on and 3 to test with."""
    rng = np.random.default_rng(0)
    content = {
        "x_train": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "y_test": np.array([2, 1, 0]),
    }
    content |= changes
    return {name: array for name, array in content.items() if array is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_load_reads_an_npz_file(tmp_path: Path, save: Any) -> None:
    content = arrays(y_test=np.array([2, 1, 0], np.uint8))
    save(tmp_path / "shapes.npz", **content, notes=np.array([{"no": "need of pickle"}]))
    data = datasets.load(tmp_path / "shapes.npz")
    assert (data.name, data.num_classes, data.class_names) == ("shapes", 3, ("0", "1", "2"))
    for name, expected in content.items():
        np.testing.assert_array_equal(getattr(data, name), expected)
    assert data.y_test.dtype == np.int32
    assert datasets.load(tmp_path / "shapes.npz", 8, 4).x_train.shape == (4, 8, 8, 3)


def test_load_takes_class_names_and_grey_images_of_an_npz_file(tmp_path: Path) -> None:
    grey = {name: array[..., 0] for name, array in arrays().items() if name.startswith("x")}
    np.savez(tmp_path / "a.npz", **arrays(class_names=["cat", "épée", "dog"], **grey))
    data = datasets.load(f"{tmp_path}/a.npz")
    assert data.class_names == ("cat", "épée", "dog")
    assert data.x_train.shape == (6, 5, 4, 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"y_test": None},
            "must have the arrays x_train, y_train, x_test, y_test.* without y_test",
        ),
        ({"x_train": np.zeros((6, 5), np.uint8)}, r"`x_train` must be uint8.*shape=\(6, 5\)"),
        ({"x_train": np.zeros((6, 5, 4, 2), np.uint8)}, r"Received: shape=\(6, 5, 4, 2\)"),
        ({"x_test": np.zeros((3, 5, 4))}, "`x_test` must be uint8 .*dtype=float64"),
        ({"x_test": np.zeros((0, 5, 4), np.uint8), "y_test": np.zeros(0, int)}, r"shape=\(0, 5, 4"),
        ({"y_train": np.zeros((6, 1), int)}, r"each of 6 images, shape \(6,\).*shape=\(6, 1\)"),
        ({"y_test": np.zeros(4, int)}, r"each of 3 images, shape \(3,\).*shape=\(4,\)"),
        ({"y_train": np.zeros(6)}, "`y_train` must be whole numbers from 0 on.*dtype=float64"),
        ({"y_train": np.zeros(6, bool)}, "`y_train` must be whole numbers.*dtype=bool"),
        ({"y_test": np.array([0, -1, 2])}, "`y_test` must be whole.*Received: -1 at index 1"),
        (
            {"y_test": np.array([0, 1, 3])},
            r"`y_test` must lie in \[0, 3\), .*Received: 3 at index 2",
        ),
        (
            {"y_train": np.array([0, 1, 2, 2**62, 1, 2])},
            r"lie in \[0, 6\).*4611686018427387904 at i",
        ),
        (
            {"y_train": np.array([0, 1, 3, 0, 1, 3])},
            "train images of each.*, where 2 has none. Num",
        ),
        ({"y_test": np.array([0, 0, 1])}, "test images of each class.*, where 2 has none. Number"),
        (
            {"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)},
            "at least two classes.*class 0",
        ),
        (
            {"class_names": ["a", "b"]},
            r"lie in \[0, 2\), the classes of `class_names`. Received: 2",
        ),
        ({"class_names": list("abcd")}, "train images of each class.*, where d has none"),
        ({"class_names": [1, 2, 3]}, r"`class_names` must be strings.*shape=\(3,\), dtype=int64"),
        ({"class_names": ["a", "b\n", "c"]}, r"can be printed. Received: 'b\\n'"),
        (
            {"class_names": np.array(["a", {}, 1])},
            r"need no pickle.*class_names.npy is of type obj",
        ),
        (
            {"x_train": np.array([None])},
            r"need no pickle.*x_train.npy is of type object.*np\.savez",
        ),
    ],
)
def test_load_rejects_arrays_that_are_no_data_set(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(ValueError, match=text) as error:
        datasets.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_load_rejects_a_damaged_npz_file(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, **arrays())
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("x_train.npy").header_offset
    changed = bytearray(content)
    changed[offset + 300] ^= 1
    for damaged in (b"", b"text", content[: len(content) // 2], bytes(changed)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"an undamaged \.npz file .*Received: .*/a\.npz: \w"):
            datasets.load(path)


def test_load_rejects_an_npz_file_that_grows_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays(x_train=np.zeros((6, 300, 300, 3), np.uint8)))
    with pytest.raises(ValueError, match="its arrays are more than 100 times larger than the file"):
        datasets.load(path)


# ------------------------------------------------------------------ IDX


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four files, two of them compressed."""
    root = tmp_path / "Mode d'été"
    root.mkdir()
    for index, (name, array) in enumerate(arrays().items()):
        content = idx(array[..., 0] if name.startswith("x") else array)
        path = root / IDX_NAMES[name]
        if index % 2:
            path.write_bytes(content)
        else:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    return root


def test_load_reads_idx_files(folder: Path) -> None:
    data = datasets.load("idx", data_dir=folder)
    assert (data.name, data.class_names) == ("Mode d'été", ("0", "1", "2"))
    for name, expected in arrays().items():
        array = getattr(data, name)
        expected = expected[..., :1] if name.startswith("x") else expected
        np.testing.assert_array_equal(array, expected)
        assert array.flags.writeable


def test_load_reads_labels_that_compress_well(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(2), 20_000)
    images = np.random.default_rng(0).integers(0, 256, (40_000, 2, 2))
    for name, filename in IDX_NAMES.items():
        content = gzip.compress(idx(images if name.startswith("x") else labels))
        (tmp_path / f"{filename}.gz").write_bytes(content)
    assert (tmp_path / "train-labels-idx1-ubyte.gz").stat().st_size < 200
    np.testing.assert_array_equal(datasets.load("idx", data_dir=tmp_path).y_train, labels)


def cut(content: bytes) -> bytes:
    return content[:-1]


def lengthen(content: bytes) -> bytes:
    return content + b"\0"


def claim(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("y_train", lambda c: b"\0\0\x08\x03" + c[4:], "is 0x00000803, and not 0x00000801"),
        ("x_train", lambda c: b"\0\0\x0d\x03" + c[4:], "number is 0x00000d03, and not 0x00000803"),
        ("y_test", lambda c: b"text", "its magic number is 0x74657874"),
        ("y_test", lambda c: b"", "its magic number is 0x, and not 0x00000801"),
        ("x_test", lambda c: c[:9], "it ends within its header"),
        ("x_test", cut, r"its shape \(3, 5, 4\) needs 60 bytes, and it has 59"),
        ("y_train", cut, r"its shape \(6,\) needs 6 bytes, and it has 5"),
        ("x_train", lengthen, r"its shape \(6, 5, 4\) needs 120 bytes, and it has more"),
        ("y_test", lambda c: idx(np.zeros(4)), "it has 4 labels for 3 images"),
        ("x_train", lambda c: claim(2**31, 2**10, 2**10), r"shape \(2147483648, 1024, 1024\) does"),
        ("x_train", lambda c: claim(0, 5, 4), r"shape \(0, 5, 4\) does not fit the size"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_load_rejects_a_damaged_idx_file(
    folder: Path, name: str, change: Any, text: str, compressed: bool
) -> None:
    path = folder / IDX_NAMES[name]
    packed = path.with_name(f"{path.name}.gz")
    content = change(path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes()))
    for file in (path, packed):
        file.unlink(missing_ok=True)
    path = packed if compressed else path
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=text) as error:
        datasets.load("idx", data_dir=folder)
    assert f"undamaged IDX files of images and labels. Received: {path}: " in str(error.value)


def test_load_rejects_damaged_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum
    for damaged in (bytes(content), bytes(content[:-20]), b"text" * 9):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"undamaged IDX files.*images-idx3-ubyte\.gz: \w"):
            datasets.load("idx", data_dir=folder)


def test_load_names_a_missing_idx_file_and_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"without train-labels-idx1-ubyte or .*ubyte\.gz"):
        datasets.load("idx", data_dir=folder)
    with pytest.raises(
        ValueError, match=r"`data_dir` must be given with the data set idx. .*=None"
    ):
        datasets.load("idx")
    with pytest.raises(ValueError, match=r"`data_dir` must be a path that exists. .*/missing, and"):
        datasets.load("idx", data_dir=tmp_path / "missing")


def test_load_rejects_an_idx_class_without_images(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 1])))
    with pytest.raises(
        ValueError, match=r"test images of each class.*Mode d'été, where 2 has none"
    ):
        datasets.load("idx", data_dir=folder)
