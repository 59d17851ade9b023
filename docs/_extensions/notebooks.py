"""Sphinx extension that makes a notebook of each chapter, and a link to it at the top of its page.

The cells of code are the blocks that the page runs. What they print is left out: it appears when
the notebook is run.
"""

import base64
import re
import sys
from pathlib import Path

import jupytext
from sphinx.application import Sphinx
from translation import translate

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import pages  # noqa: E402  (the repository's own, which is not installed)

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


def write_notebooks(app: Sphinx) -> None:
    """Writes the notebooks to notebooks/ in the folder of the English site."""
    if app.builder.name != "html" or app.config.language != "en":
        return
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for page in chapters():
        notebook = jupytext.reads(notebook_text(page), "md")
        jupytext.write(notebook, folder / f"{page.stem}.ipynb")


def chapters() -> list[Path]:
    return [
        path for path in pages.paths() if path.parent.name == "chapters" and path.stem != "index"
    ]


def add_link(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adds the link to the notebook below the title of a chapter."""
    folder, _, name = docname.partition("/")
    if folder == "chapters" and name != "index":
        title, _, rest = source[0].partition("\n")
        site = ".." if app.config.language == "en" else "../.."
        text = translate("Download this chapter as a notebook", app.config.language)
        link = f'<p><a href="{site}/notebooks/{name}.ipynb" download>{text}</a></p>'
        source[0] = f"{title}\n\n{link}\n{rest}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_notebooks)
    app.connect("source-read", add_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
