"""What builds the site of docs/, as far as it can be run without Sphinx."""

import re
import runpy
from pathlib import Path

import matplotlib.image
import numpy as np
from pages import DOCS

EXTENSION = runpy.run_path(str(DOCS / "_extensions/markdown_docstrings.py"))
FIGURE = DOCS / "_figures" / "one_step.py"


def test_markdown_docstrings_become_rst():
    markdown = """Takes `a b` from [a paper
    of 2020](https://example.org/x), and no ``more``.

    ```
    y = M[task] x
    ```

    | name | meaning |
    |---|---|
    | `a` | first |

    Example:

    >>> 1
    1

    Example: inside of a sentence stays."""
    assert EXTENSION["to_rst"](markdown) == (
        """Takes ``a b`` from `a paper of 2020 <https://example.org/x>`__, """
        """and no ``more``.

    .. code-block:: text

        y = M[task] x


    .. list-table::
       :header-rows: 1

       * - name
         - meaning
       * - ``a``
         - first

    .. rubric:: Example

    >>> 1
    1

    Example: inside of a sentence stays."""
    )


def test_signatures_are_those_of_init():
    import mtlkeras

    def signature(cls):
        return EXTENSION["process_signature"](
            None, "class", cls.__name__, cls, None, "(*args, **kwargs)", None
        )

    assert signature(mtlkeras.aggregators.MGDA)[0] == (
        "(normalization=None, **kwargs)"
    )
    assert signature(type("WithoutInit", (), {})) is None


def test_members_of_other_libraries_are_left_out():
    import keras

    import mtlkeras

    skip = EXTENSION["skip_member"]
    model = mtlkeras.MultiTaskModel
    assert skip(None, "class", "", keras.Model.evaluate, False, None)
    assert not skip(None, "class", "", model.fit, False, None)
    assert not skip(None, "class", "", model.task_names, False, None)


def test_the_picture_of_one_step_is_what_its_script_draws(tmp_path):
    figure = runpy.run_path(str(FIGURE))["draw"]()
    figure.savefig(tmp_path / "one_step.png", dpi=100)
    drawn = matplotlib.image.imread(tmp_path / "one_step.png")
    kept = matplotlib.image.imread(DOCS / "images" / "one_step.png")
    assert drawn.shape == kept.shape
    # Another release of matplotlib may set letters otherwise.
    assert np.abs(drawn - kept).mean() < 0.02


def test_every_page_can_be_reached():
    """From the index by its lists of pages, or from a folder's README."""
    index = (DOCS / "index.md").read_text()
    lists = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = set()
    for line in "\n".join(lists).splitlines():
        if line and not line.startswith(":"):
            listed |= set(DOCS.glob(f"{line}.md"))
    for file in DOCS.rglob("*.md"):
        readme = file.parent / "README.md"
        assert (
            file in listed or readme in listed or file == DOCS / "index.md"
        ), file


def test_every_example_is_in_the_gallery():
    gallery = (DOCS / "examples" / "README.md").read_text()
    examples = Path(DOCS.parent / "examples").glob("*.py")
    for example in examples:
        if "__main__" in example.read_text():
            assert f"examples/{example.name}" in gallery, example.name
