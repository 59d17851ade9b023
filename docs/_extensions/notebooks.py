"""Sphinx extension that writes a notebook of each chapter, and adds a link to it to its page."""

import sys
from pathlib import Path

from sphinx.application import Sphinx
from translation import translate

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import notebooks  # the repository's own, which is not installed


def write_notebooks(app: Sphinx) -> None:
    """Writes the notebooks to notebooks/ in the folder of the English site."""
    if app.builder.name != "html" or app.config.language != "en":
        return
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for page in notebooks.chapters():
        (folder / f"{page.stem}.ipynb").write_text(notebooks.notebook(page), "utf-8")


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
