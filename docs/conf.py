"""Settings of Sphinx: `tox -e docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "keras-zoo"
author = "the authors of keras-zoo"
extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "book",
    "errors",
    "notebooks",
    "translation",
]
exclude_patterns = ["_build", "_extensions", "locales"]

locale_dirs = ["locales"]
gettext_compact = "book"  # one catalog: many texts are on several pages
english_only = ["architecture.*", "guides/[!i]*", "promises.*", "reference/*", "results.*"]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

html_theme = "pydata_sphinx_theme"
html_title = "keras-zoo"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
# Pages without pages below them.
html_sidebars = {page: [] for page in ("index", "results", "promises", "architecture")}
html_math_renderer = "mathml"  # drawn by the browser: no script, no host
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "navbar_persistent": ["search-button-field", "language.html"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "show_prev_next": True,
    "show_toc_level": 2,
}
html_context = {"default_mode": "light"}
highlight_language = "none"  # commands; blocks of Python say so
pygments_style = "a11y-high-contrast-light"

autodoc_inherit_docstrings = False  # those of Keras are Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "both"
napoleon_use_ivar = True
napoleon_use_rtype = False
