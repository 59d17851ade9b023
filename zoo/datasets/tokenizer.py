"""Byte-pair tokenizer: encodes text as token ids and decodes token ids.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016;
applied to bytes as in Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import tokenizers
from pydantic import Field, StringConstraints
from tokenizers import decoders, models, pre_tokenizers, trainers

from zoo.files.documents import Document, parse, read_bytes
from zoo.validation import TEXT, FilePath, Texts, TokenArray, Vocabulary, validated, whole

SEPARATOR = "\f"
VOCABULARY_BYTES = 1 << 24  # largest size of a saved tokenizer

_TEXT_BYTES = 1 << 28
_MAX_TOKENS = 1 << 16  # an id takes two bytes on disk
_REMEDY = "Remove the file to train the tokenizer again"


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
        tokenizer = _byte_level(models.BPE())
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
            ValueError: If the file does not hold such a tokenizer. The text names the key and the
                rule.
            OSError: If the file cannot be read.
        """
        return cls.from_json(read_bytes(Path(path), _REMEDY, VOCABULARY_BYTES), str(path))

    @classmethod
    def from_json(cls, content: bytes, source: str = "content") -> Self:
        """Restores a tokenizer from the output of `to_json`.

        Only tokens and merges are taken from the content; all else must be as this class sets it.

        Args:
            content: UTF-8 encoded JSON.
            source: Name of the content in error messages, such as the path of its file.

        Raises:
            ValueError: If the content is no such tokenizer. The text names the key and the rule.
        """
        document = parse(content, _TokenizerDocument, source, _REMEDY)
        vocabulary, merges = document.model.vocab, document.model.merges
        _check_vocabulary(vocabulary, merges, source)
        tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.add_special_tokens([SEPARATOR])
        return cls(tokenizer)

    def to_json(self) -> bytes:
        """JSON content of a file for `load` or `tokenizers.Tokenizer.from_file`."""
        return f"{self._tokenizer.to_str()}\n".encode()

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


_Token = Annotated[str, StringConstraints(min_length=1, max_length=1 << 12)]


class _ByteLevel(Document):
    type: Literal["ByteLevel"]
    add_prefix_space: bool
    trim_offsets: Literal[True]
    use_regex: Literal[True]


class _PreTokenizer(_ByteLevel):
    add_prefix_space: Literal[False]


class _AddedToken(Document):
    id: Literal[0]
    content: Literal["\f"]
    single_word: Literal[False]
    lstrip: Literal[False]
    rstrip: Literal[False]
    normalized: Literal[False]
    special: Literal[True]


class _BPE(Document):
    type: Literal["BPE"]
    dropout: None
    unk_token: None
    continuing_subword_prefix: None
    end_of_word_suffix: None
    fuse_unk: Literal[False]
    byte_fallback: Literal[False]
    ignore_merges: Literal[False]
    vocab: Annotated[
        dict[_Token, Annotated[int, Field(ge=0, lt=_MAX_TOKENS)]],
        Field(min_length=2, max_length=_MAX_TOKENS),
    ]
    merges: Annotated[list[tuple[_Token, _Token]], Field(max_length=_MAX_TOKENS)]


class _TokenizerDocument(Document):
    """Content of a tokenizer's file, in the format of the `tokenizers` library."""

    version: Literal["1.0"]
    truncation: None
    padding: None
    added_tokens: Annotated[list[_AddedToken], Field(min_length=1, max_length=1)]
    normalizer: None
    pre_tokenizer: _PreTokenizer
    post_processor: None
    decoder: _ByteLevel
    model: _BPE


def _byte_level(model: Any) -> Any:
    """Returns a tokenizer of the library that applies a model to bytes."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_vocabulary(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], source: str
) -> None:
    """Raises ValueError unless ids are in the order of training.

    That order is the separator, the bytes as sorted, and what the merges make, one after another.
    So exchanged ids are found.
    """
    made = dict.fromkeys(first + second for first, second in merges)
    symbols = sorted(token for token in vocabulary if token not in made and token != SEPARATOR)
    tokens = [SEPARATOR, *symbols, *made]
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    for index, (expected, token) in enumerate(itertools.zip_longest(tokens, by_id)):
        if expected != token or vocabulary[token] != index:
            raise ValueError(
                f"{source}: `model.vocab` must have the ids 0, 1, ... for the separator, the "
                f"sorted bytes and the results of `model.merges`. Received: {token!r} instead of "
                f"{expected!r} at id {index}. {_REMEDY}"
            )
    unknown = [part for pair in merges for part in pair if part not in vocabulary]
    if unknown:
        raise ValueError(
            f"{source}: `model.merges` must merge tokens of the vocabulary. Received: "
            f"{unknown[0]!r}. {_REMEDY}"
        )


@validated
def read_file(path: FilePath) -> str:
    """Reads a UTF-8 text file that a user gives as the argument `text`.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If the file is missing, empty, above 256 MiB or not UTF-8; the text names the
            offset.
    """
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(f"`text` must be a file that is not empty. Received: text={path}")
    if path.stat().st_size > _TEXT_BYTES:
        raise ValueError(
            f"`text` must have at most {_TEXT_BYTES:,} bytes, as it is held in memory. Received: "
            f"text={path} with {path.stat().st_size:,} bytes. Give a part of it"
        )
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
