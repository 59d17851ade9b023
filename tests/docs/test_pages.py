"""The pages of `docs/`: their code runs, and their numbers and sections match results/."""

import contextlib
import functools
import json
import re
from pathlib import Path

import pytest

from benchmarks import book, pages
from zoo import backends

PAGES = pages.paths()
WITH_CODE = [path for path in PAGES if any(not b.reason for b in pages.blocks(path.read_text()))]
CHAPTERS = [page for page in WITH_CODE if page.parent.name == "chapters"]
_SHORT = 3.0  # seconds of CPU

# Numbers that are no measurements, with the reason why no result has them.
TYPED: dict[str, dict[str, str]] = {
    "chapters/convolutional-networks": {"3,221,504": "quoted from the document"},
    "guides/check": dict.fromkeys(
        ("0.131", "0.1", "16.7", "1,000", "6.5", "10,000", "9 %", "3e-7", "9e-6"),
        "what a fault of Keras gives instead of the right number",
    ),
    "guides/export": {"2 GB": "a limit of the format"},
    "guides/install": {"3.11": "a version of Python", "3.13": "a version of Python"},
    "promises": {"*": "limits that tests assert, and counts of campaigns that leave no file"},
    "guides/resume": {"30 seconds": "the interval of the lines"},
    "guides/several-devices": {"30 seconds": "the time that the machines wait for each other"},
    "results": {"20 %": "a setting of the document"},
}


def runs_on(page: Path, backend: str) -> bool:
    """Whether the code of a page is run on a backend: where it is short, or the fastest."""
    seconds = {name: result["seconds"] for name, result in pages.recorded(page).items()}
    return bool(seconds[backend] <= max(_SHORT, min(seconds.values())))


def runs_here(page: Path) -> bool:
    return runs_on(page, backends.name)


def is_notebook_here(page: Path) -> bool:
    """Whether a chapter is run as its notebook: on one of the backends that run it, in turns."""
    if page not in CHAPTERS:
        return False
    names = [name for name in backends.NAMES if runs_on(page, name)]
    return backends.name == names[CHAPTERS.index(page) % len(names)]


def code_of_notebook(page: Path) -> list[str]:
    notebooks = pytest.importorskip("benchmarks.notebooks", reason="needs `pip install jupytext`")
    cells = json.loads(notebooks.notebook(page))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("page", list(filter(runs_here, WITH_CODE)), ids=pages.name_of)
def test_page_code_prints_what_is_recorded(page: Path, tmp_path: Path) -> None:
    """A chapter runs as its notebook on one backend, as the page on others where it is short."""
    with contextlib.chdir(tmp_path):
        if is_notebook_here(page):
            selection, *cells = code_of_notebook(page)
            assert "KERAS_BACKEND" in selection
            _, *printed = pages.run_code([selection, *cells], f"{page.stem}.ipynb")
        else:
            printed = pages.run(page)
    expected = pages.recorded(page)[backends.name]["printed"]
    assert len(printed) == len(expected)
    for text, before in zip(printed, expected):
        assert pages.distance(text, before, each=True) <= 2e-2  # accuracies of few images


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=pages.name_of)
def test_page_matches_the_results(page: Path) -> None:
    text = page.read_text("utf-8")
    sections = pages.with_sections(text, page, book.sections())
    assert pages.with_numbers(sections, page) == text


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=pages.name_of)
def test_page_has_no_number_that_is_typed_by_hand(page: Path) -> None:
    allowed = set(TYPED.get(pages.name_of(page), {}))
    typed = set(pages.typed_numbers(page.read_text("utf-8")))
    assert typed == allowed or (typed and allowed == {"*"})


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=pages.name_of)
def test_page_names_existing_files(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in re.findall(
        r"`((?:tests|recipes|benchmarks|zoo|results|docs)/[\w/.-]+\.\w+)`", text
    ):
        assert (pages.ROOT / name).exists(), name
    for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (page.parent / target).exists(), target
    assert not re.search(r"!\[\]", text)  # a picture has a text


@functools.cache
def help_of(command: str) -> str:
    return book.help_text(command)


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=pages.name_of)
def test_page_commands_have_existing_recipes_and_flags(page: Path) -> None:
    """Checks `zoo COMMAND --FLAG` in code against the help texts."""
    names = "train|classify|generate|next-word|translate|draw|weights|card|check|show|export"
    text = re.sub(r"<!-- help .*?<!-- end", "", page.read_text("utf-8"), flags=re.DOTALL)
    for command in re.findall(rf"\bzoo ((?:{names})\b[^`#\n]*)", text):
        first, *rest = command.split()
        words = [first, *rest[:1]] if first in ("train", "show") else [first]
        flags = re.findall(r"--[a-z][a-z-]*", command)
        if flags and words[-1] not in ("finetune_llm", "--help"):  # the first needs KerasHub
            shown = help_of(" ".join(words))
            for flag in flags:
                assert flag in shown, command


