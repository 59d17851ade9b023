"""Tests of checkpoint files."""

import contextlib
import os
import resource
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from zoo.training import checkpoints
from zoo.training.optimizers import Adam


def make(units: int = 3, seed: int = 0) -> dict:
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(units, name="dense")]
    model = keras.Sequential(layers, name="model")
    optimizer = Adam(0.1)
    optimizer.build(model.trainable_variables)
    return {"model": model, "optimizer": optimizer}


def values(parts: dict) -> list[np.ndarray]:
    return [
        np.array(ops.convert_to_numpy(v.value)) for part in parts.values() for v in part.variables
    ]


def assert_equal(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_restore_assigns_every_variable(tmp_path: Path) -> None:
    parts = make()
    for i in range(3):
        variables = parts["model"].trainable_variables
        parts["optimizer"].apply([ops.ones(v.shape) * i for v in variables], variables)
    path = checkpoints.save(tmp_path / "new", 3, {"sums": {"loss": 0.1}}, **parts)
    assert path.name == "step-000000003.npz"
    other = make(seed=1)
    assert checkpoints.restore(tmp_path / "new", **other) == {"step": 3, "sums": {"loss": 0.1}}
    assert_equal(values(other), values(parts))
    assert int(ops.convert_to_numpy(other["optimizer"].iterations)) == 3


def test_restore_updates_constants_made_from_variables(tmp_path: Path) -> None:
    """Those of `keras.layers.Normalization` are tensors of its own on every backend but PyTorch."""

    def normalizing() -> keras.Model:
        layers = [keras.Input((3,)), keras.layers.Normalization(name="normal")]
        return keras.Sequential(layers, name="model")

    x = np.random.default_rng(0).normal(5, 2, (50, 3)).astype(np.float32)
    model, fresh = normalizing(), normalizing()
    model.get_layer("normal").adapt(x)
    checkpoints.save(tmp_path, 1, {}, model=model)
    checkpoints.restore(tmp_path, model=fresh)
    np.testing.assert_array_equal(*(ops.convert_to_numpy(each(x)) for each in (model, fresh)))
    assert abs(ops.convert_to_numpy(fresh(x)).mean()) < 1e-4


@pytest.mark.once
def test_save_keeps_last_two_and_restore_takes_newest(tmp_path: Path) -> None:
    parts = make()
    for step in (5, 10, 15):
        checkpoints.save(tmp_path, step, {}, **parts)
    assert sorted(os.listdir(tmp_path)) == ["step-000000010.npz", "step-000000015.npz"]
    progress = checkpoints.restore(tmp_path, **parts)
    assert progress == {"step": 15}


@pytest.mark.once
def test_save_and_restore_leave_other_files_alone(tmp_path: Path) -> None:
    """Also those whose names begin as a checkpoint's, before and after it in order."""
    parts = make()
    names = [
        "step-0.npz", "step-000000001-notes.npz", "step-0000000009.npz", "step-best.npz",
        "step-last.npz", "step-final.npz", ".unfinished-step-best.npz", "step-00000000١.npz",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(b"precious")
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {}, **parts)
        assert checkpoints.restore(tmp_path, **parts) == {"step": step}
    ours = ["step-000000002.npz", "step-000000003.npz"]
    assert sorted(os.listdir(tmp_path)) == sorted([*names, *ours])
    assert all((tmp_path / name).read_bytes() == b"precious" for name in names)


@pytest.mark.once
def test_restore_removes_unfinished_checkpoint(tmp_path: Path) -> None:
    parts = make()
    checkpoints.save(tmp_path, 1, {}, **parts)
    for name in (".unfinished-step-000000002.npz", ".step-000000002.npz.tmp"):
        (tmp_path / name).write_bytes(b"half")
    assert checkpoints.restore(tmp_path, **parts) == {"step": 1}
    assert sorted(os.listdir(tmp_path)) == [".step-000000002.npz.tmp", "step-000000001.npz"]


@pytest.mark.once
def test_restore_begins_anew_without_a_whole_checkpoint(tmp_path: Path) -> None:
    parts = make()
    checkpoints.save(tmp_path, 1, {}, **parts).write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"npz\.damaged; the training begins anew"):
        assert checkpoints.restore(tmp_path, **parts) is None


