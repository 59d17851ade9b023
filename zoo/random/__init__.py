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

A draw with a `batch_axis` depends on the place of each example in the whole batch. Within `rows`,
which says what part of a larger batch is computed, it gives the numbers of that part, so that a
batch draws the same numbers wherever and in however many parts it is computed.
"""

from zoo.random.generator import Key as Key
from zoo.random.generator import bernoulli as bernoulli
from zoo.random.generator import bits as bits
from zoo.random.generator import fold_in as fold_in
from zoo.random.generator import key as key
from zoo.random.generator import normal as normal
from zoo.random.generator import permutation as permutation
from zoo.random.generator import uniform as uniform
from zoo.random.layers import DrawCounter as DrawCounter
from zoo.random.layers import Dropout as Dropout
from zoo.random.place import Rows as Rows
from zoo.random.place import current_rows as current_rows
from zoo.random.place import rows as rows