def test_distance_is_relative_to_the_largest_number() -> None:
    assert pages.distance("a 1.5 b 100", "a 1.5 b 101") == pytest.approx(1 / 101)
    assert pages.distance("a  1e-3", "a 1e-3") == 0
    assert pages.distance("a 1.5 b 100", "a 1.6 b 100", each=True) == pytest.approx(0.1 / 1.6)
    with pytest.raises(ValueError, match="must differ in numbers only"):
        pages.distance("a 1", "b 1")


def test_linked_number_is_that_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    (tmp_path / "r.json").write_text(
        '{"runs": [{"name": "a", "accuracy": 0.9712, "seconds": 61.2},'
        ' {"name": "b", "accuracy": 0.95, "seconds": 130}], "small": 2.34e-8, "count": 1234567}'
    )
    page = tmp_path / "page.md"

    def numbers(text: str) -> str:
        return pages.with_numbers(text, page)

    assert numbers("[1.0 %](r.json#runs/name=a/accuracy)") == (
        "[97.1 %](r.json#runs/name=a/accuracy)"
    )
    assert numbers("[1 to 9 s](r.json#runs/*/seconds)") == "[61 to 130 s](r.json#runs/*/seconds)"
    assert numbers("[0 minutes](r.json#runs/1/seconds)") == "[2 minutes](r.json#runs/1/seconds)"
    assert numbers("[1e-1](r.json#sm*)") == "[2e-8](r.json#sm*)"
    assert numbers("[1](r.json#count)") == "[1,234,567](r.json#count)"
    with pytest.raises(ValueError, match="one number must be that of all entries"):
        numbers("[1 s](r.json#runs/*/seconds)")
    with pytest.raises(ValueError, match="an entry that exists"):
        numbers("[1 s](r.json#runs/name=c/seconds)")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("97.0 to 97.1 %", "0.0 to 0.0 %"),
        ("100 %", "0 %"),
        ("12,800", "0,000"),
        ("2e-8", "0e0"),
        ("1.25e+3 s", "0.00e0 s"),
    ],
)
def test_text_without_values_keeps_the_decimals(text: str, pattern: str) -> None:
    assert pages.without_values(text) == pattern


def test_text_without_values_shows_the_numbers_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"a": 0.97123, "count": 12800, "small": 2.34e-8}')
    page = tmp_path / "page.md"
    assert pages.linked_number("0.0 %", "r.json", "a", page) == "97.1 %"
    assert pages.linked_number("0,000", "r.json", "count", page) == "12,800"
    assert pages.linked_number("0e0", "r.json", "small", page) == "2e-8"


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("reaches 97 % in 12 s, or half a minute", ["97 %", "12 s", "half a minute"]),
        ("1,234 of 0.5 and 1e-5", ["1,234", "0.5", "1e-5"]),
        ("`3.5` of [99 %](r.json#a) and $0.25$, 3 layers of 48×48", []),
        ("```text\n99 %\n```\nand ~", []),
        (":::{note}\n12 s\n:::", ["12 s"]),
        ("<!-- accuracy -->\n12 s\n<!-- end of accuracy -->", []),
        ("[a page of 3.5](a/4.5.md)", ["3.5"]),
    ],
)
def test_typed_numbers_are_measurements_outside_of_code_and_results(
    text: str, typed: list[str]
) -> None:
    assert pages.typed_numbers(text) == typed


def test_blocks_run_in_one_namespace_and_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\ntext\n\n<!-- not run: needs a GPU -->\n```python\na = 2\n```\n"
        "```python\nprint(a)\n```\n"
    )
    assert [block.reason for block in pages.blocks(page.read_text())] == [None, "needs a GPU", None]
    assert pages.run(page) == ["", "1\n"]
