"""The Markdown pages of a folder in docs/: complete, linked, and running."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from code_blocks import promised_output, python_blocks, run_block

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Pages:
    """All pages of a folder, read once.

    Args:
        folder: Name of a folder in docs/, with a README.md as its index.

    Attributes:
        texts: Dict from the name of a page, without `.md`, to its text.
        index: The text of README.md.
        blocks: `pytest.param(name, number, block)` for every Python block.
    """

    def __init__(self, folder):
        self.folder = DOCS / folder
        self.texts = {
            file.stem: file.read_text()
            for file in sorted(self.folder.glob("*.md"))
        }
        self.index = self.texts["README"]
        self.blocks = [
            pytest.param(name, number, block, id=f"{name}-{number}")
            for name, text in self.texts.items()
            for number, block in enumerate(python_blocks(text), 1)
        ]

    def check_names(self, names):
        """One page for each, all of them linked from the index."""
        assert set(self.texts) - {"README"} == set(names)
        for name in names:
            assert f"]({name}.md)" in self.index

    def check_links(self, name):
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", self.texts[name]):
            file, _, heading = link.partition("#")
            assert (self.folder / (file or f"{name}.md")).exists(), link
            if not heading:
                continue
            text = self.texts[name]
            if file:
                text = (self.folder / file).read_text()
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h).lower() for h in headings]
            assert heading in [a.replace(" ", "-") for a in anchors], link

    def check_headings(self, name, expected):
        text = self.texts[name]
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == expected
        assert python_blocks(text)
        assert re.search(r"\]\(https://\S+\)", text)

    def check_defaults(self, name, arguments):
        """The page's table of arguments says what the signature does."""
        table = table_of_arguments(self.texts[name])
        assert set(table) == set(arguments)
        for argument, default in arguments.items():
            if default is inspect.Parameter.empty:
                assert table[argument] == "required", argument
                continue
            found = ast.literal_eval(table[argument].strip("`"))
            assert type(found) is type(default), argument
            assert found == default, argument


def table_of_arguments(text):
    """Rows `| name | default | meaning |` below a heading of arguments."""
    _, _, rest = re.split(r"^## (Common a|A)rguments$", text, flags=re.M)
    section = re.split(r"^## ", rest, flags=re.M)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", section, re.M)
    return {name: default for name, default, meaning in rows if meaning}


def arguments_of(cls):
    """Own arguments of a class and their defaults."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    }


def check_block(name, number, block):
    """Runs a block by itself and compares what it says it prints."""
    printed = run_block(block, f"{name}.md, block {number}").splitlines()
    promised = promised_output(block)
    assert [line for line in printed if line in promised] == promised
