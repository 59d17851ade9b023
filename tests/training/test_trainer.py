import csv
import math
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from rich.console import Console

from zoo import initializers, random
from zoo.training import batches, trainer
from zoo.training.optimizers import Adam
from zoo.training.run_directory import RunDirectory

EXAMPLES, BATCH, SEED = 40, 12, 3  # four steps an epoch, the last of four examples


class Stop(Exception):
    """Ends a run in the middle."""


def fit(folder: Path, stop_at: int | None = None, epochs: int = 3, **arguments) -> tuple:
    image = keras.Input((5,), name="x")
    start = {
        n: initializers.FanInUniform(0, n, 5) for n in ("kernel_initializer", "bias_initializer")
    }
    x = keras.layers.Dense(8, activation="tanh", **start, name="hidden")(image)
    x = random.Dropout(0.5, name="dropout")(x)
    model = keras.Model(image, keras.layers.Dense(3, **start, name="out")(x))
    generator = np.random.default_rng(0)
    data = generator.normal(size=(EXAMPLES, 5)).astype(np.float32), np.arange(EXAMPLES) % 3
    seen = []

    def objective(x, y, indices, step):
        logits = model(ops.take(x, indices, axis=0), training=True)
        labels = ops.take(y, indices, axis=0)
        losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        poison = arguments.get("poison")
        loss = ops.mean(losses)
        if poison is not None:
            loss = ops.where(ops.equal(ops.cast(step, "int32"), poison), math.nan, loss)
        return loss, {"batch": ops.cast(ops.shape(indices)[0], "float32")}

    def evaluate() -> dict[str, float]:
        seen.append(len(seen))
        if stop_at is not None and len(seen) >= stop_at:
            raise Stop
        return {"test": float(len(seen))}

    state = trainer.fit(
        model,
        Adam(1e-2),
        objective,
        batches.InMemory(*data),
        RunDirectory(folder, {}),
        epochs=epochs,
        batch_size=arguments.get("batch_size", BATCH),
        seed=SEED,
        evaluate=evaluate,
        checkpoint_steps=arguments.get("checkpoint_steps", 3),
        console=Console(quiet=True),
    )
    return model, state


def test_a_run_and_its_history(tmp_path: Path) -> None:
    _, state = fit(tmp_path)
    assert state.step == 12
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert len(state.losses) == 12
    assert state.history[0]["loss"] == pytest.approx(np.dot(state.losses[:4], [12, 12, 12, 4]) / 40)
    assert state.history[0]["batch"] == pytest.approx((3 * 12 * 12 + 4 * 4) / 40)
    assert state.timed_examples == 3 * 36 - 12 + 2 * 4  # all but the first of each shape
    assert state.examples_per_second > 0
    assert state.wall_seconds > state.timed_seconds
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [row["test"] for row in rows] == ["1.0", "2.0", "3.0"]
    assert list(rows[0]) == ["epoch", "loss", "batch", "test"]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, expected = fit(tmp_path / "whole")
    for _ in range(3):
        with pytest.raises(Stop):  # in the evaluation: the last checkpoint is a step before
            fit(tmp_path / "stopped", stop_at=1)
    for attempt in range(2, 5):
        try:
            parts, state = fit(tmp_path / "stopped", stop_at=attempt if attempt < 4 else None)
        except Stop:
            continue
    for a, b in zip(whole.get_weights(), parts.get_weights()):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)
    losses = [[row["loss"] for row in s.history] for s in (expected, state)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    np.testing.assert_allclose(state.losses, expected.losses, rtol=1e-6)


def test_the_history_survives_a_kill_before_it_is_written(tmp_path: Path) -> None:
    fit(tmp_path)
    before = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").unlink()
    fit(tmp_path)
    assert (tmp_path / "history.csv").read_text() == before


@pytest.mark.parametrize("step", [1, 4, 12])
def test_ctrl_c_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In an epoch's middle, in its last step, and in the last of all."""
    whole, expected = fit(tmp_path / "whole")
    take_step = trainer._Loop.step

    def interrupted(self: trainer._Loop, indices: np.ndarray) -> None:
        take_step(self, indices)
        if self._state.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer._Loop, "step", interrupted)
    with pytest.raises(trainer.Interrupted, match=f"Stopped after step {step}; "):
        fit(tmp_path / "stopped")
    monkeypatch.undo()
    parts, state = fit(tmp_path / "stopped")
    losses = [[row["loss"] for row in s.history] for s in (expected, state)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for a, b in zip(whole.get_weights(), parts.get_weights()):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("argument", ["epochs", "batch_size"])
def test_counts_below_one(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ValueError, match=f"Received: {argument}=0"):
        fit(tmp_path, **{argument: 0})


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    first, _ = fit(tmp_path)
    second, state = fit(tmp_path)
    assert state.step == 12
    for a, b in zip(first.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_nan_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(trainer.Diverged, match=r"The loss is nan at step 8\. The last good"):
        fit(tmp_path, poison=7)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000004.npz", "step-000000006.npz"]
    _, state = fit(tmp_path)
    assert state.step == 12


ORDER = [712, 949, 52, 883]


def test_the_order_is_a_new_permutation_each_epoch_and_the_same_everywhere() -> None:
    first, second = (batches.shuffled_indices(0, epoch, 1000) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).any()
    assert (first != batches.shuffled_indices(1, 0, 1000)).any()
    assert first[:4].tolist() == ORDER
