"""Portable randomness: same seed, same bits, on any backend, eager or compiled, CPU or GPU.

A backend's own generator gives other numbers than the next backend's. Here a number is a function
of a key and of its index alone (a counter-based generator): an integer hash of two multiplications
and three xor-shifts, in `int32` arithmetic, which wraps in the same way everywhere. Nothing is
stored between draws, so a run resumes exactly where the step counter stands.

    key = zoo.random.key(seed, "noise")           # a seed and the name of a stream
    key = zoo.random.fold_in(key, step)           # one key a step
    noise = zoo.random.normal(key, (64, 28, 28, 1))

A key that is a NumPy array gives NumPy arrays, drawn on the host (initial weights, data order); a
key that was folded with a tensor gives tensors. The bits are the same.

Keys of different seeds and streams come from NumPy's `SeedSequence`, which hashes all of its input
into 64 bits. The hash of the counter is Chris Wellons' `lowbias32`, keyed before and between its
rounds. It is made for training, not for cryptography.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any


Key = Any


_LARGEST = 2**31  # numbers of one draw


def key(seed: int, *stream: str | int) -> np.ndarray:
    """The key of a named stream.

    Args:
        seed: an integer in [0, 2**32).
        stream: names or numbers that tell this stream from others of the same seed, such as a
            layer's name.

    Returns:
        (2,) int32.
    """
    integer = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not integer or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be an integer in [0, 2**32). Received: seed={seed!r}")
    # Each part is preceded by its length, so that ("a", "bc") and ("ab", "c") differ.
    parts = [str(part).encode() for part in stream]
    entropy = [int(seed), len(parts), *(n for part in parts for n in (len(part), *part))]
    return np.random.SeedSequence(entropy).generate_state(2).view(np.int32)


def fold_in(key: Key, data: Any) -> Key:
    """A new key for one member of a stream, such as a training step.

    Args:
        key: (2,) int32.
        data: an integer or an integer scalar tensor; values that differ modulo 2**32
            never give the same key.

    Returns:
        (2,) int32, a tensor if one of the arguments is one.
    """
    if _is_host(key) and isinstance(data, int | np.integer):
        data = np.full(2, _wrap(int(data)), np.int32)
        return _fold(np, key, data)
    return _fold(ops, ops.convert_to_tensor(key, "int32"), ops.cast(data, "int32"))


def bits(key: Key, shape: int | Sequence[Any]) -> Tensor:
    """32 random bits for each element, as int32 over its whole range."""
    xp = np if _is_host(key) else ops
    shape = _shape(shape)
    size = math.prod(shape)
    if isinstance(size, int) and size >= _LARGEST:
        raise ValueError(f"One draw has fewer than 2**31 numbers. Received: shape={shape}")
    counter = xp.arange(size, dtype="int32")
    # Spread neighbouring counters over all 32 bits before the first key meets them.
    return xp.reshape(_hash(xp, xp.multiply(counter, _GOLDEN), key), shape)


def uniform(
    key: Key, shape: int | Sequence[Any], minval: float = 0.0, maxval: float = 1.0
) -> Tensor:
    """Uniform float32 numbers in [minval, maxval), on a grid of 2**24 steps.

    In [0, 1) and in ranges symmetric about 0 the bits are the same everywhere. In another range a
    compiler may fuse the multiplication with the addition, so that the last bit differs, and the
    largest numbers may round to `maxval`.
    """
    if not minval < maxval:
        raise ValueError(
            f"`minval` must be below `maxval`. Received: minval={minval}, maxval={maxval}"
        )
    xp = np if _is_host(key) else ops
    drawn = bits(key, shape)
    if minval == -maxval:
        return _scaled(xp, xp.right_shift(drawn, 8), maxval * 2.0**-23)
    unit = _scaled(xp, _shift_right(xp, drawn, 8), 2.0**-24)
    if (minval, maxval) == (0.0, 1.0):
        return unit
    return xp.add(xp.multiply(unit, maxval - minval), minval)


def normal(key: Key, shape: int | Sequence[Any], stddev: float = 1.0) -> Tensor:
    """Normal float32 numbers with mean 0, the same bits everywhere.

    Logarithm and cosine differ between libraries in their last bits, a table does not: each number
    is the sum of two entries of a table of the inverse distribution function, one for each half of
    the 32 bits. The largest is 5.9 standard deviations.
    """
    xp = np if _is_host(key) else ops
    drawn = bits(key, shape)
    # Scaled before it is cast: two entries then sum to the deviation asked for in one rounding.
    table = np.float32(_normal_table() * (stddev / math.sqrt(2)))
    low = xp.take(table, xp.bitwise_and(drawn, 0xFFFF), axis=0)
    high = xp.take(table, _shift_right(xp, drawn, 16), axis=0)
    return xp.add(low, high)


def bernoulli(key: Key, probability: float, shape: int | Sequence[Any]) -> Tensor:
    """Booleans that are true with the given probability (to 2**-32)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must lie in [0, 1]. Received: probability={probability}")
    xp = np if _is_host(key) else ops
    threshold = round(probability * 2**32) - 2**31
    drawn = bits(key, shape)
    if threshold == 2**31:  # always, and one more than int32 holds
        return xp.ones_like(drawn, dtype="bool")
    return xp.less(drawn, threshold)


