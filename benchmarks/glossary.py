"""The glossary of the book: terms of the document in English and in French."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import pages, results

FILE = pages.DOCS / "glossary.csv"


@dataclass(frozen=True)
class Term:
    """Term of the glossary.

    Attributes:
        english: Its forms in English, the first of which names it.
        french: Its forms in French.
        section: Section of the document that has it.
    """

    english: tuple[str, ...]
    french: tuple[str, ...]
    section: str


def terms() -> list[Term]:
    """The terms of `docs/glossary.csv`, in which `|` is between the forms of a term."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return [
            Term(tuple(row["english"].split("|")), tuple(row["french"].split("|")), row["section"])
            for row in csv.DictReader(file)
        ]


def table(_: str) -> str:
    """Table of the terms, by their first forms."""
    rows = ((term.english[0], term.french[0], term.section) for term in terms())
    return results.table(("English", "French", "section of the document"), rows)


def untranslated(english: str, french: str, terms: Sequence[Term]) -> list[Term]:
    """The terms that are in an English text of the book, and not in its translation."""
    english, french = prose(english), prose(french)
    return [
        term
        for term in terms
        if has_form(english, term.english) and not has_form(french, term.french)
    ]


def has_form(text: str, forms: Sequence[str]) -> bool:
    """Whether a text has one of the forms of a term, as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text, re.IGNORECASE) for form in forms)


def prose(text: str) -> str:
    """A text without its code, formulas, addresses and emphasis, in one line."""
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|\{\w*\}", " ", text)
    text = re.sub(r"[*\[\]]", "", text)
    return " ".join(text.split())
