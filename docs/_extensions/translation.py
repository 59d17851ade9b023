"""Sphinx extension for the book in French: `sphinx-build -D language=fr docs`.

The texts are in `docs/locales/`; `python -m benchmarks.translation` brings them in step with the
pages. A message has no value of a result: a linked number has zeros for its digits, and a number in
a section that is made from results is `{}`.
"""

import functools
import html
import json
import re
from pathlib import Path
from typing import Any

from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.matching import Matcher

DOCS = Path(__file__).parents[1]
LANGUAGES = {"en": "English", "fr": "Français"}
SCRIPT = DOCS / "_static" / "book.js"

_SECTION = re.compile(r"<!-- (end of )?(?!not run)([^\n]+) -->\n?")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
_NO_PROSE = re.compile(r"(\{\w+\})?`[^`]*`|\$[^$]*\$|!\[[^\]]*\]\([^)]*\)|[\W\d_]")
_NO_MESSAGE = (nodes.Inline, nodes.FixedTextElement)
_LITERAL = (nodes.literal, nodes.math, nodes.FixedTextElement)


@functools.cache
def translations(language: str) -> dict[str, str]:
    """The messages of the book in a language, by their English texts."""
    path = DOCS / "locales" / language / "LC_MESSAGES" / "book.po"
    if not path.exists():
        return {}
    with path.open("rb") as file:
        return {str(m.id): str(m.string) for m in read_po(file) if m.id and m.string}


def translate(text: str, language: str) -> str:
    """A text of the site's own code in the language of the site."""
    return with_local_typography(translations(language).get(text, text), language)


def with_local_numbers(text: str, language: str) -> str:
    """A text with decimals and thousands as the language writes them."""
    if language != "fr":
        return text
    text = re.sub(r"(?<=\d), (?=\d)", " ; ", text)  # between two numbers with decimal commas
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)(?=%)", "\N{NARROW NO-BREAK SPACE}", text)
    return re.sub(r"(?<![\d.])(\d+)\.(\d+)(?![\d.])", r"\1,\2", text)


def with_local_typography(text: str, language: str) -> str:
    """A text with the apostrophes and the unbreakable spaces of French typography."""
    if language != "fr":
        return text
    text = re.sub(r"(?<=\w)'(?=\w|$)", "\N{RIGHT SINGLE QUOTATION MARK}", text)
    text = re.sub(r" (?=[;!?%])", "\N{NARROW NO-BREAK SPACE}", text)
    return re.sub(r" (?=[:»])|(?<=«) ", "\N{NO-BREAK SPACE}", text)


class PrepareMessages(SphinxTransform):
    """Takes the numbers out of the messages of sections that are made from results.

    Texts without a word, such as formulas, are no messages; nor are the terms of the glossary.
    """

    default_priority = 15  # before Sphinx' own `Locale`

    def apply(self, **kwargs: Any) -> None:
        section = ""
        for node in self.document.findall():
            if isinstance(node, nodes.raw) and (match := _SECTION.fullmatch(node.astext())):
                section = "" if match[1] else match[2]
            elif isinstance(node, nodes.math_block):
                node["translatable"] = False
            elif isinstance(node, nodes.TextElement) and not isinstance(node, _NO_MESSAGE):
                if section:
                    node["generated"] = True
                    parts = re.split(r"(`[^`]*`)", node.rawsource)
                    node["numbers"] = [n for part in parts[::2] for n in _NUMBER.findall(part)]
                    parts[::2] = [_NUMBER.sub("{}", part) for part in parts[::2]]
                    node.rawsource = "".join(parts)
                term = section == "glossary" and isinstance(node.parent.parent.parent, nodes.tbody)
                if term or not _NO_PROSE.sub("", node.rawsource):
                    node["translatable"] = False


class FinishTranslations(SphinxTransform):
    """Puts the numbers back into translated messages, and sets them as the language does."""

    default_priority = 30  # after `Locale`

    def apply(self, **kwargs: Any) -> None:
        language = self.config.language
        for node in self.document.findall(nodes.TextElement):
            if node.get("translated") or node.get("generated"):
                numbers = iter(node.get("numbers", ()))
                for text in list(node.findall(nodes.Text)):
                    if not isinstance(text.parent, _LITERAL):
                        first, *others = text.split("{}")
                        new = first + "".join(next(numbers) + other for other in others)
                        if node.get("generated"):
                            new = with_local_numbers(new, language)
                        text.parent.replace(text, nodes.Text(with_local_typography(new, language)))
        for image in self.document.findall(nodes.image):
            image["alt"] = with_local_typography(image["alt"], language)


def texts_of(path: Path) -> list[str]:
    """The messages of a file of the site's own code: the arguments of `translate`."""
    method = "javascript" if path.suffix == ".js" else "python"
    options = {"parse_template_string": True} if path.suffix == ".js" else {}
    found = extract_from_file(method, path, keywords={"translate": None}, options=options)
    return [str(text) for _, text, *_ in found]


def add_texts_of_script(app: Sphinx) -> None:
    """Gives `book.js` its texts in the language of the site."""
    language = app.config.language
    if language != "en":
        texts = {text: translate(text, language) for text in texts_of(SCRIPT)}
        body = f"window.BOOK_TEXTS = {json.dumps(texts, ensure_ascii=False)};"
        app.add_js_file(None, body=body, priority=400)


def leave_out_other_pages(app: Sphinx) -> None:
    """Leaves the pages that are in English only to the English site."""
    if app.builder.name == "gettext" or app.config.language != "en":
        app.config.exclude_patterns += app.config.english_only
        app.config.suppress_warnings += ["toc.excluded"]


class LinkToEnglish(SphinxPostTransform):
    """Links to pages that are in English only lead to the English site."""

    default_priority = 5  # before those of Sphinx and MyST, which warn

    def run(self, **kwargs: Any) -> None:
        if self.config.language == "en":
            return
        up = "../" * (self.env.docname.count("/") + 1)
        for node in list(self.document.findall(addnodes.pending_xref)):
            name = node["reftarget"]
            if node["reftype"] in ("doc", "myst") and name not in self.env.all_docs:
                text = node.astext() if node["refexplicit"] else title_of(name)
                link = nodes.reference("", text, internal=True, refuri=f"{up}{name}.html")
                node.replace_self(link)


def title_of(page: str) -> str:
    """Title of an English page."""
    return (DOCS / f"{page}.md").read_text("utf-8").partition("\n")[0].removeprefix("# ")


def add_context(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Adds the link to the page in the other language, or to the first one of that language."""
    here = app.config.language
    there = "en" if here == "fr" else "fr"
    english_only = Matcher(app.config.english_only)
    known = page in app.env.all_docs and not english_only(f"{page}.md")
    folder = ".." if here == "fr" else "fr"
    address = f"{context['content_root']}{folder}/{page if known else 'index'}.html"
    context["other_language"] = {"code": there, "name": LANGUAGES[there], "address": address}
    if here != "en" and page in ("index", "guides/index"):
        text = html.escape(translate("The other pages are in English only.", here))
        context["body"] += f'<p><a href="{address}" hreflang="en">{text}</a></p>'


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(PrepareMessages)
    app.add_transform(FinishTranslations)
    app.add_post_transform(LinkToEnglish)
    app.add_config_value("english_only", [], "env")
    app.connect("builder-inited", leave_out_other_pages)
    app.connect("builder-inited", add_texts_of_script)
    app.connect("html-page-context", add_context)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
