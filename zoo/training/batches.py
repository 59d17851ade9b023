"""Batches of examples for `fit`, `evaluate` and `predict`, in an order that a seed decides."""

import copy
import functools
import math
from typing import Annotated, Any, Protocol, Self

import keras
import numpy as np

from zoo import random
from zoo.validation import Count, Index, Rule, Seed, Size, validated


class Indexable(Protocol):
    """Examples that are read when they are wanted, such as windows of a text on the disk."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, indices: np.ndarray) -> Any:
        """The examples with these numbers, (B,): `x`, `(x, y)` or `(x, y, sample_weight)`."""
        ...


def _check_examples(value: Any) -> Any:
    if isinstance(value, str | bytes | bytearray):  # indexable, but by characters
        raise TypeError
    return value


Examples = Annotated[Any, Rule("arrays, or an `Indexable` of examples", _check_examples)]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of examples: one pass in order or, with a seed, an endless shuffled stream.

    With a seed, batch `i` depends on the seed and `i` alone: each pass over the examples has an
    order of its own, and the last batch of a pass may be smaller. A training can so be resumed at
    any step. `zoo.Trainer.fit` reads `steps_per_epoch`; `keras.Model.fit` has to be given it:

        batches = Batches((x, y), batch_size=64, seed=0)
        model.fit(batches, steps_per_epoch=batches.steps_per_epoch, epochs=3, shuffle=False)
        model.evaluate(Batches((x, y), batch_size=256))

    Args:
        examples: Arrays with one example a row, nested as `fit` takes them: `x`, `(x, y)` or
            `(x, y, sample_weight)`, where each may be a dict of arrays; or an `Indexable`.
        batch_size: Number of examples in a batch.
        seed: Seed of the order. By default the examples come once, in the order they have.
        steps_per_epoch: Batches of an epoch. By default an epoch is one pass over the examples.

    Raises:
        ValueError: If there are no examples, the arrays differ in length, or a size is below 1.
    """

    @validated
    def __init__(
        self,
        examples: Examples,
        batch_size: Size = 64,
        seed: Seed | None = None,
        steps_per_epoch: Count | None = None,
    ):
        super().__init__()
        if not hasattr(examples, "__getitem__") or (
            isinstance(examples, tuple | list | dict) or getattr(examples, "ndim", 1) == 0
        ):
            examples = _Arrays(examples)
        if not len(examples):
            raise ValueError("`examples` must hold at least one example. Received: none")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self._first = 0
        self._steps_per_pass = math.ceil(len(examples) / batch_size)
        self.steps_per_epoch = self._steps_per_pass if steps_per_epoch is None else steps_per_epoch
        self._order = functools.lru_cache(maxsize=2)(functools.partial(shuffled_indices, seed or 0))

    @property
    def num_batches(self) -> int | None:
        """Number of batches; None with a seed, since the stream does not end."""
        return self._steps_per_pass if self.seed is None else None

    @property
    def order(self) -> dict[str, int | None]:
        """What decides the order of the examples, for the identity of a checkpoint."""
        return {
            "seed": self.seed, "batch_size": self.batch_size, "examples": len(self.examples),
        }  # fmt: skip

    @validated
    def from_step(self, step: Index) -> Self:
        """The same stream from the batch of this number on."""
        later = copy.copy(self)
        later._first = self._first + step
        return later

    def __getitem__(self, index: int) -> Any:
        return self.examples[self.indices(index)]

    def indices(self, index: int) -> np.ndarray:
        """Numbers of the examples of a batch, (B,); a worker of a cluster reads a part of them."""
        completed, number = divmod(self._first + index, self._steps_per_pass)
        start = number * self.batch_size
        stop = min(start + self.batch_size, len(self.examples))
        if self.seed is None:
            return np.arange(start, stop)
        return self._order(completed, len(self.examples))[start:stop]


class _Arrays:
    """Arrays of one length, nested as `fit` takes them."""

    def __init__(self, arrays: Any):
        self._arrays = keras.tree.map_structure(np.asarray, arrays)
        if any(not array.ndim for array in keras.tree.flatten(self._arrays)):
            raise ValueError(
                "`examples` must be arrays with one example a row. Received: a single value"
            )
        lengths = [len(array) for array in keras.tree.flatten(self._arrays)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"The arrays of `examples` must be of one length. Received: lengths {lengths}"
            )
        self._length = lengths[0] if lengths else 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: np.ndarray) -> Any:
        return keras.tree.map_structure(lambda array: array[indices], self._arrays)


@validated
def shuffled_indices(seed: Seed, epoch: Index, examples: Count) -> np.ndarray:
    """The order of the examples in one epoch, (examples,) int32."""
    order = random.permutation(random.fold_in(random.key(seed, "order"), epoch), examples)
    return np.asarray(order)
