"""Token ids on the disk, and windows of them as training examples.

Documents are encoded and written one at a time, and windows are read from the disk, so the memory
does not grow with the corpus:

    ids = encode_to_disk(documents, tokenizer)
    windows = TokenWindows(ids, length=64)
    x, y = windows[np.array([0, 7])]                # (2, 64) each
"""

import errno
import tempfile

import numpy as np

from zoo.datasets.tokenizer import Tokenizer
from zoo.validation import Count, FilePath, Texts, TokenArray, validated


@validated
def encode_to_disk(
    texts: Texts, tokenizer: Tokenizer, folder: FilePath | None = None
) -> np.ndarray:
    """Encodes documents into a memory-mapped file without a name.

    The operating system reads the parts that are used. It removes the file when the array is gone,
    however the process ends.

    Args:
        texts: Documents, taken one at a time.
        tokenizer: Tokenizer of the documents.
        folder: Folder on the disk that holds the file. By default the system's temporary folder.

    Returns:
        The token ids of all documents, each after a `Tokenizer.BOS`, (N,) uint16.

    Raises:
        ValueError: If there are no documents, or `tokenizer` cannot encode one.
        OSError: If the file cannot be written, as on a full disk; the text names its folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for text in texts:
                ids = np.concatenate([[tokenizer.BOS], tokenizer.encode(text)])
                file.write(ids.astype(np.uint16).tobytes())
            if not file.tell():
                raise ValueError("`texts` must hold a text at least. Received: none")
            file.flush()
            return np.memmap(file, np.uint16, "r")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            "Could not write the token ids of the texts to a temporary file in "
            f"{folder or tempfile.gettempdir()}: {error.strerror}. No other file has changed. Make "
            "room there, or name another folder in the environment variable TMPDIR, and run the "
            "same command again",
        ) from error


@validated
def split_documents(ids: TokenArray) -> list[np.ndarray]:
    """Documents in the ids of `encode_to_disk`, each (T,) from its `BOS` on, still on the disk."""
    starts = np.flatnonzero(ids == Tokenizer.BOS)
    return [ids[start:stop] for start, stop in zip(starts, [*starts[1:], len(ids)])]


class TokenWindows:
    """Windows of a text: `length` tokens, and the token after each of them.

    Args:
        ids: Token ids, (N,) integers, in memory or on the disk.
        length: Number of tokens that the model reads at once.
        stride: Tokens from the start of a window to the start of the next. By default windows lie
            side by side; 1 gives a window for each place in the text.
        count: Number of windows, from the first on. By default all.

    Raises:
        ValueError: If `ids` are too few for one window or for `count`, or `stride` is below 1.
    """

    @validated
    def __init__(
        self,
        ids: TokenArray,
        length: Count,
        stride: Count | None = None,
        count: Count | None = None,
    ):
        if length >= len(ids):
            raise ValueError(
                f"`length` must be below {len(ids)}, the tokens of the text. "
                f"Received: length={length}"
            )
        self.length = length
        self.stride = length if stride is None else stride
        available = (len(ids) - 1 - length) // self.stride + 1
        if count is not None and count > available:
            raise ValueError(
                f"`count` must be at most {available}, the windows of {length} "
                f"tokens in the text. Received: count={count}"
            )
        self._ids = ids
        self._count = count or available

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, length) of the windows with these numbers, (B,), and the next tokens."""
        starts = np.asarray(indices)[:, None] * self.stride
        windows = self._ids[starts + np.arange(self.length + 1)].astype(np.int32)
        return windows[:, :-1], windows[:, 1:]
