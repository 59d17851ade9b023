import hashlib
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.datasets import embedded, shakespeare
from zoo.datasets.shakespeare import encode_split, split, tokenizer_documents
from zoo.datasets.tokenizer import Tokenizer

pytestmark = pytest.mark.once


def test_documents_are_the_whole_file() -> None:
    documents = list(shakespeare.documents())
    assert len(documents) == 42
    assert documents[6][0] == "HAMLET, PRINCE OF DENMARK"
    assert "\nTo be, or not to be,--that is the question:--\n" in documents[6][1]
    joined = "\f".join(content for _, content in documents)
    assert len(joined) == 5_057_239
    assert all(content.startswith(f"{title}\n") for title, content in documents)
    digest = hashlib.sha256(joined.encode()).hexdigest()
    assert digest == "4ea31573b537e8d007c358af8371396942a00278301f3182cdf0e132f1a95737"


def test_split_holds_out_whole_works() -> None:
    splits = {part: list(split(part)) for part in ("train", "validation", "test")}
    assert [len(texts) for texts in splits.values()] == [38, 2, 2]
    all_texts = sorted(itertools.chain.from_iterable(splits.values()))
    assert all_texts == sorted(content for _, content in shakespeare.documents())
    titles = [content.partition("\n")[0] for content in splits["test"]]
    assert titles == ["JULIUS CAESAR", "MEASURE FOR MEASURE"]


def test_split_rejects_unknown_part() -> None:
    with pytest.raises(ValueError, match=r"train, validation, test\. Received: part='dev'"):
        next(split("dev"))


def test_documents_detect_damaged_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "shakespeare.txt.xz"
    (tmp_path / "data").mkdir()
    shutil.copy(Path(zoo.__file__).parent / "data" / name, tmp_path / "data" / name)
    content = bytearray((tmp_path / "data" / name).read_bytes())
    content[700_000] ^= 1
    (tmp_path / "data" / name).write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda _: tmp_path)
    with pytest.raises(OSError, match=r"shakespeare\.txt\.xz must have the SHA-256 089ed647"):
        next(shakespeare.documents())


def test_encode_split_first_90_holds_out_last_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "zoo.datasets.shakespeare.documents", lambda: iter([("a", "aaaa"), ("b", "bbbbbbbbbbbbbb")])
    )
    tokenizer = Tokenizer.characters(tokenizer_documents("first_90"))
    ids = encode_split(tokenizer, scheme="first_90")
    assert len(ids["train"]) == 18
    assert tokenizer.decode(ids["test"]) == "bb"
    np.testing.assert_array_equal(ids["validation"], ids["test"])


def test_encode_split_rejects_unknown_scheme() -> None:
    problem = r"`scheme` must be one of works, first_90\. Received: scheme='no"
    with pytest.raises(ValueError, match=problem):
        encode_split(Tokenizer.characters(["a"]), scheme="no")
