"""Byte-pair tokenizer: text to token ids and back.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016;
on bytes as in Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SEPARATOR = "\f"


class Tokenizer:
    """A byte-pair vocabulary: what text is made of, and its way to token ids and back.

    A token is a word, with the space before it, or a part of one; or punctuation; or white space.
    Token `BOS` stands before each work and is in no text.

    Args:
        tokenizer: a trained one of the `tokenizers` library; see `train` and `load`.
    """

    BOS = 0

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
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size, special_tokens=[SEPARATOR], show_progress=False
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
            return cls(tokenizers.Tokenizer.from_str(content))
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
        """The text of each token. `BOS` is a form feed."""
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
        """The text of token ids, (T,) integers, without `BOS`.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        check_ids(ids, len(self))
        return str(self._tokenizer.decode(ids.tolist()))

    def _knows(self, character: str) -> bool:
        """Whether each of the character's bytes is a token. The library would drop the others."""
        if character == SEPARATOR:
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
