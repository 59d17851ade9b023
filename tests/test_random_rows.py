"""Draws of a part of a batch: the rows of what the whole batch draws, bit by bit."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from zoo import random
from zoo.backends import backend
from zoo.datasets.augmentation import ImageAugmentation
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import DiffusionTrainer, stratified_timesteps
from zoo.diffusion.noise_schedule import linear

TOTAL = 7
PARTS = ((0, 3), (3, 0), (3, 1), (4, 3))  # start and number of examples; one part is empty

DRAWS: dict[str, Callable[[Any, Any], Any]] = {
    "bits": lambda key, size: random.bits(key, (size, 3), batch_axis=0),
    "uniform": lambda key, size: random.uniform(key, (size,), batch_axis=0),
    "normal": lambda key, size: random.normal(key, (size, 2, 2), 0.5, batch_axis=0),
    "bernoulli": lambda key, size: random.bernoulli(key, 0.5, (size, 9), batch_axis=0),
    "rows of B·T": lambda key, size: random.bits(key, (size * 4, 3), batch_axis=0),
    "second axis of B·T": lambda key, size: ops.swapaxes(
        random.bits(key, (3, size * 4), batch_axis=1), 0, 1
    ),
}  # fmt: skip


def to_numpy(x: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(x))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_rows_draw_the_rows_of_the_whole_batch(draw) -> None:
    key = random.key(1, "rows")
    whole = to_numpy(draw(key, TOTAL))
    for array in (key, ops.convert_to_tensor(key)):
        parts = [to_numpy(_drawn(draw, array, start, count, TOTAL)) for start, count in PARTS]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_compiled_rows_are_those_of_their_place() -> None:
    key = random.key(1, "rows")
    compiled = backend.inference_function(
        keras.Model(),
        lambda start, total: [_drawn(draw, key, start, 3, total) for draw in DRAWS.values()],
    )
    for start in (0, 4):  # one function, compiled once
        drawn = compiled(np.int32(start), np.int32(TOTAL))
        for draw, part in zip(DRAWS.values(), drawn):
            expected = to_numpy(draw(key, TOTAL)).reshape(TOTAL, -1)[start : start + 3]
            np.testing.assert_array_equal(to_numpy(part).reshape(3, -1), expected)


def _drawn(draw: Any, key: Any, start: Any, count: Any, total: Any) -> Any:
    with random.rows(start, count, total):
        return draw(key, count)


def test_rows_nest_and_end() -> None:
    key = random.key(1, "rows")
    whole = random.bits(key, 20, batch_axis=0)
    with random.rows(5, 10, 20):
        with random.rows(2, 3, 10):
            np.testing.assert_array_equal(random.bits(key, 3, batch_axis=0), whole[7:10])
            assert random.current_rows() == (7, 3, 20)
        np.testing.assert_array_equal(random.bits(key, 10, batch_axis=0), whole[5:15])
        np.testing.assert_array_equal(random.bits(key, 10), whole[:10])  # not those of examples
        seen = []
        thread = threading.Thread(target=lambda: seen.append(random.current_rows()))
        thread.start()
        thread.join()
        assert seen == [None]
    with contextlib.suppress(KeyError), random.rows(5, 10, 20):
        raise KeyError
    assert random.current_rows() is None


def test_counter_of_a_large_batch_wraps() -> None:
    """A host integer wraps as tensors do."""
    key = random.key(1, "rows")
    numbers = []
    for start in (2**20, ops.convert_to_tensor(2**20, dtype="int32")):
        with random.rows(start, 1, 2**21):
            numbers.append(to_numpy(random.bits(key, (1, 5000), batch_axis=0)))
    np.testing.assert_array_equal(*numbers)


def test_batch_axis_must_exist_and_hold_the_examples() -> None:
    key = random.key(1, "rows")
    with pytest.raises(ValueError, match=r"axis of `shape`, 0 to 1. Received: batch_axis=2, shape"):
        random.bits(key, (3, 4), batch_axis=2)
    for count, size in ((4, 6), (0, 1)):
        rule = rf"multiple of the number of examples, {count}, .* Received: size={size}"
        with random.rows(0, count, 8), pytest.raises(ValueError, match=rule):
            random.normal(key, (size, 4), batch_axis=0)
    with pytest.raises(ValueError, match=r"`start` must be a whole number .* Received: start=-1"):
        random.rows(-1, 2, 4).__enter__()


# ------------------------------------------------------------------ layers that draw

NUM_STEPS = 20


def test_dropout_of_rows_is_that_of_the_whole_batch() -> None:
    x = np.ones((TOTAL, 5, 3), np.float32)
    whole = to_numpy(random.Dropout(0.5, name="dropout")(x, training=True))
    parts = []
    for start, count in PARTS:
        layer = random.Dropout(0.5, name="dropout")
        with random.rows(start, count, TOTAL):
            parts.append(to_numpy(layer(x[start : start + count], training=True)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_augmentation_of_rows_is_that_of_the_whole_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (TOTAL, 8, 8, 3)).astype(np.uint8)
    layer = ImageAugmentation((0.5,), (0.25,), rotation=180.0, seed=2)
    whole = to_numpy(layer(images, training=True))
    parts = []
    for start, count in PARTS[::2] + PARTS[3:]:  # the last part may replay captured operations
        layer.counter.state.assign([0, 0])
        with random.rows(start, count, TOTAL):
            parts.append(to_numpy(layer(images[start : start + count], training=True)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("prompts", [False, True])
def test_diffusion_draws_of_rows_are_those_of_the_whole_batch(prompts) -> None:
    x0 = np.zeros((TOTAL, 8, 8, 1), np.float32)
    labels = np.arange(TOTAL) % 3
    ids = np.arange(3 * 5 * 4).reshape(3, 5, 4) + 1 if prompts else None
    network = keras.Sequential([keras.Input((8, 8, 1))])  # is not called

    def draws(start: Any, size: int, total: Any) -> list[np.ndarray]:
        trainer = DiffusionTrainer(network, GaussianDiffusion(linear(NUM_STEPS)), 4, ids)
        with random.rows(start, size, total) if size < TOTAL else contextlib.nullcontext():
            drawn = trainer._draw(
                ops.convert_to_tensor(x0[:size]),
                ops.convert_to_tensor(labels[start : start + size]),
            )
        return [to_numpy(array) for array in drawn if array is not None]

    whole = draws(0, TOTAL, TOTAL)
    assert len(whole) == 2 + prompts
    parts = zip(*(draws(start, count, TOTAL) for start, count in PARTS))
    for expected, part in zip(whole, parts):
        np.testing.assert_array_equal(np.concatenate(part), expected)


def test_stratified_timesteps_of_rows_are_equal_with_tensors() -> None:
    first = np.array([0.73], np.float32)
    whole = to_numpy(stratified_timesteps(first, 64, 1000))
    for start in (0, 5, 63):
        place = (ops.convert_to_tensor(start), ops.convert_to_tensor(1), ops.convert_to_tensor(64))
        with random.rows(*place):
            part = to_numpy(stratified_timesteps(first, 1, 1000))
        np.testing.assert_array_equal(part, whole[start : start + 1])
