"""The French texts of the book: complete, in step with the pages, in the words of the glossary."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import glossary, pages

pytestmark = pytest.mark.once

TERMS = glossary.terms()


@pytest.fixture(scope="module")
def catalog() -> Any:
    pofile = pytest.importorskip("babel.messages.pofile", reason="needs babel: `tox -e docs`")
    path = pages.DOCS / "locales" / "fr" / "LC_MESSAGES" / "book.po"
    with path.open("rb") as file:
        return [message for message in pofile.read_po(file, locale="fr") if message.id]


def test_every_message_is_translated(catalog: Any) -> None:
    assert len(catalog) > 300
    assert not [message.id for message in catalog if not message.string or message.fuzzy]


def test_catalog_is_in_step_with_the_pages(catalog: Any) -> None:
    pytest.importorskip("jupytext", reason="needs Sphinx and its extensions: `tox -e docs`")
    from benchmarks import translation

    extracted = {message.id for message in translation.template() if message.id}
    known = {message.id for message in catalog}
    assert not extracted ^ known, "`python -m benchmarks.translation` brings the catalog in step"


def test_translations_use_the_terms_of_the_glossary(catalog: Any) -> None:
    missing = {
        message.id: [term.french[0] for term in terms]
        for message in catalog
        if (terms := glossary.untranslated(message.id, message.string, TERMS))
    }
    assert not missing


def test_glossary_has_terms_of_the_book_only(catalog: Any) -> None:
    texts = [glossary.prose(message.id) for message in catalog]
    unused = [
        term.english[0]
        for term in TERMS
        if not any(glossary.has_form(text, term.english) for text in texts)
    ]
    assert not unused


def parts(text: str) -> Counter[str]:
    """Code, numbers of results, formulas, addresses and places of numbers in a message."""
    text = text.replace(r"18\,496", "18{,}496")  # the one thousands separator in a formula
    # A number is given by its entry: its text may have other words.
    text = re.sub(r"\{result\}`[^<]+", "{result}`", text)
    return Counter(re.findall(r"(?:\{result\})?`[^`]+`|\$[^$]+\$|\]\([^)]+\)|\{\w*\}(?!`)", text))


def test_translations_keep_code_formulas_numbers_and_links(catalog: Any) -> None:
    assert not [m.id for m in catalog if parts(str(m.id)) != parts(str(m.string))]


def test_translations_keep_the_decimals_of_numbers(catalog: Any) -> None:
    def decimals(text: str) -> Counter[tuple[str, ...]]:
        links = re.findall(r"\{result\}`([^<]+)(<[^>]+>)`", text)
        return Counter((link, *re.findall(r"\d[\d.,]*(?:e0)?", shown)) for shown, link in links)

    assert not [m.id for m in catalog if decimals(str(m.id)) != decimals(str(m.string))]


def test_translations_leave_apostrophes_and_spaces_to_the_site(catalog: Any) -> None:
    """Unbreakable spaces and curved apostrophes cannot be told from others in an editor."""
    spaces = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
    forbidden = re.compile(f'[{spaces}\N{RIGHT SINGLE QUOTATION MARK}"]')
    texts = [re.sub(r"`[^`]*`", "", str(message.string)) for message in catalog]
    assert not [text for text in texts if forbidden.search(text)]


def test_terms_are_found_as_whole_words_in_prose() -> None:
    layer = glossary.Term(("layer", "layers"), ("couche", "couches"), "")
    assert glossary.untranslated("a Layer", "une cellule", [layer]) == [layer]
    assert glossary.untranslated("two **layers**", "deux **couches**", [layer]) == []
    assert glossary.untranslated("a player", "un joueur", [layer]) == []
    assert glossary.untranslated("`layer` $layer$ [it](layer.md) {layer}", "cela", [layer]) == []


def test_glossary_section_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "glossary.csv"
    file.write_text("english,french,section\nbias|biases,biais,Activation Functions\n")
    monkeypatch.setattr(glossary, "FILE", file)
    assert glossary.terms() == [
        glossary.Term(("bias", "biases"), ("biais",), "Activation Functions")
    ]
    assert "| bias | biais | Activation Functions |" in glossary.table("")
