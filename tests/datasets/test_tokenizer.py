from pathlib import Path

import numpy as np
import pytest

from zoo.datasets.shakespeare import split
from zoo.datasets.tokenizer import Tokenizer, check_ids, read_file

pytestmark = pytest.mark.once

SAMPLE = "the cat sat on the mat, the cat sat; and then the hat.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(split("train"), 600)


def test_decode_inverts_encode_on_held_out_works(tokenizer: Tokenizer) -> None:
    """The held-out works have no character that the training split lacks."""
    assert len(tokenizer) == 600
    for part in ("validation", "test"):
        for content in split(part):
            ids = tokenizer.encode(content)
            assert ids.dtype == np.int32
            assert tokenizer.decode(ids) == content
            assert (ids != tokenizer.BOS).all()


def test_encode_separates_words_punctuation_and_line_ends(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.tokens[i] for i in tokenizer.encode("My lord, I will not.\nEnter")]
    assert tokens == ["My", " lord", ",", " I", " will", " not", ".", "\n", "Enter"]


def test_train_is_deterministic() -> None:
    """The library trains in threads, and its hash functions differ between trainings."""
    first, second = (Tokenizer.train(split("validation"), 3000).to_json() for _ in range(2))
    assert first == second


def test_load_restores_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_bytes(tokenizer.to_json())
    loaded = Tokenizer.load(tmp_path / "vocabulary.json")
    assert loaded.tokens == tokenizer.tokens
    assert loaded.encode(SAMPLE).tolist() == tokenizer.encode(SAMPLE).tolist()


def test_encode_handles_characters_beyond_ascii() -> None:
    tokenizer = Tokenizer.train(["cœur déçu, cœur brisé"] * 3, 60)
    assert tokenizer.decode(tokenizer.encode("cœur brisé, déçu")) == "cœur brisé, déçu"
    with pytest.raises(ValueError, match="Received: 'à' at index 0, in 'à'"):
        tokenizer.encode("à cœur")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"`prompt` must not be empty\. Received: ''\. Give at least one word"),
        ("a café noir", r"`prompt` must be made of .* 'é' at index 5, in 'café'\. Replace this"),
        ("50 %", r"'%' at index 3, in '%'"),
        ("end\fbegin", r"'\\x0c' at index 3"),
    ],
)
def test_encode_rejects_unknown_characters(
    tokenizer: Tokenizer, content: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        tokenizer.encode(content, "prompt")


def test_train_rejects_invalid_vocabulary_size() -> None:
    with pytest.raises(ValueError, match=r"at most 65536\. Received: vocabulary_size=70000"):
        Tokenizer.train([SAMPLE], 70_000)
    with pytest.raises(ValueError, match=r"Received: vocabulary_size=5, texts with 15\b"):
        Tokenizer.train([SAMPLE], 5)
    with pytest.raises(ValueError, match="texts must not be empty"):
        Tokenizer.train([], 100)


def test_load_rejects_other_files(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text("{}")
    text = r"vocabulary\.json: `version` must be given\. .* Remove the file to train"
    with pytest.raises(ValueError, match=text):
        Tokenizer.load(tmp_path / "vocabulary.json")


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([3, 9, 10], r"id 10 at index 2, vocabulary_size=10\. Encode the text with"),
        ([[1, 2], [3, -1]], r"id -1 at index \(1, 1\), vocabulary_size=10"),
        ([1.0], "must be integers. Received: dtype=float64"),
    ],
)
def test_check_ids_rejects_invalid_ids(ids: list, problem: str) -> None:
    check_ids(np.array([[0, 9]]), 10)
    with pytest.raises(ValueError, match=problem):
        check_ids(np.array(ids), 10)


def test_decode_rejects_ids_outside_vocabulary(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="id 600 at index 1, vocabulary_size=600"):
        tokenizer.decode(np.array([5, 600]))


def test_characters_makes_each_character_a_token() -> None:
    tokenizer = Tokenizer.characters(["abba c", "b\n"])
    assert len(tokenizer) == 6
    assert sorted(tokenizer.tokens) == ["\n", "\x0c", " ", "a", "b", "c"]
    assert tokenizer.decode(tokenizer.encode("cab\nab")) == "cab\nab"
    assert len(tokenizer.encode("cab ab")) == 6
    with pytest.raises(ValueError, match="Received: 'd' at index 0"):
        tokenizer.encode("d")


def test_read_file_rejects_large_files(tmp_path: Path) -> None:
    with open(tmp_path / "text.txt", "wb") as file:
        file.truncate(1 << 29)  # a hole, which takes no room on the disk
    with pytest.raises(ValueError, match=r"at most 268,435,456 bytes.* with 536,870,912 bytes"):
        read_file(tmp_path / "text.txt")
