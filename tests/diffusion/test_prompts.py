"""Tests of the prompt templates and the word tokenizer."""

import numpy as np
import pytest

from zoo.diffusion.prompts import BOS, PADDING, WordTokenizer, check_prompts, prompts_by_class

pytestmark = pytest.mark.once


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer(["a seven", "the digit 7", "draw a 3"])


def test_word_tokenizer_encodes_prompts(tokenizer: WordTokenizer) -> None:
    assert tokenizer.words == ["3", "7", "a", "digit", "draw", "seven", "the"]
    assert len(tokenizer) == 9
    assert tokenizer.max_length == 4
    np.testing.assert_array_equal(
        tokenizer.encode(["A Seven!", "", "the digit: 7"]),
        [[BOS, 4, 7, PADDING], [BOS, PADDING, PADDING, PADDING], [BOS, 8, 5, 3]],
    )


def test_word_tokenizer_json_round_trip(tokenizer: WordTokenizer) -> None:
    restored = WordTokenizer.from_json(tokenizer.to_json())
    assert (restored.words, restored.max_length) == (tokenizer.words, tokenizer.max_length)
    prompts = ["draw a 7", "seven"]
    np.testing.assert_array_equal(restored.encode(prompts), tokenizer.encode(prompts))


def test_prompts_by_class_has_words_and_numerals_of_each_digit() -> None:
    classes = prompts_by_class()
    assert len(classes) == 10
    assert len({len(prompts) for prompts in classes}) == 1
    assert "a handwritten seven" in classes[7]
    assert "the digit 3" in classes[3]
    assert len({prompt for prompts in classes for prompt in prompts}) == 10 * len(classes[0])


def test_word_tokenizer_rejects_unknown_words(tokenizer: WordTokenizer) -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown words: purple, cat. The vocabulary is 3, 7, a, digit, draw, seven, the. "
        "Received: 'a purple cat'",
    ):
        tokenizer.encode(["a purple cat"])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"`prompts` must be a list of at least one text. Received: \[\]"),
        ("a seven", "`prompts` must be a list of at least one text. Received: 'a seven'"),
        (["a seven", " "], "must have at least one word.* Received: ' ' at index 1"),
    ],
)
def test_check_prompts_rejects_empty_prompts(prompts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts)


def test_word_tokenizer_rejects_long_prompts(tokenizer: WordTokenizer) -> None:
    with pytest.raises(ValueError, match=r"at most 3 words\. Received: 4 in 'a a a a'"):
        tokenizer.encode(["a a a a"])
