"""The recall task: sequences whose label is their first symbol."""

from typing import Annotated

import numpy as np

from zoo import random
from zoo.validation import Count, Seed, Size, validated, whole


class Recall:
    """Sequences of a symbol and then distractors; the label is the symbol.

    Each step is one-hot. Symbols and distractors have channels of their own, so no later step tells
    the first. Each example is drawn from its index when it is read, so nothing is stored.

    Args:
        seed: Seed of the sequences; the same bits on every backend.
        part: Name of the set, such as "train" or "test". Two sets have nothing in common.
        length: Number of steps of each sequence, the first included.
        count: Number of sequences.
        symbols: Number of symbols, and of distractors.

    Raises:
        ValueError: If `length` or `count` is below 1, or `symbols` below 2.
    """

    @validated
    def __init__(
        self,
        seed: Seed,
        part: str,
        length: Size,
        count: Count,
        symbols: Annotated[int, whole(2, 1024)] = 8,
    ):
        self.length = length
        self.symbols = symbols
        self._count = count
        self._key = random.key(seed, "recall", part, length, symbols)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sequences (B, length, 2·symbols) float32 and their labels (B,) int32."""
        drawn = [random.bits(random.fold_in(self._key, int(i)), self.length) for i in indices]
        steps = np.stack(drawn) % self.symbols
        steps[:, 1:] += self.symbols
        return np.eye(2 * self.symbols, dtype=np.float32)[steps], steps[:, 0]
