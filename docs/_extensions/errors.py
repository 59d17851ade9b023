"""Sphinx extension that lists the texts of all errors of `zoo/`, read from the source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
_FEWEST_WORDS = 3  # besides values; less is no text of its own, but another error's


@dataclass(frozen=True)
class ErrorText:
    """Text of an error.

    Attributes:
        text: The text, with the expression of each value in braces.
        kind: Name of the exception; empty where a function of another name makes it.
        place: Dotted name of the function that has the text.
        file: Path of the file, within the repository.
        line: Line of the text.
    """

    text: str
    kind: str
    place: str
    file: str
    line: int


def error_texts(path: Path) -> Iterator[ErrorText]:
    """The texts of the errors that a file raises or makes, from its top to its end."""
    module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    module = module.removesuffix(".__init__")

    def visit(node: ast.AST, place: str, kind: str | None) -> Iterator[ErrorText]:
        """Texts within a node; `kind` is that of the error whose argument the node is."""
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{place}.{node.name}"
        elif isinstance(node, ast.Raise):
            kind = ""
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            kind = name if re.search(r"(Error|Exit)$", name) else kind
        elif isinstance(node, ast.expr) and (text := text_of(node)):
            words = re.sub(r"\{.*?\}", "", text).split()
            if len(words) >= _FEWEST_WORDS and (kind is not None or "Received: " in text):
                file = path.relative_to(ROOT).as_posix()
                yield ErrorText(text, kind or "", place, file, node.lineno)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place, kind)

    yield from visit(ast.parse(path.read_text("utf-8")), module, None)


def text_of(node: ast.expr) -> str | None:
    """The text that an expression makes, with other expressions in braces; None if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [text_of(part) for part in (node.left, node.right)]
        if any(part is not None for part in parts):
            return "".join(
                f"{{{ast.unparse(operand)}}}" if part is None else part
                for part, operand in zip(parts, (node.left, node.right))
            )
    return None


class Errors(SphinxDirective):
    """A section for each part of `zoo/`, with the texts of its errors and where they come from."""

    def run(self) -> list[nodes.Node]:
        by_part: dict[str, list[ErrorText]] = {}
        for path in sorted((ROOT / "zoo").rglob("*.py")):
            if "recipes" in path.relative_to(ROOT).parts:  # may be a link to the folder above
                continue
            self.env.note_dependency(str(path))
            for error in error_texts(path):
                part = ".".join(error.place.split(".")[:2])
                by_part.setdefault(part, []).append(error)
        sections: list[nodes.Node] = []
        for part, errors in sorted(by_part.items()):
            section = nodes.section(ids=[nodes.make_id(f"errors of {part}")])
            entries = [self._entry(error) for error in errors]
            section += [
                nodes.title("", part),
                nodes.definition_list("", *entries, classes=["errors"]),
            ]
            sections.append(section)
        return sections

    def _entry(self, error: ErrorText) -> nodes.definition_list_item:
        parts = re.split(r"(\{.*?\}|`.*?`)", error.text)
        shown: list[nodes.Node] = [nodes.Text(part) for part in parts]
        shown[1::2] = [
            nodes.literal("", part[1:-1]) if part[0] == "`" else nodes.emphasis("", part[1:-1])
            for part in parts[1::2]
        ]
        term = nodes.term("", "", *shown, support_smartquotes=False)
        source = nodes.paragraph()
        if error.kind:
            source += [nodes.literal("", error.kind), nodes.Text(", ")]
        source += [
            nodes.literal("", error.place.removeprefix("zoo.")),
            nodes.Text(f", {error.file}, line {error.line}"),
        ]
        return nodes.definition_list_item("", term, nodes.definition("", source))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("errors", Errors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
