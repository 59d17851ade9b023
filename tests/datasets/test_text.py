import hashlib
import itertools
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.datasets import embedded, shakespeare
from zoo.datasets.shakespeare import encode_split, split, tokenizer_documents
from zoo.datasets.token_windows import (
    RandomTokenWindows,
    TokenWindows,
    encode_to_disk,
    split_documents,
)
from zoo.datasets.tokenizer import Tokenizer, check_ids

PARTS = ("train", "validation", "test")
SAMPLE = "the cat sat on the mat, the cat sat; and then the hat.\n"


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return Tokenizer.train(split("train"), 600)


def test_the_works_are_the_whole_file() -> None:
    found = list(shakespeare.documents())
    assert len(found) == 42
    assert found[6][0] == "HAMLET, PRINCE OF DENMARK"
    assert "\nTo be, or not to be,--that is the question:--\n" in found[6][1]
    joined = "\f".join(content for _, content in found)
    assert len(joined) == 5_057_239
    assert all(content.startswith(f"{title}\n") for title, content in found)
    digest = hashlib.sha256(joined.encode()).hexdigest()
    assert digest == "4ea31573b537e8d007c358af8371396942a00278301f3182cdf0e132f1a95737"


def test_whole_works_are_held_out() -> None:
    parts = {part: list(split(part)) for part in PARTS}
    assert [len(works) for works in parts.values()] == [38, 2, 2]
    everything = sorted(itertools.chain.from_iterable(parts.values()))
    assert everything == sorted(content for _, content in shakespeare.documents())
    titles = [content.partition("\n")[0] for content in parts["test"]]
    assert titles == ["JULIUS CAESAR", "MEASURE FOR MEASURE"]
    with pytest.raises(ValueError, match=r"train, validation or test\. Received: part=dev"):
        next(split("dev"))


def test_damage_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "shakespeare.txt.xz"
    (tmp_path / "data").mkdir()
    shutil.copy(Path(zoo.__file__).parent / "data" / name, tmp_path / "data" / name)
    content = bytearray((tmp_path / "data" / name).read_bytes())
    content[700_000] ^= 1
    (tmp_path / "data" / name).write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda _: tmp_path)
    with pytest.raises(OSError, match=r"shakespeare\.txt\.xz must have the SHA-256 089ed647"):
        next(shakespeare.documents())


def test_held_out_works_come_back_whole(vocabulary: Tokenizer) -> None:
    """They have no character that the vocabulary has not seen."""
    assert len(vocabulary) == 600
    for part in ("validation", "test"):
        for content in split(part):
            ids = vocabulary.encode(content)
            assert ids.dtype == np.int32
            assert vocabulary.decode(ids) == content
            assert (ids != vocabulary.BOS).all()


def test_tokens_are_words_with_their_space_punctuation_and_line_ends(
    vocabulary: Tokenizer,
) -> None:
    tokens = [vocabulary.tokens[i] for i in vocabulary.encode("My lord, I will not.\nEnter")]
    assert tokens == ["My", " lord", ",", " I", " will", " not", ".", "\n", "Enter"]


def test_the_vocabulary_is_the_same_each_time(vocabulary: Tokenizer, tmp_path: Path) -> None:
    """The library hashes otherwise each time, and uses threads."""
    first, second = (Tokenizer.train(split("validation"), 3000).to_json() for _ in range(2))
    assert first == second
    (tmp_path / "vocabulary.json").write_bytes(vocabulary.to_json())
    again = Tokenizer.load(tmp_path / "vocabulary.json")
    assert again.tokens == vocabulary.tokens
    assert again.encode(SAMPLE).tolist() == vocabulary.encode(SAMPLE).tolist()


def test_letters_beyond_ascii() -> None:
    words = Tokenizer.train(["cœur déçu, cœur brisé"] * 3, 60)
    assert words.decode(words.encode("cœur brisé, déçu")) == "cœur brisé, déçu"
    with pytest.raises(ValueError, match="Received: 'à' at index 0, in 'à'"):
        words.encode("à cœur")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"`prompt` must not be empty\. Received: ''\. Give at least one word"),
        ("a café noir", r"`prompt` must be made of .* 'é' at index 5, in 'café'\. Write it"),
        ("50 %", r"'%' at index 3, in '%'"),
        ("end\fbegin", r"'\\x0c' at index 3"),
    ],
)
def test_text_that_cannot_be_encoded(vocabulary: Tokenizer, content: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        vocabulary.encode(content, "prompt")


def test_vocabularies_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 65536\. Received: vocabulary_size=70000"):
        Tokenizer.train([SAMPLE], 70_000)
    with pytest.raises(ValueError, match=r"Received: vocabulary_size=5, texts with 15\b"):
        Tokenizer.train([SAMPLE], 5)
    with pytest.raises(ValueError, match="texts must not be empty"):
        Tokenizer.train([], 100)
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"vocabulary that was saved\. Received: .*\.json \("):
        Tokenizer.load(tmp_path / "vocabulary.json")


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([3, 9, 10], r"id 10 at index 2, vocabulary_size=10\. Encode the text with"),
        ([[1, 2], [3, -1]], r"id -1 at index \(1, 1\), vocabulary_size=10"),
        ([1.0], "must be integers. Received: dtype=float64"),
    ],
)
def test_ids_outside_the_vocabulary(ids: list, problem: str) -> None:
    check_ids(np.array([[0, 9]]), 10)
    with pytest.raises(ValueError, match=problem):
        check_ids(np.array(ids), 10)


