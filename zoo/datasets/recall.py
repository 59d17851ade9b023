"""The recall task: sequences whose label is their first symbol."""

import numpy as np

from zoo import random


class Recall:
    """Sequences that show a symbol first and distractors ever after; the symbol is to be named.

    Each step shows one thing, one-hot. Symbols and distractors have channels of their own, so no
    later step says anything of the first. Examples are drawn when they are asked for, each by its
    index: nothing is stored, whatever the length.

    Args:
        seed: of the draws; the same bits on every backend.
        part: names the set, such as "train" or "test"; sets of two names have nothing in common.
        length: steps of each sequence, the first included.
        count: how many sequences there are.
        symbols: how many there are to tell apart, and as many distractors.

    Raises:
        ValueError: if `length` or `count` is not at least 1, or `symbols` not at least 2.
    """

    def __init__(self, seed: int, part: str, length: int, count: int, symbols: int = 8):
        for name, value, least in (
            ("length", length, 1),
            ("count", count, 1),
            ("symbols", symbols, 2),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
        self.length = length
        self.symbols = symbols
        self._count = count
        self._key = random.key(seed, "recall", part, length, symbols)

    def __len__(self) -> int:
        return self._count

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, length, 2·symbols) float32, and the first symbols, (B,) int32."""
        drawn = [random.bits(random.fold_in(self._key, int(i)), self.length) for i in indices]
        shown = np.stack(drawn) % self.symbols
        shown[:, 1:] += self.symbols
        return np.eye(2 * self.symbols, dtype=np.float32)[shown], shown[:, 0]