def permutation(key: Key, size: int) -> Tensor:
    """The numbers 0 to size - 1 in random order, int32. No two of a key's bits are equal."""
    if _is_host(key):
        return np.argsort(bits(key, size)).astype(np.int32)
    return ops.cast(ops.argsort(bits(key, size)), "int32")


# ------------------------------------------------------------------ layers and initial weights


@keras.saving.register_keras_serializable("zoo")
class Dropout(keras.layers.Layer):  # type: ignore[misc]
    """Sets a fraction `rate` of the inputs to 0 in training and scales the others by 1/(1 - rate).

    The mask depends on the seed, on the layer's name and on how many training calls came before;
    that counter is saved and restored with the model, and is not counted as a parameter.

    Args:
        rate: the fraction dropped, in [0, 1).
        seed: with the layer's name, names the stream of masks.

    Source: Srivastava et al., "Dropout", JMLR 2014.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must lie in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        self.random_key = key(seed, "dropout", self.name)

    def build(self, input_shape: Any) -> None:
        # A SeedGenerator is what Keras carries through compiled code and saves without counting
        # it. Its second number, the draws so far, is all that is used of it.
        self.counter = keras.random.SeedGenerator(0, name="counter")

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        mask_key = fold_in(self.random_key, self.counter.next()[1])
        keep = ops.logical_not(bernoulli(mask_key, self.rate, ops.shape(inputs)))
        return ops.where(keep, inputs * (1 / (1 - self.rate)), ops.zeros_like(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


# ------------------------------------------------------------------ the hash


def _wrap(number: int) -> int:
    """The int32 with the same low 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


_GOLDEN = _wrap(0x9E3779B9)  # 2**32 / golden ratio, odd


_LANES = np.array([1, 2], np.int32)  # tell the two halves of a key apart


_MULTIPLIER_1 = _wrap(0x7FEB352D)


_MULTIPLIER_2 = _wrap(0x846CA68B)


def _is_host(key: Key) -> bool:
    return isinstance(key, np.ndarray)


def _shape(shape: int | Sequence[Any]) -> tuple[Any, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _shift_right(xp: Any, x: Tensor, count: int) -> Tensor:
    """Shifts zeros in from the left: an arithmetic shift and a mask."""
    return xp.bitwise_and(xp.right_shift(x, count), (1 << (32 - count)) - 1)


def _xor_shift(xp: Any, x: Tensor, count: int) -> Tensor:
    return xp.bitwise_xor(x, _shift_right(xp, x, count))


def _hash(xp: Any, x: Tensor, key: Key) -> Tensor:
    """`lowbias32` with one half of the key before the first round and one between the rounds."""
    x = _xor_shift(xp, xp.bitwise_xor(x, key[0]), 16)
    x = xp.multiply(x, _MULTIPLIER_1)
    x = _xor_shift(xp, xp.add(x, key[1]), 15)
    x = xp.multiply(x, _MULTIPLIER_2)
    return _xor_shift(xp, x, 16)


def _fold(xp: Any, key: Key, data: Any) -> Key:
    """Two different hashes of `data`, each one-to-one, make the two halves of the new key."""
    x = xp.bitwise_xor(xp.multiply(xp.add(data, _LANES), _GOLDEN), key)
    for _ in range(2):
        x = _xor_shift(xp, x, 16)
        x = xp.multiply(x, _MULTIPLIER_1)
        x = _xor_shift(xp, x, 15)
        x = xp.multiply(x, _MULTIPLIER_2)
        x = _xor_shift(xp, x, 16)
        x = xp.add(x, xp.flip(key))
    return x


def _scaled(xp: Any, x: Tensor, factor: float) -> Tensor:
    x = x.astype(np.float32) if xp is np else ops.cast(x, "float32")
    return xp.multiply(x, np.float32(factor))


@functools.cache
def _normal_table() -> np.ndarray:
    """(65536,) float64: the inverse normal distribution function at midpoints, of variance 1."""
    inverse = statistics.NormalDist().inv_cdf
    upper = np.array([inverse(0.5 + (i + 0.5) / 2**16) for i in range(2**15)])
    table = np.concatenate([-upper[::-1], upper])
    return np.asarray(table / np.sqrt(np.mean(table**2)))
