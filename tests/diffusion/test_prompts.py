"""Words, ids, and what may be asked for."""

import numpy as np
import pytest

from zoo.diffusion.prompts import PADDING, START, WordTokenizer, check_prompts, prompts_by_class


@pytest.fixture
def vocabulary() -> WordTokenizer:
    return WordTokenizer(["a seven", "the digit 7", "draw a 3"])


def test_prompts_become_ids(vocabulary: WordTokenizer) -> None:
    assert vocabulary.words == ["3", "7", "a", "digit", "draw", "seven", "the"]
    assert len(vocabulary) == 9
    assert vocabulary.max_length == 4
    np.testing.assert_array_equal(
        vocabulary.encode(["A Seven!", "", "the digit: 7"]),
        [[START, 4, 7, PADDING], [START, PADDING, PADDING, PADDING], [START, 8, 5, 3]],
    )


def test_it_is_written_and_read(vocabulary: WordTokenizer) -> None:
    again = WordTokenizer.from_json(vocabulary.to_json())
    assert (again.words, again.max_length) == (vocabulary.words, vocabulary.max_length)
    prompts = ["draw a 7", "seven"]
    np.testing.assert_array_equal(again.encode(prompts), vocabulary.encode(prompts))


def test_every_digit_is_asked_for_in_words_and_in_figures() -> None:
    found = prompts_by_class()
    assert len(found) == 10
    assert len({len(prompts) for prompts in found}) == 1
    assert "a handwritten seven" in found[7]
    assert "the digit 3" in found[3]
    assert len({prompt for prompts in found for prompt in prompts}) == 10 * len(found[0])


def test_unknown_words_are_named_and_the_known_ones_listed(vocabulary: WordTokenizer) -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown words: purple, cat. The vocabulary is 3, 7, a, digit, draw, seven, the. "
        "Received: 'a purple cat'",
    ):
        vocabulary.encode(["a purple cat"])


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ([], r"`prompts` must be a list of one text at least. Received: \[\]"),
        ("a seven", "`prompts` must be a list of one text at least. Received: 'a seven'"),
        (["a seven", " "], "must have a word at least.* Received: ' ' at index 1"),
    ],
)
def test_nothing_cannot_be_asked_for(prompts: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_prompts(prompts)


def test_a_prompt_may_be_too_long(vocabulary: WordTokenizer) -> None:
    with pytest.raises(ValueError, match=r"at most 3 words\. Received: 4 in 'a a a a'"):
        vocabulary.encode(["a a a a"])
