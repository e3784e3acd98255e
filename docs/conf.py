"""Settings of Sphinx: `make docs` builds these pages into build/docs."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

import mtlkeras  # noqa: E402

project = "mtlkeras"
author = copyright = "The mtlkeras authors"
version = release = mtlkeras.__version__

extensions = [
    "markdown_docstrings",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_extensions"]
html_theme = "furo"
html_title = f"mtlkeras {version}"

# Headings are targets of links, by the names that GitHub gives them.
myst_heading_anchors = 3

# What a class inherits is said once, at the base class.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Attributes that a subclass sets", "params_style"),
    ("Call arguments", "params_style"),
]


# Pages stay plain Markdown, for who reads them in the repository: that a
# folder's README is the parent of its other pages is said here.
INDEX = """
```{toctree}
:glob:
:hidden:

*
```
"""


def list_pages_of_folder(app, page, source):
    if page.endswith("/README"):
        source[0] += INDEX


def setup(app):
    app.connect("source-read", list_pages_of_folder)
