"""The generator: keys, random bits and the distributions made of them."""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from zoo.random.place import Rows, current_rows
from zoo.validation import KEY, SHAPE, Index, RandomKey, Seed, number, show, validated

Tensor = Any


Key = Any


# Each training step draws numbers, so the functions that draw check their arguments by the rules
# alone: `validated` takes ten times as long.
_NUMBER = number()
_STDDEV = number("[0, inf)")
_PROBABILITY = number("[0, 1]")


@validated
def key(seed: Seed, *stream: str | int) -> np.ndarray:
    """Creates the key of a named stream of random numbers.

    Args:
        seed: Integer seed in [0, 2**32).
        *stream: Names or numbers that distinguish the stream from others of the same seed, such as
            a layer's name.

    Returns:
        Key, (2,) int32.

    Raises:
        ValueError: If `seed` is not an integer in [0, 2**32).
    """
    # Each part is preceded by its length, so that ("a", "bc") and ("ab", "c") differ.
    parts = [str(part).encode() for part in stream]
    entropy = [seed, len(parts), *(n for part in parts for n in (len(part), *part))]
    return np.random.SeedSequence(entropy).generate_state(2).view(np.int32)


def fold_in(key: Key, data: Any) -> Key:
    """Derives a new key from a key and an integer, such as the number of a training step.

    Args:
        key: Key, (2,) int32.
        data: Integer or integer scalar tensor. Values that differ modulo 2**32 never give the same
            key.

    Returns:
        Key, (2,) int32, which is a tensor if one of the arguments is a tensor.

    Raises:
        ValueError: If `key` is no key or `data` is no integer.
    """
    KEY.require("key", key)
    if _is_host(key) and isinstance(data, int | np.integer):
        data = np.full(2, _wrap(int(data)), np.int32)
        return _fold(np, key, data)
    if not hasattr(data, "dtype") or tuple(data.shape) != ():
        raise ValueError(
            f"`data` must be an integer or a scalar tensor of integers. Received: data={show(data)}"
        )
    return _fold(ops, ops.convert_to_tensor(key, "int32"), ops.cast(data, "int32"))


def bits(key: Key, shape: int | Sequence[Any], batch_axis: int | None = None) -> Tensor:
    """Random integers, uniform over the whole range of int32.

    Args:
        key: Key, (2,) int32.
        shape: Shape of the array, with fewer than 2**31 elements.
        batch_axis: Axis of the examples, whose numbers depend on their place in the whole batch:
            see `rows`. By default the numbers are not those of examples.

    Returns:
        int32 array of shape `shape`.

    Raises:
        ValueError: If `key` is no key, `shape` has 2**31 elements or more, or `batch_axis` is no
            axis of it. Within `rows`: if the axis is no multiple of the number of examples.
    """
    KEY.require("key", key)
    sizes = SHAPE.require("shape", shape)
    rows = None
    if batch_axis is not None:
        if batch_axis not in range(len(sizes)):
            raise ValueError(
                f"`batch_axis` must be an axis of `shape`, 0 to {len(sizes) - 1}. Received: "
                f"batch_axis={batch_axis}, shape={sizes}"
            )
        rows = current_rows()
    xp = np if _is_host(key) and (rows is None or rows.is_host) else ops
    counter = xp.arange(math.prod(sizes), dtype="int32")
    if batch_axis is not None and rows is not None:
        counter = _counter_in_whole_batch(xp, counter, sizes, batch_axis, rows)
    # The product spreads neighbouring counters over all 32 bits before the first half of the key.
    return xp.reshape(_hash(xp, xp.multiply(counter, _GOLDEN), key), sizes)


