"""Shakespeare's works: an embedded corpus of 42 documents, its splits and their token ids."""

import io
import lzma
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from zoo.datasets.embedded import Part, embedded
from zoo.datasets.token_windows import encode_to_disk
from zoo.datasets.tokenizer import SEPARATOR, Tokenizer
from zoo.validation import FilePath, Vocabulary, validated

SHAKESPEARE_SHA256 = "089ed6470c5acf7e0922bafaf46c3d999971315b3a41ca6674068634ae62b369"

# Whole plays: a history or tragedy and a comedy in each split, which are 4.8 % of the characters.
VALIDATION = ("KING JOHN", "MUCH ADO ABOUT NOTHING")
TEST = ("JULIUS CAESAR", "MEASURE FOR MEASURE")

Scheme = Literal["works", "first_90"]

_CHUNK_SIZE = 1 << 16  # characters


def documents() -> Iterator[tuple[str, str]]:
    """Yields Shakespeare's 42 works as (title, text), read one at a time.

    The first line of each text is its title.

    Raises:
        OSError: If the embedded file is damaged.
    """
    with embedded("shakespeare.txt.xz", SHAKESPEARE_SHA256) as file, lzma.open(file) as content:
        for text in _split_stream(io.TextIOWrapper(content, "utf-8", newline=""), SEPARATOR):
            yield text.partition("\n")[0], text


@validated
def split(part: Part) -> Iterator[str]:
    """Yields the texts of a split, read one at a time. A split consists of whole works.

    Args:
        part: Name of the split: "train", "validation" or "test".

    Raises:
        ValueError: If `part` is not the name of a split.
    """
    held_out = {"validation": VALIDATION, "test": TEST}
    for title, text in documents():
        if title in held_out.get(part, ()) or (part == "train" and title not in VALIDATION + TEST):
            yield text


def _split_stream(file: Any, separator: str) -> Iterator[str]:
    """Yields the parts of a text file between separators, without reading the whole file."""
    rest = ""
    while chunk := file.read(_CHUNK_SIZE):
        *complete, rest = (rest + chunk).split(separator)
        yield from complete
    yield rest


@validated
def encode_split(
    tokenizer: Tokenizer, folder: FilePath | None = None, scheme: Scheme = "works"
) -> dict[str, np.ndarray]:
    """Encodes the splits "train", "validation" and "test" as token ids on disk.

    Args:
        tokenizer: Tokenizer that encodes the texts.
        folder: Directory of the temporary files; by default that of the system.
        scheme: "works" holds out whole works. "first_90" trains on the first 90 % of the text, and
            validation and test are both the last 10 %.

    Returns:
        Memory-mapped token ids of each split, (N,) uint16, with `BOS` before each document.

    Raises:
        ValueError: If `scheme` is neither "works" nor "first_90".
    """
    if scheme == "works":
        return {part: encode_to_disk(split(part), tokenizer, folder) for part in get_args(Part)}
    ids = encode_to_disk(tokenizer_documents(scheme), tokenizer, folder)
    border = int(0.9 * len(ids))
    return {"train": ids[:border], "validation": ids[border:], "test": ids[border:]}


@validated
def tokenizer_documents(scheme: Scheme = "works") -> Iterator[str]:
    """Yields the training texts of a tokenizer, read one at a time.

    Args:
        scheme: "works" gives the training split. "first_90" gives all texts, so that the vocabulary
            covers every character of the held-out rest.

    Raises:
        ValueError: If `scheme` is neither "works" nor "first_90".
    """
    return split("train") if scheme == "works" else (text for _, text in documents())


@validated
def make_tokenizer(
    path: FilePath, vocabulary_size: Vocabulary | None, scheme: Scheme = "works"
) -> Tokenizer:
    """Loads the tokenizer that a run has saved, or else trains a tokenizer.

    Args:
        path: Path of the saved tokenizer, which need not exist.
        vocabulary_size: Number of tokens of a new tokenizer; None makes each character a token.
        scheme: Scheme of the training texts, "works" or "first_90"; see `tokenizer_documents`.
    """
    if path.exists():
        return Tokenizer.load(path)
    texts = tokenizer_documents(scheme)
    if vocabulary_size is None:
        return Tokenizer.characters(texts)
    return Tokenizer.train(texts, vocabulary_size)
