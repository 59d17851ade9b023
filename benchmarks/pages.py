"""Pages of `docs/`: their code, their numbers, and the sections that are made from results.

A page is Markdown that GitHub shows as it is. Three things in it come from elsewhere:

    [99.51 %](../../zoo/weights/mlp-mnist/card.json#metrics/jax/whole/test_accuracy)
        A number, linked to the entry of a JSON file that has it. The unit in the text scales it.
    <!-- accuracy --> ... <!-- end of accuracy -->
        A section that `sections` makes, such as a table of results.
    <!-- printed --> ... <!-- end of printed -->
        What the block of Python above it prints, on each backend.

The blocks of Python of a page run in order, in one namespace. A block below the line
`<!-- not run: REASON -->` is left out.
"""

import contextlib
import fnmatch
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "results" / "book"

BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}


def paths() -> list[Path]:
    """The pages, in the order of their names."""
    return sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


def name_of(page: Path) -> str:
    """Name of a page, such as "chapters/mlp"."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


# ------------------------------------------------------------------ code

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.M
)


@dataclass(frozen=True)
class Block:
    """Block of Python of a page.

    Attributes:
        code: The code.
        line: Line of the page on which the code begins.
        reason: Why the block is not run; None if it is.
    """

    code: str
    line: int
    reason: str | None


def blocks(text: str) -> list[Block]:
    """The blocks of Python of a page."""
    return [
        Block(match["code"], text.count("\n", 0, match.start("code")) + 1, match["reason"])
        for match in _FENCE.finditer(text)
    ]


def run(page: Path) -> list[str]:
    """Runs the blocks of a page in the current folder; returns what each of them prints."""
    found = [block for block in blocks(page.read_text("utf-8")) if not block.reason]
    # So that a traceback has the page's lines.
    return run_code(["\n" * (block.line - 1) + block.code for block in found], str(page))


def run_code(codes: Iterable[str], file: str) -> list[str]:
    """Runs pieces of code in one namespace; returns what each of them prints."""
    names: dict[str, Any] = {"__name__": Path(file).stem}
    printed = []
    for code in codes:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, file, "exec"), names)
        printed.append(output.getvalue())
    return printed


def recorded(page: Path) -> dict[str, dict[str, Any]]:
    """What the blocks of a page printed, and the seconds that they took, by backend."""
    path = RESULTS / f"{name_of(page)}.json"
    content: dict[str, dict[str, Any]] = (
        json.loads(path.read_text("utf-8")) if path.exists() else {}
    )
    return content


_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


def distance(first: str, second: str, each: bool = False) -> float:
    """Largest difference of the numbers in two texts, relative to the largest number.

    Args:
        first: One text.
        second: The other text.
        each: Whether the difference of two numbers is relative to the larger of the two.

    Raises:
        ValueError: If the texts differ in more than their numbers.
    """
    words, other_words = (re.sub(r"\s+", " ", _NUMBER.sub("0", text)) for text in (first, second))
    if words != other_words:
        raise ValueError(
            f"The texts must differ in numbers only. Received:\n{first}\nand\n{second}"
        )
    numbers = (
        [float(number.replace(",", "")) for number in _NUMBER.findall(text)]
        for text in (first, second)
    )
    different = [(a, b) for a, b in zip(*numbers, strict=True) if a != b]
    if not different:
        return 0.0
    if each:
        return max(abs(a - b) / max(abs(a), abs(b)) for a, b in different)
    largest = max(abs(float(n.replace(",", ""))) for n in _NUMBER.findall(first + " " + second))
    return max(abs(a - b) for a, b in different) / largest


def printed_section(by_backend: Mapping[str, str]) -> str:
    """What a block printed: once if the backends printed the same, else in a tab for each."""
    first, *others = by_backend.values()
    if all(text == first for text in others):
        return f"```text\n{first.rstrip()}\n```\n\nThe three backends print the same."
    apart = max(
        distance(one, other) for one in by_backend.values() for other in by_backend.values()
    )
    tabs = [
        f":::{{tab-item}} {BACKENDS[name]}\n:sync: {name}\n\n```text\n{text.rstrip()}\n```\n:::"
        for name, text in by_backend.items()
    ]
    return "\n\n".join(
        [
            "::::{tab-set}\n:sync-group: backend",
            *tabs,
            "::::",
            f"Largest difference between two backends: {apart:.1e} of the largest number.",
        ]
    )


# ------------------------------------------------------------------ numbers

_LINK = re.compile(r"\[(?P<text>[^\[\]]+)\]\((?P<path>[\w./-]+\.json)#(?P<entry>[^()\s]+)\)")
_SCALES = {"%": 100.0, "minute": 1 / 60, "minutes": 1 / 60, "ms": 1e3, "MB": 1e-6, "million": 1e-6}


def with_numbers(text: str, page: Path) -> str:
    """The text of a page with each linked number as its file has it.

    A number keeps its decimals. Two numbers, as in "3 to 5 s", are the least and the greatest of
    the entries.
    """

    def replace(match: re.Match[str]) -> str:
        content = linked_number(match["text"], match["path"], match["entry"], page)
        return f"[{content}]({match['path']}#{match['entry']})"

    return _LINK.sub(replace, text)


def linked_number(text: str, path: str, entry: str, page: Path) -> str:
    """The text of a link to results, with its numbers as the file has them.

    Args:
        text: Text with one number, or with two as in "3 to 5 s".
        path: The file, relative to the page.
        entry: Path of the numbers in the file, as in an address.
        page: Path of the page.
    """
    file = (page.parent / path).resolve()
    values = list(select(json.loads(file.read_text("utf-8")), unquote(entry)))
    shown = _NUMBER.findall(text)
    if not values or len(shown) not in (1, 2):
        raise ValueError(
            f"{name_of(page)}: a link to results must have one number or two, and an entry "
            f"that exists. Received: [{text}]({path}#{entry})"
        )
    unit = re.split(r"[\d\s]+", text.strip())[-1]
    scaled = [value * _SCALES.get(unit, 1.0) for value in values]
    bounds = [min(scaled), max(scaled)]
    if len(shown) == 1:
        rounded = {_like(shown[0], value) for value in bounds}
        if len(rounded) > 1:
            raise ValueError(
                f"{name_of(page)}: one number must be that of all entries. "
                f"Received: [{text}]({path}#{entry}), entries {values}"
            )
    new = iter(_like(number, value) for number, value in zip(shown, bounds))
    return _NUMBER.sub(lambda _: next(new), text)


def without_values(text: str) -> str:
    """The text of a link to results with zeros for its numbers, of as many decimals."""

    def zero(match: re.Match[str]) -> str:
        mantissa, e, _ = match[0].partition("e")
        whole, point, decimals = mantissa.partition(".")
        comma = ",000" if "," in whole else ""
        return f"0{comma}{point}{'0' * len(decimals)}{e and 'e0'}"

    return _NUMBER.sub(zero, text)


def _like(pattern: str, value: float) -> str:
    """A value with the decimals, the comma and the exponent of a number in a text."""
    decimals = len(pattern.partition("e")[0].partition(".")[2])
    if "e" in pattern:
        mantissa, exponent = f"{value:.{decimals}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    comma = "," if "," in pattern or abs(value) >= 10_000 else ""
    return f"{value:{comma}.{decimals}f}"


def select(content: Any, entry: str) -> Iterator[float]:
    """The numbers at a path in JSON, such as "runs/model=mlp,epochs=5/test_accuracy".

    A part of the path is a key, which may have wildcards as in "mlp-*", an index of a list, `*` for
    all of its items, or conditions on them.
    """
    first, _, rest = entry.partition("/")
    if isinstance(content, list) and first == "*":
        chosen = content
    elif isinstance(content, list) and "=" in first:
        wanted = dict(condition.split("=") for condition in first.split(","))
        chosen = [item for item in content if all(str(item.get(k)) == v for k, v in wanted.items())]
    elif isinstance(content, list):
        chosen = [content[int(first)]]
    else:
        chosen = [content[key] for key in fnmatch.filter(content, first)]
    for value in chosen:
        if rest:
            yield from select(value, rest)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`{entry}` must be a number. Received: {value}")
        else:
            yield value


_WORDS = "half|one|two|three|four|five|six|seven|eight|nine|ten|some|several"
_UNITS = r"%|ms\b|s\b|seconds?\b|minutes?\b|hours?\b|[KMG]i?B\b|images/s|tokens/s|times\b|nats?\b"
_MEASURED = re.compile(
    rf"\d+(?:,\d{{3}})+|\d+\.\d+|\d+e-?\d+|\d+\s?(?:{_UNITS})"
    rf"|\b(?:{_WORDS})(?: (?:a|an|to \w+|or \w+))? (?:seconds?|minutes?|hours?)\b"
)


def typed_numbers(text: str) -> list[str]:
    """Measured numbers that are typed by hand into the prose of a page.

    These are numbers with a decimal point, a thousands separator, an exponent or a unit, outside
    of code, formulas, sections that are made from results, and links to results.
    """
    lines, fenced = [], ""
    for line in _SECTION.sub("", text).splitlines():
        if fence := re.match("`{3,}", line):
            fenced = "" if fenced == fence[0] else fenced or fence[0]
        elif not fenced and not line.startswith(":"):  # the frame of a directive and its options
            lines.append(line)
    text = "\n".join(lines)
    text = _LINK.sub("", text)
    text = re.sub(r"`[^`]*`|\$\$.*?\$\$|\$[^$]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|<[^>]*>", "", text)
    return [match[0] for match in _MEASURED.finditer(text)]


# ------------------------------------------------------------------ sections

_SECTION = re.compile(
    r"<!-- (?P<name>[^\n]+?) -->\n(?P<content>.*?)<!-- end of (?P=name) -->", re.DOTALL
)


def with_sections(text: str, page: Path, sections: Mapping[str, Callable[[str], str]]) -> str:
    """The text of a page with its sections made anew.

    Args:
        text: Text of the page.
        page: Path of the page.
        sections: Functions that make a section, by the first word of its name, from the rest.
    """
    outputs = iter(_printing(page) if "<!-- printed -->" in text else ())

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        kind, _, argument = name.partition(" ")
        if kind == "printed":
            content = printed_section(next(outputs))
        elif kind in sections:
            content = sections[kind](argument)
        else:
            raise ValueError(f"{name_of(page)}: there is no section {name}")
        return f"<!-- {name} -->\n\n{content}\n\n<!-- end of {name} -->"

    result = _SECTION.sub(replace, text)
    if next(outputs, None) is not None:
        raise ValueError(
            f"{name_of(page)}: a block that prints must be followed by `<!-- printed -->`"
        )
    return result


def _printing(page: Path) -> list[dict[str, str]]:
    """What the blocks that print anything printed, by backend."""
    content = recorded(page)
    if set(content) != set(BACKENDS):
        raise ValueError(
            f"{name_of(page)} must have been run on {', '.join(BACKENDS)}: "
            f"`python -m benchmarks.book run`. Received: {', '.join(content)}"
        )
    return [
        dict(zip(content, texts))
        for texts in zip(*(result["printed"] for result in content.values()), strict=True)
        if any(texts)
    ]