def uniform(
    key: Key,
    shape: int | Sequence[Any],
    minval: float = 0.0,
    maxval: float = 1.0,
    batch_axis: int | None = None,
) -> Tensor:
    """Uniform float32 numbers in [minval, maxval), on a grid of 2**24 steps.

    In [0, 1) and in ranges symmetric about 0 the bits are the same on every backend. In other
    ranges a compiler may fuse the multiplication with the addition, so that the last bit differs.
    The largest numbers may then round to `maxval`.

    Args:
        key: Key, (2,) int32.
        shape: Shape of the array.
        minval: Lower bound, included.
        maxval: Upper bound, excluded.
        batch_axis: Axis of the examples, as for `bits`.

    Returns:
        float32 array of shape `shape`.

    Raises:
        ValueError: If an argument is invalid, or `minval` is not below `maxval`.
    """
    minval = _NUMBER.require("minval", minval)
    maxval = _NUMBER.require("maxval", maxval)
    if not minval < maxval:
        raise ValueError(
            f"`minval` must be below `maxval`. Received: minval={minval}, maxval={maxval}"
        )
    integers = bits(key, shape, batch_axis)
    xp = np if _is_host(integers) else ops
    if minval == -maxval:
        return _scale(xp, xp.right_shift(integers, 8), maxval * 2.0**-23)
    unit = _scale(xp, _shift_right(xp, integers, 8), 2.0**-24)
    if (minval, maxval) == (0.0, 1.0):
        return unit
    return xp.add(xp.multiply(unit, maxval - minval), minval)


def normal(
    key: Key, shape: int | Sequence[Any], stddev: float = 1.0, batch_axis: int | None = None
) -> Tensor:
    """Normal float32 numbers with mean 0, the same bits on every backend.

    Logarithm and cosine differ between libraries in their last bits, but a table does not. Each
    number is the sum of two entries of a table of the inverse distribution function, one for each
    half of 32 random bits. The largest numbers are at 5.9 standard deviations.

    Args:
        key: Key, (2,) int32.
        shape: Shape of the array.
        stddev: Standard deviation.
        batch_axis: Axis of the examples, as for `bits`.

    Returns:
        float32 array of shape `shape`.

    Raises:
        ValueError: If an argument is invalid.
    """
    stddev = _STDDEV.require("stddev", stddev)
    integers = bits(key, shape, batch_axis)
    xp = np if _is_host(integers) else ops
    # The table is scaled before the cast, so that the sum of two entries is rounded only once.
    table = np.float32(_normal_table() * (stddev / math.sqrt(2)))
    low = xp.take(table, xp.bitwise_and(integers, 0xFFFF), axis=0)
    high = xp.take(table, _shift_right(xp, integers, 16), axis=0)
    return xp.add(low, high)


def bernoulli(
    key: Key, probability: float, shape: int | Sequence[Any], batch_axis: int | None = None
) -> Tensor:
    """Booleans that are true with a given probability.

    Args:
        key: Key, (2,) int32.
        probability: Probability of true in [0, 1], rounded to a multiple of 2**-32.
        shape: Shape of the array.
        batch_axis: Axis of the examples, as for `bits`.

    Returns:
        Boolean array of shape `shape`.

    Raises:
        ValueError: If an argument is invalid.
    """
    probability = _PROBABILITY.require("probability", probability)
    threshold = round(probability * 2**32) - 2**31
    integers = bits(key, shape, batch_axis)
    xp = np if _is_host(integers) else ops
    if threshold == 2**31:  # probability 1; the threshold exceeds the range of int32
        return xp.ones_like(integers, dtype="bool")
    return xp.less(integers, threshold)


@validated
def permutation(key: RandomKey, size: Index) -> Tensor:
    """Random permutation of the numbers 0 to size - 1.

    Args:
        key: Key, (2,) int32.
        size: Number of elements.

    Returns:
        Permutation, (size,) int32.
    """
    # No two of a key's `bits` are equal, so the order is unique.
    if _is_host(key):
        return np.argsort(bits(key, size)).astype(np.int32)
    return ops.cast(ops.argsort(bits(key, size)), "int32")


