"""The French texts of the book, in docs/locales/: in step with the pages.

    python -m benchmarks.translation

The command extracts the messages of the translated pages, of the Sphinx extensions and of
`book.js`, and brings the catalog in step: new messages are untranslated, those that have changed
keep their old text and are marked as fuzzy. It needs the environment of `tox -e docs`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from benchmarks import pages

sys.path.insert(0, str(pages.DOCS / "_extensions"))

from translation import texts_of

FRENCH = pages.DOCS / "locales" / "fr" / "LC_MESSAGES" / "book.po"


def template() -> Catalog:
    """The messages of the translated pages and of the site's own code, without translations."""
    catalog = Catalog(project="keras-zoo", copyright_holder="the authors of keras-zoo")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sphinx", "-Q", "-E", "-b", "gettext"]
        subprocess.run([*command, str(pages.DOCS), folder], check=True)
        with (Path(folder) / "book.pot").open("rb") as file:
            extracted = read_po(file)
        for message in extracted:
            for place, _ in message.locations:
                page = (Path(folder) / place).resolve().relative_to(pages.ROOT).as_posix()
                catalog.add(message.id, locations=[(page, 1)])
    sources = [pages.DOCS / "_static" / "book.js", *(pages.DOCS / "_extensions").glob("*.py")]
    for path in sorted(sources):
        for text in texts_of(path):
            catalog.add(text, locations=[(path.relative_to(pages.ROOT).as_posix(), 1)])
    return catalog


def french() -> Catalog:
    """The catalog of the French texts."""
    with FRENCH.open("rb") as file:
        return read_po(file, locale="fr")


def update() -> None:
    """Brings the catalog in step with the pages."""
    catalog = french()
    catalog.update(template(), update_creation_date=False)
    with FRENCH.open("wb") as file:
        write_po(file, catalog, width=100, ignore_obsolete=True, include_lineno=False)
    missing = [message for message in catalog if message.id and not message.string]
    fuzzy = [message for message in catalog if message.id and message.fuzzy]
    print(f"{len(catalog)} messages: {len(missing)} without a translation, {len(fuzzy)} fuzzy")


if __name__ == "__main__":
    update()
