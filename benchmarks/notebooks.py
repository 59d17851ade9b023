"""Notebooks of the book's chapters, made from the pages.

The cells of code are the blocks that the page runs. What they print is left out: it appears when
the notebook is run.
"""

import base64
import re
from pathlib import Path

import jupytext

from benchmarks import pages

INTRODUCTION = """\
This notebook needs the package keras-zoo and one of JAX, PyTorch and TensorFlow. The next cell
selects the backend: "jax", "torch" or "tensorflow".

```python
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
```
"""


def notebook_text(page: Path) -> str:
    """The text of a page as Markdown that needs neither Sphinx nor the files beside it."""

    def picture(match: re.Match[str]) -> str:
        path = page.parent / match[2]
        content = base64.b64encode(path.read_bytes()).decode()
        return f"![{match[1]}](data:image/{path.suffix[1:]};base64,{content})"

    text = page.read_text("utf-8")
    text = re.sub(r"<!-- printed -->.*?<!-- end of printed -->\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<!-- (?!not run)[^\n]*-->\n", "", text)
    text = re.sub(r"(<!-- not run: [^\n]+ -->\n```)python", r"\1", text)
    text = re.sub(
        r"```\{literalinclude\} (?:\.\./)*(\S+)\n.*?```", r"(The code is in `\1`.)", text,
        flags=re.DOTALL,
    )  # fmt: skip
    text = re.sub(
        r":::\{interactive\} \w+\n(.*?):::", r"(An interactive figure is on the page.)", text,
        flags=re.DOTALL,
    )  # fmt: skip
    text = re.sub(
        r"^:{3,}(\{admonition\} )?([^\n]*)\n(:class:[^\n]*\n)?", r"\2\n", text, flags=re.M
    )
    text = re.sub(r"!\[([^\]]+)\]\(([^)]+)\)", picture, text)
    text = re.sub(r"(?<!!)\[([^\[\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)  # links within the book
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{INTRODUCTION}{rest}"


def notebook(page: Path) -> str:
    """A page as the content of an .ipynb file."""
    return str(jupytext.writes(jupytext.reads(notebook_text(page), "md"), "ipynb"))


def chapters() -> list[Path]:
    """The pages that there are notebooks of."""
    return [
        path for path in pages.paths() if path.parent.name == "chapters" and path.stem != "index"
    ]
