"""Shakespeare's works: the embedded text, its splits, and token ids of them."""

import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets.embedded import embedded
from zoo.datasets.token_windows import encode_to_disk
from zoo.datasets.tokenizer import SEPARATOR, Tokenizer

SHAKESPEARE_SHA256 = "089ed6470c5acf7e0922bafaf46c3d999971315b3a41ca6674068634ae62b369"


# Whole plays, a history or tragedy and a comedy each: 4.8 % of the characters for each of the two.
VALIDATION = ("KING JOHN", "MUCH ADO ABOUT NOTHING")


TEST = ("JULIUS CAESAR", "MEASURE FOR MEASURE")


_PIECE = 1 << 16  # characters read at once


def documents() -> Iterator[tuple[str, str]]:
    """Shakespeare's 42 works as (title, text), read one at a time; the title begins the text.

    Raises:
        OSError: if the embedded file is damaged.
    """
    with embedded("shakespeare.txt.xz", SHAKESPEARE_SHA256) as file, lzma.open(file) as content:
        for text in _between(io.TextIOWrapper(content, "utf-8", newline=""), SEPARATOR):
            yield text.partition("\n")[0], text


def split(part: str) -> Iterator[str]:
    """The texts of "train", "validation" or "test", whole works each, read one at a time.

    Raises:
        ValueError: for another part.
    """
    held_out = {"validation": VALIDATION, "test": TEST}
    if part not in ("train", *held_out):
        raise ValueError(f"`part` must be train, validation or test. Received: part={part}")
    for title, text in documents():
        if title in held_out.get(part, ()) or (part == "train" and title not in VALIDATION + TEST):
            yield text


def _between(file: Any, separator: str) -> Iterator[str]:
    """The parts of a text file between separators."""
    rest = ""
    while piece := file.read(_PIECE):
        *whole, rest = (rest + piece).split(separator)
        yield from whole
    yield rest


def encode_split(
    vocabulary: Tokenizer, folder: Path | None = None, how: str = "works"
) -> dict[str, np.ndarray]:
    """The ids of "train", "validation" and "test", each as `encode_to_disk` gives them.

    Args:
        vocabulary: to encode with.
        folder: on the disk that is to hold them.
        how: "works" holds whole works out. "first_90" trains on the first 90 % of the text, and the
            rest is for validation and test alike.

    Raises:
        ValueError: for another `how`.
    """
    _check_split(how)
    if how == "works":
        parts = ("train", "validation", "test")
        return {part: encode_to_disk(split(part), vocabulary, folder) for part in parts}
    ids = encode_to_disk(tokenizer_documents(how), vocabulary, folder)
    border = int(0.9 * len(ids))
    return {"train": ids[:border], "validation": ids[border:], "test": ids[border:]}


def tokenizer_documents(how: str = "works") -> Iterator[str]:
    """The texts that a vocabulary is made from, with a split as in `encode_split`.

    With "first_90" it is all of them, so that each character of the rest is known.
    """
    _check_split(how)
    return split("train") if how == "works" else (text for _, text in documents())


def make_tokenizer(saved: Path, size: int | None, how: str = "works") -> Tokenizer:
    """What a run has saved; else of so many subwords, or of characters, made from the texts.

    Args:
        saved: a file, which need not be there.
        size: of the vocabulary; None takes characters.
        how: a split as in `encode_split`.
    """
    if saved.exists():
        return Tokenizer.load(saved)
    texts = tokenizer_documents(how)
    return Tokenizer.characters(texts) if size is None else Tokenizer.train(texts, size)


def _check_split(how: str) -> None:
    if how not in ("works", "first_90"):
        raise ValueError(f"`split` must be works or first_90. Received: split={how}")