# ------------------------------------------------------------------ the hash


def _wrap(number: int) -> int:
    """Wraps an integer to the int32 with the same low 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


_GOLDEN = _wrap(0x9E3779B9)  # 2**32 / golden ratio, odd


_LANES = np.array([1, 2], np.int32)  # distinguish the two halves of a key


_MULTIPLIER_1 = _wrap(0x7FEB352D)


_MULTIPLIER_2 = _wrap(0x846CA68B)


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray)


def _int32(number: Any) -> Any:
    """An integer or integer tensor, wrapped to int32."""
    return _wrap(number) if isinstance(number, int) else ops.cast(number, "int32")


def _counter_in_whole_batch(
    xp: Any, counter: Tensor, sizes: Sequence[Any], axis: int, rows: Rows
) -> Tensor:
    """The counter of each number of some rows in the draw for the whole batch.

    Args:
        xp: NumPy or `keras.ops`.
        counter: 0, 1, ... for the numbers of the rows, flat.
        sizes: Shape of the rows' numbers.
        axis: Axis of the rows.
        rows: Place of the rows in the whole batch.
    """
    size, inner = sizes[axis], math.prod(sizes[axis + 1 :])
    per_example = rows.per_example(size)
    first = _int32(_int32(rows.start * per_example) * inner)
    if axis:
        # Before each further block of rows come the rows of the whole batch that are elsewhere.
        outer = math.prod(sizes[:axis])
        elsewhere = _int32(_int32(rows.total * per_example - size) * inner)
        block = xp.reshape(xp.arange(outer, dtype="int32"), (outer, 1))
        counter = xp.reshape(counter, (outer, -1)) + block * elsewhere
    return xp.reshape(counter + first, (-1,))


def _shift_right(xp: Any, x: Tensor, count: int) -> Tensor:
    """Logical right shift: an arithmetic shift and a mask."""
    return xp.bitwise_and(xp.right_shift(x, count), (1 << (32 - count)) - 1)


def _xor_shift(xp: Any, x: Tensor, count: int) -> Tensor:
    return xp.bitwise_xor(x, _shift_right(xp, x, count))


def _hash(xp: Any, x: Tensor, key: Key) -> Tensor:
    """Hash `lowbias32`, with half of the key before the first round and half between the rounds."""
    x = _xor_shift(xp, xp.bitwise_xor(x, key[0]), 16)
    x = xp.multiply(x, _MULTIPLIER_1)
    x = _xor_shift(xp, xp.add(x, key[1]), 15)
    x = xp.multiply(x, _MULTIPLIER_2)
    return _xor_shift(xp, x, 16)


def _fold(xp: Any, key: Key, data: Any) -> Key:
    """Hashes `data` to a new key: one bijective hash for each half of the key."""
    x = xp.bitwise_xor(xp.multiply(xp.add(data, _LANES), _GOLDEN), key)
    for _ in range(2):
        x = _xor_shift(xp, x, 16)
        x = xp.multiply(x, _MULTIPLIER_1)
        x = _xor_shift(xp, x, 15)
        x = xp.multiply(x, _MULTIPLIER_2)
        x = _xor_shift(xp, x, 16)
        x = xp.add(x, xp.flip(key))
    return x


def _scale(xp: Any, x: Tensor, factor: float) -> Tensor:
    x = x.astype(np.float32) if xp is np else ops.cast(x, "float32")
    return xp.multiply(x, np.float32(factor))


@functools.cache
def _normal_table() -> np.ndarray:
    """Inverse normal distribution function at midpoints, scaled to variance 1, (65536,) float64."""
    inverse = statistics.NormalDist().inv_cdf
    upper = np.array([inverse(0.5 + (i + 0.5) / 2**16) for i in range(2**15)])
    table = np.concatenate([-upper[::-1], upper])
    return np.asarray(table / np.sqrt(np.mean(table**2)))