@pytest.mark.once
def test_restore_rejects_checkpoint_of_another_training(tmp_path: Path) -> None:
    """By the first part of its identity that differs, with what to do."""
    parts = make()
    initial = values(parts)
    identity = {
        "configuration": {"seed": 0, "units": [3, 4]},
        "inputs": {"vocabulary.json": "aa"},
        "order": {"seed": 0, "batch_size": 8},
    }
    checkpoints.save(tmp_path, 1, {}, identity=identity, **make(seed=1))
    for other, text in {
        ("configuration", "seed"): "seed was 0 and is 7. Give the flags that it was saved with",
        ("configuration", "rate"): "rate was None and is 7. Give the flags",
        ("inputs", "vocabulary.json"): "json was 'aa' and is 7. Restore that file",
        ("order", "batch_size"): "batch_size was 8 and is 7. Give `fit` the same `Batches`",
    }.items():
        part, name = other
        changed = identity | {part: identity[part] | {name: 7}}
        with pytest.raises(ValueError, match=r"step-000000001\.npz belongs to another") as error:
            checkpoints.restore(tmp_path, identity=changed, **parts)
        assert text in str(error.value)
    assert_equal(values(parts), initial)
    for known in (identity, {"order": identity["order"]}, None):
        assert checkpoints.restore(tmp_path, identity=known, **parts) == {"step": 1}


@pytest.mark.once
def test_restore_without_checkpoint_returns_none(tmp_path: Path) -> None:
    assert checkpoints.restore(tmp_path / "none", **make()) is None


@pytest.mark.once
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_restore_falls_back_from_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    parts = make(units=1000)
    checkpoints.save(tmp_path, 1, {}, **parts)
    expected = values(parts)
    parts["model"].set_weights([w + 1 for w in parts["model"].get_weights()])
    path = checkpoints.save(tmp_path, 2, {}, **parts)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    damaged = {"cut": content[:-100], "empty": b"", "text": b"not an archive"}
    path.write_bytes(damaged.get(damage, content))
    text = (
        r"step-000000002\.npz is damaged .* set aside as step-000000002\.npz\.damaged; "
        r"step-000000001\.npz is tried next"
    )
    with pytest.warns(UserWarning, match=text):
        assert checkpoints.restore(tmp_path, **parts) == {"step": 1}
    assert_equal(values(parts), expected)
    # What is set aside takes no place among the last two.
    checkpoints.save(tmp_path, 2, {}, **parts)
    assert len(list(tmp_path.glob("step-*.npz"))) == 2


@pytest.mark.once
def test_restore_survives_every_flipped_bit_of_headers(tmp_path: Path) -> None:
    parts = make()
    content = checkpoints.save(tmp_path / "good", 1, {}, **parts).read_bytes()
    good = values(parts)
    for position in [*range(60), *range(len(content) - 200, len(content))]:
        for bit in (0, 3, 7):
            folder = tmp_path / f"{position}-{bit}"
            folder.mkdir()
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            (folder / "step-000000001.npz").write_bytes(flipped)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # A flip in a name makes another name of it, and says so.
                with contextlib.suppress(ValueError):
                    checkpoints.restore(folder, **parts)
            assert_equal(values(parts), good)


def test_restore_rejects_other_model_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {}, **make(units=3))
    other = make(units=5)
    initial = values(other)
    text = r"does not fit this model: model/.*dense/kernel has shape \(4, 3\) instead of \(4, 5\)"
    with pytest.raises(ValueError, match=text):
        checkpoints.restore(tmp_path, **other)
    with pytest.raises(ValueError, match=r"optimizer/adam/iteration is unknown"):
        checkpoints.restore(tmp_path, model=make()["model"])
    assert_equal(values(other), initial)


def test_save_rejects_nan(tmp_path: Path) -> None:
    parts = make()
    checkpoints.save(tmp_path, 1, {}, **parts)
    kernel, bias = parts["model"].get_weights()
    kernel[0, 0] = np.nan
    parts["model"].set_weights([kernel, bias])
    with pytest.raises(checkpoints.NotFinite, match=r"dense/kernel holds a NaN .* at step 2"):
        checkpoints.save(tmp_path, 2, {}, **parts)
    assert os.listdir(tmp_path) == ["step-000000001.npz"]


@pytest.mark.once
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs POSIX limits")
def test_save_on_full_disk_leaves_last_good_checkpoint(tmp_path: Path) -> None:
    """The system refuses to write past a limit, in the middle of a file."""
    small, large = make(units=10), make(units=10_000)
    checkpoints.save(tmp_path, 1, {}, **small)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="Could not write the checkpoint") as error:
            checkpoints.save(tmp_path, 2, {}, **large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    text = str(error.value)
    assert "File too large. The last good checkpoint is" in text
    assert "step-000000001.npz; make room and run the same command again" in text
    assert os.listdir(tmp_path) == ["step-000000001.npz"]
    assert checkpoints.restore(tmp_path, **small) == {"step": 1}


@pytest.mark.once
def test_save_where_folders_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows opens files only."""
    open_file = os.open

    def open_on_windows(path: str, *arguments: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return open_file(path, *arguments)

    monkeypatch.setattr(os, "open", open_on_windows)
    parts = make()
    checkpoints.save(tmp_path, 1, {}, **parts)
    assert checkpoints.restore(tmp_path, **parts) == {"step": 1}
