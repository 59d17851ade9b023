"""Text for language models: Shakespeare's works, a subword vocabulary, token ids on the disk.

    vocabulary = Vocabulary.train(split("train"), vocabulary_size=5000)
    ids = encode_to_disk(split("train"), vocabulary)
    windows = Windows(ids, length=64)
    (batch,) = windows(np.array([0, 7]))  # (2, 65)

Works are read, encoded and written one at a time, and windows are read from the disk, so the
memory that this takes does not grow with the corpus.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016;
on bytes as in Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools
import io
import lzma
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from zoo import random
from zoo.datasets import embedded

SHAKESPEARE_SHA256 = "089ed6470c5acf7e0922bafaf46c3d999971315b3a41ca6674068634ae62b369"

# Whole plays, a history or tragedy and a comedy each: 4.8 % of the characters for each of the two.
VALIDATION = ("KING JOHN", "MUCH ADO ABOUT NOTHING")
TEST = ("JULIUS CAESAR", "MEASURE FOR MEASURE")

_SEPARATOR = "\f"
_PIECE = 1 << 16  # characters read at once


def works() -> Iterator[tuple[str, str]]:
    """Shakespeare's 42 works as (title, text), read one at a time; the title begins the text.

    Raises:
        OSError: if the embedded file is damaged.
    """
    with embedded("shakespeare.txt.xz", SHAKESPEARE_SHA256) as file, lzma.open(file) as content:
        for text in _between(io.TextIOWrapper(content, "utf-8", newline=""), _SEPARATOR):
            yield text.partition("\n")[0], text


def split(part: str) -> Iterator[str]:
    """The texts of "train", "validation" or "test", whole works each, read one at a time.

    Raises:
        ValueError: for another part.
    """
    held_out = {"validation": VALIDATION, "test": TEST}
    if part not in ("train", *held_out):
        raise ValueError(f"`part` must be train, validation or test. Received: part={part}")
    for title, text in works():
        if title in held_out.get(part, ()) or (part == "train" and title not in VALIDATION + TEST):
            yield text


def _between(file: Any, separator: str) -> Iterator[str]:
    """The parts of a text file between separators."""
    rest = ""
    while piece := file.read(_PIECE):
        *whole, rest = (rest + piece).split(separator)
        yield from whole
    yield rest


class Vocabulary:
    """A byte-pair vocabulary: what text is made of, and its way to token ids and back.

    A token is a word, with the space before it, or a part of one; or punctuation; or white space.
    Token `BEGIN` stands before each work and is in no text.

    Args:
        tokenizer: a trained one of the `tokenizers` library; see `train` and `load`.
    """

    BEGIN = 0

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> Self:
        """Merges the most frequent pair of tokens, beginning with bytes, again and again.

        Args:
            texts: the training texts, taken one at a time.
            vocabulary_size: tokens, from 2 to 65,536 (an id takes two bytes on the disk). A
                short text may give fewer.

        Raises:
            ValueError: if `vocabulary_size` is out of range, or too small for the texts' bytes.
        """
        if not 2 <= vocabulary_size <= 2**16:
            raise ValueError(
                "`vocabulary_size` must be at least 2 and at most 65536. "
                f"Received: vocabulary_size={vocabulary_size}"
            )
        vocabulary = cls._trained(texts, vocabulary_size)
        found = len(vocabulary)
        if found > vocabulary_size or found < 2:
            raise ValueError(
                "`vocabulary_size` must be above the number of different bytes in the texts, "
                "and the texts must not be empty. Received: "
                f"vocabulary_size={vocabulary_size}, texts with {found - 1}"
            )
        return vocabulary

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Self:
        """Nothing is merged: each byte of the texts is a token, in English each character."""
        return cls._trained(texts, 1)

    @classmethod
    def _trained(cls, texts: Iterable[str], vocabulary_size: int) -> Self:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size, special_tokens=[_SEPARATOR], show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `to_json` gave.

        Raises:
            ValueError: if the file holds something else.
            OSError: if there is no such file.
        """
        content = Path(path).read_text(encoding="utf-8")
        try:
            return cls(Tokenizer.from_str(content))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(
                f"`path` must be a vocabulary that was saved. Received: {path} ({error}). Remove "
                "it to train the vocabulary again"
            ) from error

    def to_json(self) -> bytes:
        """What `load` reads back, also with `tokenizers.Tokenizer.from_file`."""
        return f"{self._tokenizer.to_str(pretty=True)}\n".encode()

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @functools.cached_property
    def tokens(self) -> list[str]:
        """The text of each token. `BEGIN` is a form feed."""
        return [self._tokenizer.decode([i], skip_special_tokens=False) for i in range(len(self))]

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """The ids of a text's tokens, (T,) int32.

        Args:
            text: what to encode.
            name: of the argument, for errors.

        Raises:
            ValueError: if the text is empty, or has a character that the vocabulary has not seen.
        """
        if not text:
            raise ValueError(f"`{name}` must not be empty. Received: ''. Give at least one word")
        unknown = {character for character in set(text) if not self._knows(character)}
        if unknown:
            index = next(i for i, character in enumerate(text) if character in unknown)
            word = next((word for word in text.split() if unknown & set(word)), text[index])
            raise ValueError(
                f"`{name}` must be made of characters that the vocabulary's training text has. "
                f"Received: {text[index]!r} at index {index}, in {word!r}. Write it with other "
                "characters"
            )
        return np.asarray(self._tokenizer.encode(text).ids, np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """The text of token ids, (T,) integers, without `BEGIN`.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        check_ids(ids, len(self))
        return str(self._tokenizer.decode(ids.tolist()))

    def _knows(self, character: str) -> bool:
        """Whether each of the character's bytes is a token. The library would drop the others."""
        if character == _SEPARATOR:
            return False
        ((symbols, _),) = self._tokenizer.pre_tokenizer.pre_tokenize_str(character)
        return all(self._tokenizer.token_to_id(symbol) is not None for symbol in symbols)


def read_file(path: Path) -> str:
    """The text of a user's own file.

    Raises:
        ValueError: if there is no such file, it is empty, or it is not UTF-8; the text says where.
    """
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(f"`text` must be a file that is not empty. Received: text={path}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`text` must be UTF-8. Received: text={path} with the byte "
            f"{error.object[error.start]:#04x} at offset {error.start}. Convert it with `iconv`"
        ) from error


def check_ids(ids: np.ndarray, vocabulary_size: int) -> None:
    """Raises ValueError unless the ids are integers in [0, vocabulary_size).

    Backends differ here: one raises an error, one gives NaN, one takes another token.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"`ids` must be integers. Received: dtype={ids.dtype}")
    wrong = np.argwhere((ids < 0) | (ids >= vocabulary_size))
    if len(wrong):
        index = tuple(wrong[0].tolist())
        raise ValueError(
            f"`ids` must lie in [0, vocabulary_size). Received: id {ids[index]} at index "
            f"{index[0] if len(index) == 1 else index}, vocabulary_size={vocabulary_size}. Encode "
            "the text with the model's own vocabulary"
        )


def encode_to_disk(
    texts: Iterable[str], vocabulary: Vocabulary, folder: Path | None = None
) -> np.ndarray:
    """The token ids of texts, each behind a `BEGIN`, (N,) uint16, in a file that has no name.

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
            ids = np.concatenate([[vocabulary.BEGIN], vocabulary.encode(text)])
            file.write(ids.astype(np.uint16).tobytes())
        if not file.tell():
            raise ValueError("`texts` must hold a text at least. Received: none")
        file.flush()
        return np.memmap(file, np.uint16, "r")


def encode_split(
    vocabulary: Vocabulary, folder: Path | None = None, how: str = "works"
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
    ids = encode_to_disk(vocabulary_works(how), vocabulary, folder)
    border = int(0.9 * len(ids))
    return {"train": ids[:border], "validation": ids[border:], "test": ids[border:]}


def vocabulary_works(how: str = "works") -> Iterator[str]:
    """The texts that a vocabulary is made from, with a split as in `encode_split`.

    With "first_90" it is all of them, so that each character of the rest is known.
    """
    _check_split(how)
    return split("train") if how == "works" else (text for _, text in works())


def make_vocabulary(saved: Path, size: int | None, how: str = "works") -> Vocabulary:
    """What a run has saved; else of so many subwords, or of characters, made from the texts.

    Args:
        saved: a file, which need not be there.
        size: of the vocabulary; None takes characters.
        how: a split as in `encode_split`.
    """
    if saved.exists():
        return Vocabulary.load(saved)
    texts = vocabulary_works(how)
    return Vocabulary.characters(texts) if size is None else Vocabulary.train(texts, size)


def _check_split(how: str) -> None:
    if how not in ("works", "first_90"):
        raise ValueError(f"`split` must be works or first_90. Received: split={how}")


def split_works(ids: np.ndarray) -> list[np.ndarray]:
    """The works in the ids of `encode_to_disk`, each (T,) from its `BEGIN` on, still on disk."""
    begins = np.flatnonzero(ids == Vocabulary.BEGIN)
    return [ids[begin:end] for begin, end in zip(begins, [*begins[1:], len(ids)])]


def _check_window(ids: np.ndarray, length: int) -> None:
    if not 1 <= length < len(ids):
        raise ValueError(
            f"`length` must be at least 1 and below {len(ids)}, the tokens of the text. "
            f"Received: length={length}"
        )


class Windows:
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


class RandomWindows:
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
