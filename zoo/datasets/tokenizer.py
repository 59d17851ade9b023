"""Byte-pair tokenizer: encodes text as token ids and decodes token ids.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016;
applied to bytes as in Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from zoo.validation import TEXT, FilePath, Texts, TokenArray, Vocabulary, validated, whole

SEPARATOR = "\f"


class Tokenizer:
    """Byte-pair tokenizer.

    A token is a word with the space before it, a part of a word, punctuation or white space. The
    token `BOS` (beginning of sequence) precedes each document and never occurs inside a text.

    Args:
        tokenizer: Trained tokenizer of the `tokenizers` library. `train`, `characters` and `load`
            create one.

    Attributes:
        BOS: Id of the beginning-of-sequence token, 0.
    """

    BOS = 0

    @validated
    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    @classmethod
    @validated
    def train(cls, texts: Texts, vocabulary_size: Annotated[int, whole(2, 2**16)]) -> Self:
        """Trains a tokenizer by byte-pair encoding.

        Training starts from bytes and repeatedly merges the most frequent pair of tokens.

        Args:
            texts: Training texts, read one at a time.
            vocabulary_size: Number of tokens, from 2 to 65,536 (an id takes two bytes on disk). A
                short text may give fewer.

        Raises:
            ValueError: If `vocabulary_size` is out of range or too small for the bytes of the
                texts, or the texts are empty.
        """
        tokenizer = cls._train(texts, vocabulary_size)
        num_tokens = len(tokenizer)
        if num_tokens > vocabulary_size or num_tokens < 2:
            raise ValueError(
                "`vocabulary_size` must be above the number of different bytes in the texts, "
                "and the texts must not be empty. Received: "
                f"vocabulary_size={vocabulary_size}, texts with {num_tokens - 1}"
            )
        return tokenizer

    @classmethod
    @validated
    def characters(cls, texts: Texts) -> Self:
        """Creates a tokenizer without merges: each byte is a token, which is an ASCII character.

        Args:
            texts: Texts whose bytes are the vocabulary, read one at a time.
        """
        return cls._train(texts, 1)

    @classmethod
    def _train(cls, texts: Iterable[str], vocabulary_size: int) -> Self:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size, special_tokens=[SEPARATOR], show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    @validated
    def load(cls, path: FilePath) -> Self:
        """Loads a tokenizer from a file with the content of `to_json`.

        Args:
            path: Path of the file.

        Raises:
            ValueError: If the file does not hold a tokenizer.
            OSError: If the file cannot be read.
        """
        content = Path(path).read_text(encoding="utf-8")
        try:
            return cls(tokenizers.Tokenizer.from_str(content))
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(
                f"`path` must be the file of a saved tokenizer. Received: {path} ({error}). Remove "
                "the file to train the tokenizer again"
            ) from error

    def to_json(self) -> bytes:
        """JSON content of a file for `load` or `tokenizers.Tokenizer.from_file`."""
        return f"{self._tokenizer.to_str(pretty=True)}\n".encode()

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @functools.cached_property
    def tokens(self) -> list[str]:
        """Text of each token. The text of `BOS` is a form feed."""
        return [self._tokenizer.decode([i], skip_special_tokens=False) for i in range(len(self))]

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Encodes a text as token ids, (T,) int32, without `BOS`.

        Args:
            text: Text to encode.
            name: Name of the argument in error messages.

        Raises:
            ValueError: If the text is empty or has a character that the training text lacks.
        """
        TEXT.require(name, text)
        if not text:
            raise ValueError(f"`{name}` must not be empty. Received: ''. Give at least one word")
        unknown = {character for character in set(text) if not self._can_encode(character)}
        if unknown:
            index = next(i for i, character in enumerate(text) if character in unknown)
            word = next((word for word in text.split() if unknown & set(word)), text[index])
            raise ValueError(
                f"`{name}` must be made of characters that the vocabulary's training text has. "
                f"Received: {text[index]!r} at index {index}, in {word!r}. Replace this character"
            )
        return np.asarray(self._tokenizer.encode(text).ids, np.int32)

    @validated
    def decode(self, ids: TokenArray) -> str:
        """Decodes token ids, (T,) integers, to a text without `BOS`.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        check_ids(ids, len(self))
        return str(self._tokenizer.decode(ids.tolist()))

    def _can_encode(self, character: str) -> bool:
        """Whether each byte of the character is a token. The library drops bytes that are not."""
        if character == SEPARATOR:
            return False
        ((symbols, _),) = self._tokenizer.pre_tokenizer.pre_tokenize_str(character)
        return all(self._tokenizer.token_to_id(symbol) is not None for symbol in symbols)


@validated
def read_file(path: FilePath) -> str:
    """Reads a UTF-8 text file that a user gives as the argument `text`.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If the file is missing, empty or not UTF-8; the text names the offset.
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


@validated
def check_ids(ids: np.ndarray, vocabulary_size: Vocabulary) -> None:
    """Raises ValueError unless `ids` are integers in [0, vocabulary_size).

    Without the check, an invalid id raises an error, gives NaN or selects another token, depending
    on the backend.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"`ids` must be integers. Received: dtype={ids.dtype}")
    invalid = np.argwhere((ids < 0) | (ids >= vocabulary_size))
    if len(invalid):
        index = tuple(invalid[0].tolist())
        raise ValueError(
            f"`ids` must lie in [0, vocabulary_size). Received: id {ids[index]} at index "
            f"{index[0] if len(index) == 1 else index}, vocabulary_size={vocabulary_size}. Encode "
            "the text with the tokenizer of the model"
        )
