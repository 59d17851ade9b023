"""Portable random numbers: a seed gives the same bits on every backend, eager or compiled.

The backends' own generators differ from each other. The generator of this module is counter-based:
a number depends only on a key and on its index. An integer hash of two multiplications and three
xor-shifts computes the number in `int32` arithmetic, which wraps in the same way on every backend,
CPU and GPU. The generator stores no state between calls, so a run resumes exactly from its step
counter.

    key = zoo.random.key(seed, "noise")           # a seed and the name of a stream
    key = zoo.random.fold_in(key, step)           # one key a step
    noise = zoo.random.normal(key, (64, 28, 28, 1))

A key that is a NumPy array gives NumPy arrays, computed on the host (initial weights, data order).
A key that was folded with a tensor gives tensors. The bits are the same.

Keys of different seeds and streams come from NumPy's `SeedSequence`, which hashes all of its input
into 64 bits. The hash of the counter is Chris Wellons' `lowbias32`, keyed before and between its
rounds. The generator is designed for training, not for cryptography.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo.validation import KEY, SHAPE, Index, RandomKey, Rate, Seed, number, show, validated

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


def bits(key: Key, shape: int | Sequence[Any]) -> Tensor:
    """Random integers, uniform over the whole range of int32.

    Args:
        key: Key, (2,) int32.
        shape: Shape of the array, with fewer than 2**31 elements.

    Returns:
        int32 array of shape `shape`.

    Raises:
        ValueError: If `key` is no key, or `shape` has 2**31 elements or more.
    """
    KEY.require("key", key)
    sizes = SHAPE.require("shape", shape)
    xp = np if _is_host(key) else ops
    counter = xp.arange(math.prod(sizes), dtype="int32")
    # The product spreads neighbouring counters over all 32 bits before the first half of the key.
    return xp.reshape(_hash(xp, xp.multiply(counter, _GOLDEN), key), sizes)


def uniform(
    key: Key, shape: int | Sequence[Any], minval: float = 0.0, maxval: float = 1.0
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
    xp = np if _is_host(key) else ops
    integers = bits(key, shape)
    if minval == -maxval:
        return _scale(xp, xp.right_shift(integers, 8), maxval * 2.0**-23)
    unit = _scale(xp, _shift_right(xp, integers, 8), 2.0**-24)
    if (minval, maxval) == (0.0, 1.0):
        return unit
    return xp.add(xp.multiply(unit, maxval - minval), minval)


def normal(key: Key, shape: int | Sequence[Any], stddev: float = 1.0) -> Tensor:
    """Normal float32 numbers with mean 0, the same bits on every backend.

    Logarithm and cosine differ between libraries in their last bits, but a table does not. Each
    number is the sum of two entries of a table of the inverse distribution function, one for each
    half of 32 random bits. The largest numbers are at 5.9 standard deviations.

    Args:
        key: Key, (2,) int32.
        shape: Shape of the array.
        stddev: Standard deviation.

    Returns:
        float32 array of shape `shape`.

    Raises:
        ValueError: If an argument is invalid.
    """
    stddev = _STDDEV.require("stddev", stddev)
    xp = np if _is_host(key) else ops
    integers = bits(key, shape)
    # The table is scaled before the cast, so that the sum of two entries is rounded only once.
    table = np.float32(_normal_table() * (stddev / math.sqrt(2)))
    low = xp.take(table, xp.bitwise_and(integers, 0xFFFF), axis=0)
    high = xp.take(table, _shift_right(xp, integers, 16), axis=0)
    return xp.add(low, high)


def bernoulli(key: Key, probability: float, shape: int | Sequence[Any]) -> Tensor:
    """Booleans that are true with a given probability.

    Args:
        key: Key, (2,) int32.
        probability: Probability of true in [0, 1], rounded to a multiple of 2**-32.
        shape: Shape of the array.

    Returns:
        Boolean array of shape `shape`.

    Raises:
        ValueError: If an argument is invalid.
    """
    probability = _PROBABILITY.require("probability", probability)
    xp = np if _is_host(key) else ops
    threshold = round(probability * 2**32) - 2**31
    integers = bits(key, shape)
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


# ------------------------------------------------------------------ layers

_DRAWS = "draws"  # name of the counter's value in a file


class DrawCounter(keras.layers.Layer):  # type: ignore[misc]
    """Base class of layers and models whose random draws depend on the number of earlier draws.

    The counter is a variable, which training checkpoints, `.keras` files and weights files hold, so
    that training continues with the draws that would have come. It is not a parameter. A file
    without the counter, of an earlier version, leaves it as it is.

    A subclass calls `create_counter` once and has no weights of its own besides those of sublayers.
    """

    def create_counter(self) -> None:
        """Creates the counter, with the value 0."""
        # Keras carries the state of a SeedGenerator through compiled code, and does not count it
        # as a parameter. Only its second number, the counter, is used.
        self.counter = keras.random.SeedGenerator(0, name="counter")

    def next_draw(self) -> Tensor:
        """Returns the number of earlier draws, an integer scalar, and counts one more."""
        return self.counter.next()[1]

    def save_own_variables(self, store: Any) -> None:
        """Writes the counter to Keras' store of this layer, unless the layer was never built."""
        if hasattr(self, "counter"):
            store[_DRAWS] = np.array(ops.convert_to_numpy(self.counter.state)[1], np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Reads the counter from Keras' store of this layer.

        Raises:
            ValueError: If the file's value is not an integer in [0, 2**31).
        """
        if _DRAWS not in store:
            return
        draws = store[_DRAWS]
        is_integer = draws.shape == () and draws.dtype.kind in "iu"
        if not is_integer or not 0 <= int(draws[()]) < 2**31:
            raise ValueError(
                f"The number of draws of the layer {self.name} must be an integer in [0, 2**31). "
                f"Received: {draws[()] if is_integer else f'{draws.dtype} of shape {draws.shape}'}"
            )
        self.counter.state.assign(np.array([0, draws[()]], self.counter.state.dtype))


@keras.saving.register_keras_serializable("zoo")
class Dropout(DrawCounter):
    """Dropout layer with masks that are the same bits on every backend.

    In training the layer sets a fraction `rate` of its inputs to 0 and scales the others by
    1/(1 - rate). The mask depends on the seed, the layer's name and the number of previous training
    calls.

    Args:
        rate: Fraction of the inputs that is set to 0, in [0, 1).
        seed: Seed of the dropout masks; layers with different names have different masks.

    Raises:
        ValueError: If `rate` is not in [0, 1) or `seed` is not an integer in [0, 2**32).

    Source: Srivastava et al., "Dropout", JMLR 2014.
    """

    @validated
    def __init__(self, rate: Rate, seed: Seed = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        self.random_key = key(seed, "dropout", self.name)

    def build(self, input_shape: Any) -> None:
        self.create_counter()

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        mask_key = fold_in(self.random_key, self.next_draw())
        keep = ops.logical_not(bernoulli(mask_key, self.rate, ops.shape(inputs)))
        return ops.where(keep, inputs * (1 / (1 - self.rate)), ops.zeros_like(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


# ------------------------------------------------------------------ the hash


def _wrap(number: int) -> int:
    """Wraps an integer to the int32 with the same low 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


_GOLDEN = _wrap(0x9E3779B9)  # 2**32 / golden ratio, odd


_LANES = np.array([1, 2], np.int32)  # distinguish the two halves of a key


_MULTIPLIER_1 = _wrap(0x7FEB352D)


_MULTIPLIER_2 = _wrap(0x846CA68B)


def _is_host(key: Key) -> bool:
    return isinstance(key, np.ndarray)


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
