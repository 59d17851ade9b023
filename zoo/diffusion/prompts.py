"""Prompts: what may be asked for, word by word.

A prompt is a row of ids: 1 first, then a word each, then 0 up to the longest. An empty prompt is
the 1 alone, and asks for nothing in particular.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

PADDING, START = 0, 1
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
    """For each of the ten digits the prompts that ask for it, in words and in figures."""
    return [
        [phrasing.format(name) for name in (word, str(digit)) for phrasing in PROMPT_TEMPLATES]
        for digit, word in enumerate(DIGITS)
    ]


class WordTokenizer:
    """The words that prompts may have, and their ids.

    Args:
        prompts: whose words they are; the longest says how many a prompt may have.
    """

    def __init__(self, prompts: Iterable[str]):
        split = [_words(prompt) for prompt in prompts]
        self.words = sorted({word for words in split for word in words})
        self.max_length = 1 + max(map(len, split))
        self._ids = {word: number for number, word in enumerate(self.words, START + 1)}

    def __len__(self) -> int:
        """How many ids there are."""
        return START + 1 + len(self.words)

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """(N, max_length) int32.

        Raises:
            ValueError: for words that are not known, or more than there is room for; the text names
                them and lists those that are.
        """
        rows = np.full((len(prompts), self.max_length), PADDING, np.int32)
        for row, prompt in zip(rows, prompts):
            words = _words(prompt)
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
            row[: len(words) + 1] = [START, *map(self._ids.__getitem__, words)]
        return rows

    def to_json(self) -> bytes:
        content = {"words": self.words, "max_length": self.max_length}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "WordTokenizer":
        about = json.loads(content)
        vocabulary = cls([" ".join(about["words"])])
        vocabulary.max_length = about["max_length"]
        return vocabulary


def empty_prompts(count: int, length: int) -> np.ndarray:
    """(count, length) int32: empty prompts."""
    rows = np.full((count, length), PADDING, np.int32)
    rows[:, 0] = START
    return rows


def check_prompts(prompts: Any) -> None:
    """Raises ValueError for no prompts, or one without a word."""
    listed = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    if not listed or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"`prompts` must be a list of one text at least. Received: {prompts!r}")
    for number, prompt in enumerate(prompts):
        if not _words(prompt):
            raise ValueError(
                "`prompt` must have a word at least, such as 'a handwritten seven'. Received: "
                f"{prompt!r} at index {number}"
            )


def _words(prompt: str) -> list[str]:
    return _WORD.findall(prompt.lower())
