"""Sphinx extension of the book: linked numbers, formulas as MathML, interactive figures."""

import functools
import html
import json
import operator
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from translation import translate, with_local_numbers

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import pages  # noqa: E402  (the repository's own, which is not installed)

NUMBER = re.compile(r"\[([^\[\]]+)\]\(([\w./-]+\.json)#([^()\s]+)\)")


def mark_numbers(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turns links to entries of JSON files, which GitHub shows as links, into a role.

    Its text has zeros for the digits, so that a translation holds for all values.
    """
    source[0] = NUMBER.sub(
        lambda match: f"{{result}}`{pages.without_values(match[1])} <{match[2]}#{match[3]}>`",
        source[0],
    )


class Result(SphinxRole):
    """A number from a file of results; its source is shown when one points at it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        match = re.fullmatch(r"(.+?) <([^#>]+)#(.+)>", self.text, re.DOTALL)
        assert match
        text, path, entry = match.groups()
        text = pages.linked_number(text, path, entry, Path(self.env.doc2path(self.env.docname)))
        text = html.escape(with_local_numbers(text, self.config.language)).replace(" %", "&nbsp;%")
        source = translate("from {file}, {entry}", self.config.language)
        title = html.escape(source.format(file=path.lstrip("./"), entry=entry))
        return [
            nodes.raw("", f'<span class="result" title="{title}">{text}</span>', format="html")
        ], []


class Interactive(SphinxDirective):
    """A figure that `_static/book.js` draws from data; its content is what a page without it shows.

    The argument is the name of a file in results/book/figures, without its ending, and the name of
    the function of the script.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        path = ROOT / "results" / "book" / "figures" / f"{name}.json"
        self.env.note_dependency(str(path))
        data = json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False)
        data = data.replace("</", "<\\/")
        before = f'<figure class="interactive" data-figure="{name}">'
        script = f'<script type="application/json">{data}</script>'
        caption = nodes.container(classes=["interactive-caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        return [
            nodes.raw("", before + script, format="html"),
            caption,
            nodes.raw("", "</figure>", format="html"),
        ]


def visit_math(translator: Any, node: nodes.Element) -> None:
    """Writes a formula as MathML."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(
        f'<div class="formula" tabindex="0">{formula}</div>' if block else formula
    )
    raise nodes.SkipNode


def plain_signature(app: Sphinx, obj: Any, bound_method: bool) -> None:
    """Leaves the rules out of the types of a signature: `Annotated[int, a rule]` becomes `int`."""
    try:
        hints = typing.get_type_hints(obj, include_extras=False)
        obj.__annotations__ = {name: plain_type(hint) for name, hint in hints.items()}
    except (AttributeError, NameError, TypeError):  # written in C, or a type that is not there
        return


_SECTION = re.compile(r"[A-Z]\w+:")  # "Args:", "Returns:", ...


def as_restructured_text(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Turns a docstring, which is plain text with code in single backticks, into what Sphinx reads.

    Lines that are indented below a text are formulas, shapes or code; below the name of a section,
    such as "Args:", they are its entries.
    """
    converted: list[str] = []
    section = literal = False
    for line in lines:
        if line and not line.startswith(" "):
            section = bool(_SECTION.fullmatch(line)) and what != "module"
            if literal and converted[-1]:
                converted.append("")
            literal = False
        elif line and not section and not literal:
            literal = True
            converted += ["", "::", ""]
        converted.append(line if literal else _escaped(line))
    lines[:] = converted


def _escaped(line: str) -> str:
    """A line with its code marked as code, and without what would be markup in the rest."""
    parts = re.split(r"(`[^`]+`)", line)
    parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)


def plain_type(annotation: Any) -> Any:
    """A type without the rules of `Annotated` in it, at any depth."""
    if typing.get_origin(annotation) is typing.Annotated:
        return plain_type(typing.get_args(annotation)[0])
    if isinstance(annotation, list):  # the arguments of a Callable
        return [plain_type(part) for part in annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if not arguments or origin is typing.Literal:
        return annotation
    plain = tuple(plain_type(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, plain)
    return origin[plain]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", mark_numbers)
    app.connect("autodoc-before-process-signature", plain_signature)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.add_role("result", Result())
    app.add_directive("interactive", Interactive)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