def test_an_id_that_cannot_be_decoded(vocabulary: Tokenizer) -> None:
    with pytest.raises(ValueError, match="id 600 at index 1, vocabulary_size=600"):
        vocabulary.decode(np.array([5, 600]))


def test_works_on_the_disk(vocabulary: Tokenizer, tmp_path: Path) -> None:
    ids = encode_to_disk([SAMPLE, "Enter.\n"], vocabulary, tmp_path)
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.uint16
    assert not list(tmp_path.iterdir())
    first, second = split_documents(ids)
    assert first[0] == second[0] == vocabulary.BOS
    assert vocabulary.decode(first[1:]) == SAMPLE
    assert vocabulary.decode(second) == "Enter.\n"
    with pytest.raises(ValueError, match="must hold a text at least"):
        encode_to_disk([], vocabulary)


def test_windows() -> None:
    ids = np.arange(23, dtype=np.uint16)
    windows = TokenWindows(ids, 5)
    assert len(windows) == 4
    (batch,) = windows(np.array([3, 0]))
    assert batch.dtype == np.int32
    assert batch.tolist() == [[15, 16, 17, 18, 19, 20], [0, 1, 2, 3, 4, 5]]
    assert len(TokenWindows(ids, 22)) == 1
    assert len(TokenWindows(ids, 5, train_examples=2)) == 2


@pytest.mark.parametrize(
    ("length", "examples", "problem"),
    [
        (0, None, "at least 1 and below 23, the tokens of the text. Received: length=0"),
        (23, None, "Received: length=23"),
        (5, 5, "at most 4, the windows of 5 tokens in the text. Received: train_examples=5"),
        (5, 0, "Received: train_examples=0"),
    ],
)
def test_windows_that_cannot_be(length: int, examples: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TokenWindows(np.arange(23), length, examples)


def test_windows_from_places_drawn_at_random() -> None:
    ids = np.arange(1000)
    windows = RandomTokenWindows(ids, 4, count=5000, seed=1)
    (found,) = windows(np.arange(5000))
    assert found.shape == (5000, 5)
    assert (np.diff(found, axis=1) == 1).all()
    assert found.min() == 0
    assert found.max() == 999
    counts, _ = np.histogram(found[:, 0], 10, (0, 996))
    assert counts.min() > 400  # of 500
    again, other = (
        RandomTokenWindows(ids, 4, 5000, seed=1),
        RandomTokenWindows(ids, 4, 5000, seed=2),
    )
    np.testing.assert_array_equal(again(np.arange(9))[0], found[:9])
    assert (other(np.arange(9))[0] != found[:9]).any()
    with pytest.raises(ValueError, match=r"`length` must be at least 1 and below 4.*length=4"):
        RandomTokenWindows(ids[:4], 4, 2)


def test_characters() -> None:
    vocabulary = Tokenizer.characters(["abba c", "b\n"])
    assert len(vocabulary) == 6
    assert sorted(vocabulary.tokens) == ["\n", "\x0c", " ", "a", "b", "c"]
    assert vocabulary.decode(vocabulary.encode("cab\nab")) == "cab\nab"
    assert len(vocabulary.encode("cab ab")) == 6
    with pytest.raises(ValueError, match="Received: 'd' at index 0"):
        vocabulary.encode("d")


def test_the_last_tenth_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "zoo.datasets.shakespeare.documents", lambda: iter([("a", "aaaa"), ("b", "bbbbbbbbbbbbbb")])
    )
    vocabulary = Tokenizer.characters(tokenizer_documents("first_90"))
    parts = encode_split(vocabulary, how="first_90")
    assert len(parts["train"]) == 18
    assert vocabulary.decode(parts["test"]) == "bb"
    np.testing.assert_array_equal(parts["validation"], parts["test"])
    with pytest.raises(ValueError, match=r"`split` must be works or first_90. Received: split=no"):
        encode_split(vocabulary, how="no")


def test_memory_does_not_grow_with_the_corpus(vocabulary: Tokenizer, tmp_path: Path) -> None:
    work = next(split("validation"))[:20_000]

    def peak(works: int) -> int:
        tracemalloc.start()
        ids = encode_to_disk((work for _ in range(works)), vocabulary, tmp_path)
        windows = TokenWindows(ids, 64)
        for start in range(0, len(windows) - 32, 32):
            windows(np.arange(start, start + 32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(40) < 1.1 * peak(4)
