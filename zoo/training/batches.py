"""What a model is trained on, batch by batch."""

from typing import Any, Protocol

import numpy as np

from zoo import random
from zoo.backends import backend


class Examples(Protocol):
    """What `fit` trains on."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def __call__(self, indices: np.ndarray) -> tuple[Any, ...]:
        """What the objective is given of the examples with these indices, (B,) int32.

        Shapes may differ from batch to batch. The last array's rows are counted a second.
        """
        ...


class InMemory:
    """Arrays that stay on the device; the objective is given all of them and the indices.

    Args:
        arrays: of the same length, an example a row.
    """

    def __init__(self, *arrays: np.ndarray):
        self._length = len(arrays[0])
        self._arrays = tuple(backend.on_device(array) for array in arrays)

    def __len__(self) -> int:
        return self._length

    def __call__(self, indices: np.ndarray) -> tuple[Any, ...]:
        return (*self._arrays, indices)


def shuffled_indices(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch's examples, (examples,) int32."""
    order = random.permutation(random.fold_in(random.key(seed, "order"), epoch), examples)
    return np.asarray(order)
