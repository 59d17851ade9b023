"""Prompts: templates for the digits, and a word tokenizer.

A tokenized prompt is a row of ids: 1 (beginning of sequence, BOS), one id for each word, and 0
(padding) up to the length of the longest prompt. An empty prompt is the BOS token alone; the model
then samples unconditionally.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StringConstraints, field_validator

from zoo.files.documents import Document, parse
from zoo.models.text_encoder import PADDING
from zoo.validation import Size, TextList, Texts, validated

BOS = 1
_WORD = re.compile(r"[^\W_]+")

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT_TEMPLATES = (
    "{}",
    "a {}",
    "the digit {}",
    "the number {}",
    "a handwritten {}",
    "handwritten digit {}",
    "an image of a {}",
    "a picture of the digit {}",
    "draw a {}",
    "please write the number {}",
)


def prompts_by_class() -> list[list[str]]:
    """Prompts for each of the ten digits, as a word and as a numeral, from all templates."""
    return [
        [template.format(name) for name in (word, str(digit)) for template in PROMPT_TEMPLATES]
        for digit, word in enumerate(DIGITS)
    ]


class WordTokenizer:
    """Word-level tokenizer of prompts; case and punctuation are ignored.

    Args:
        prompts: Prompts whose words form the vocabulary. The longest sets `max_length`, the number
            of tokens in a row, BOS included.
    """

    @validated
    def __init__(self, prompts: Texts):
        tokenized = [_split_words(prompt) for prompt in prompts]
        if not tokenized:
            raise ValueError("`prompts` must hold at least one text. Received: none")
        self.words = sorted({word for words in tokenized for word in words})
        self.max_length = 1 + max(map(len, tokenized))
        self._ids = {word: number for number, word in enumerate(self.words, BOS + 1)}

    def __len__(self) -> int:
        """The vocabulary size: all words, padding and BOS."""
        return BOS + 1 + len(self.words)

    @validated
    def encode(self, prompts: TextList) -> np.ndarray:
        """Encodes prompts as token ids, (N, max_length) int32.

        Raises:
            ValueError: if a prompt has unknown words, or more than `max_length` - 1. The error
                lists the unknown words and the vocabulary.
        """
        rows = np.full((len(prompts), self.max_length), PADDING, np.int32)
        for row, prompt in zip(rows, prompts):
            words = _split_words(prompt)
            unknown = [word for word in words if word not in self._ids]
            if unknown:
                raise ValueError(
                    f"`prompt` has unknown words: {', '.join(unknown)}. The vocabulary is "
                    f"{', '.join(self.words)}. Received: {prompt!r}"
                )
            if len(words) >= self.max_length:
                raise ValueError(
                    f"`prompt` must have at most {self.max_length - 1} words. Received: "
                    f"{len(words)} in {prompt!r}"
                )
            row[: len(words) + 1] = [BOS, *map(self._ids.__getitem__, words)]
        return rows

    def to_json(self) -> bytes:
        """Serialises the tokenizer as UTF-8 encoded JSON."""
        content = {"words": self.words, "max_length": self.max_length}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, source: str = "content") -> "WordTokenizer":
        """Restores a tokenizer from the output of `to_json`.

        Args:
            content: UTF-8 encoded JSON.
            source: Name of the content in error messages, such as the path of its file.

        Raises:
            ValueError: if the content is no tokenizer. The text names the key and the rule.
        """
        document = parse(content, _PromptsDocument, source, "Train the model again")
        tokenizer = cls([" ".join(document.words)])
        tokenizer.max_length = document.max_length
        return tokenizer


class _PromptsDocument(Document):
    """Content of `prompts.json`. The ids of words follow their order."""

    words: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=100)]],
        Field(min_length=1, max_length=1 << 16),
    ]
    max_length: Annotated[int, Field(ge=2, le=1 << 12)]

    @field_validator("words")
    @classmethod
    def _check_words(cls, words: list[str]) -> list[str]:
        if words != sorted(set(words)) or any(_split_words(word) != [word] for word in words):
            raise ValueError("must be different single words in lower case, sorted")
        return words


@validated
def empty_prompts(count: Size, length: Size) -> np.ndarray:
    """Token ids of empty prompts, (count, length) int32."""
    rows = np.full((count, length), PADDING, np.int32)
    rows[:, 0] = BOS
    return rows


@validated
def check_prompts(prompts: Any) -> None:
    """Raises ValueError unless `prompts` is a non-empty list of texts with at least one word."""
    is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    if not is_list or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"`prompts` must be a list of at least one text. Received: {prompts!r}")
    for index, prompt in enumerate(prompts):
        if not _split_words(prompt):
            raise ValueError(
                "`prompt` must have at least one word, such as 'a handwritten seven'. Received: "
                f"{prompt!r} at index {index}"
            )


def _split_words(prompt: str) -> list[str]:
    return _WORD.findall(prompt.lower())


@validated
@dataclass(frozen=True)
class ClassPrompts:
    """Prompts of each class of a data set.

    Attributes:
        tokenizer: Tokenizer of the prompts.
        prompts: Prompts of each class, as many for each.
    """

    tokenizer: WordTokenizer
    prompts: Sequence[Sequence[str]]

    @property
    def ids(self) -> np.ndarray:
        """Token ids, (classes, prompts, L) int32."""
        return np.stack([self.tokenizer.encode(prompts) for prompts in self.prompts])

    def prompts_for(self, classes: np.ndarray) -> list[str]:
        """A prompt for each of these classes; the prompts of a class take turns."""
        uses = [0] * len(self.prompts)
        chosen = []
        for label in classes:
            chosen.append(self.prompts[label][uses[label] % len(self.prompts[label])])
            uses[label] += 1
        return chosen
