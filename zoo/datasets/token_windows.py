"""Token ids on the disk, and the windows of them that a language model is trained on."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from zoo import random
from zoo.datasets.tokenizer import Tokenizer


def encode_to_disk(
    texts: Iterable[str], vocabulary: Tokenizer, folder: Path | None = None
) -> np.ndarray:
    """The token ids of texts, each behind a `BOS`, (N,) uint16, in a file that has no name.

    The system reads of it what is used and removes it when the array is gone, however the process
    ends.

    Args:
        texts: taken one at a time.
        vocabulary: to encode them with.
        folder: on the disk that is to hold the file; by default the system's for such files.

    Raises:
        ValueError: if there are no texts, or `vocabulary` cannot encode one.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for text in texts:
            ids = np.concatenate([[vocabulary.BOS], vocabulary.encode(text)])
            file.write(ids.astype(np.uint16).tobytes())
        if not file.tell():
            raise ValueError("`texts` must hold a text at least. Received: none")
        file.flush()
        return np.memmap(file, np.uint16, "r")


def split_documents(ids: np.ndarray) -> list[np.ndarray]:
    """The works in the ids of `encode_to_disk`, each (T,) from its `BOS` on, still on disk."""
    begins = np.flatnonzero(ids == Tokenizer.BOS)
    return [ids[begin:end] for begin, end in zip(begins, [*begins[1:], len(ids)])]


def _check_window(ids: np.ndarray, length: int) -> None:
    if not 1 <= length < len(ids):
        raise ValueError(
            f"`length` must be at least 1 and below {len(ids)}, the tokens of the text. "
            f"Received: length={length}"
        )


class TokenWindows:
    """Training examples: pieces of `length` tokens side by side, and the token after each.

    Args:
        ids: (N,) integers, in memory or on the disk.
        length: tokens the model reads at once.
        train_examples: take only that many, from the beginning; by default all.

    Raises:
        ValueError: if there are too few ids for one window, or for `train_examples`.
    """

    def __init__(self, ids: np.ndarray, length: int, train_examples: int | None = None):
        self._ids = ids
        self._length = length
        _check_window(ids, length)
        whole = (len(ids) - 1) // length
        if train_examples is not None and not 1 <= train_examples <= whole:
            raise ValueError(
                f"`train_examples` must be at least 1 and at most {whole}, the windows of {length} "
                f"tokens in the text. Received: train_examples={train_examples}"
            )
        self._examples = train_examples or whole

    def __len__(self) -> int:
        return self._examples

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray]:
        """The windows of these numbers, (B,), as ids (B, length + 1) int32."""
        places = np.asarray(indices)[:, None] * self._length + np.arange(self._length + 1)
        return (self._ids[places].astype(np.int32),)


class RandomTokenWindows:
    """Training examples: pieces of a text from places drawn at random, and the token after each.

    Args:
        ids: (N,) integers, in memory or on the disk.
        length: tokens the model reads at once.
        count: how many pieces.
        seed: of the places.

    Raises:
        ValueError: if there are too few ids for one window.
    """

    def __init__(self, ids: np.ndarray, length: int, count: int, seed: int = 0):
        _check_window(ids, length)
        self._ids = ids
        self._length = length
        key = random.key(seed, "windows")
        places = random.uniform(key, count).astype(np.float64) * (len(ids) - length)
        self._places = places.astype(np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray]:
        """The windows of these numbers, (B,), as ids (B, length + 1) int32."""
        places = self._places[np.asarray(indices)][:, None] + np.arange(self._length + 1)
        return (self._ids[places].astype(np.int32),)
