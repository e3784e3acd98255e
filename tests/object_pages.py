"""What the pages of docs/<folder> have in common, one for each class."""

import ast
import inspect
import re
from pathlib import Path

from code_blocks import python_blocks

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADINGS = [
    "Formula",
    "When to choose it",
    "Cost and memory",
    "Arguments",
    "Example",
    "Edge cases",
    "Departures",
    "References",
]


class ObjectPages:
    """A folder of pages, and the classes that they are about.

    Args:
        module: Module of the package, such as `mtlkeras.aggregators`; the
            folder has its name.
        argument: Name of the argument of `compile` that takes its ids.
        base: The class with the arguments that `README.md` explains.
        without_page: Names that the module exports and no page is about.
        without_id: Names of the files of classes that have no id.
    """

    def __init__(self, module, argument, base, without_page, without_id=()):
        self.module = module
        self.name = module.__name__.rpartition(".")[2]
        self.argument = argument
        self.base = base
        self.without_id = set(without_id)
        self.folder = DOCS / self.name
        self.texts = {
            file.stem: file.read_text()
            for file in sorted(self.folder.glob("*.md"))
        }
        self.classes = {}
        for name in set(module.__all__) - {"get", "ids", *without_page}:
            found = getattr(module, name)
            self.classes[found.__module__.rpartition(".")[2]] = found
        self.classes = dict(sorted(self.classes.items()))

    def blocks(self):
        """`(page, number, block)` of all Python blocks."""
        for page, text in self.texts.items():
            for number, block in enumerate(python_blocks(text), 1):
                yield page, number, block

    def check_complete(self):
        ids = set(self.module.ids())
        assert set(self.classes) == ids | self.without_id
        assert set(self.texts) - {"README"} == set(self.classes)
        for page in self.classes:
            assert f"]({page}.md)" in self.texts["README"]

    def check_links(self, page):
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", self.texts[page]):
            file, _, heading = link.partition("#")
            target = self.folder / (file or f"{page}.md")
            headings = re.findall(
                r"^#+ (.+)$", target.read_text(), re.MULTILINE
            )
            anchors = [re.sub(r"[^\w -]", "", h).lower() for h in headings]
            if heading:
                assert heading in [a.replace(" ", "-") for a in anchors], link

    def check_names(self, page):
        """The page says what its class is and how to get it."""
        cls, text = self.classes[page], self.texts[page]
        assert f"mtlkeras.{self.name}.{cls.__name__}" in text
        if page not in self.without_id:
            assert f'`{self.argument}="{page}"`' in text
            assert type(self.module.get(page)) is cls

    def check_headings(self, page):
        text = self.texts[page]
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
        assert python_blocks(text)
        assert re.search(r"\]\(https://\S+\)", text)

    def check_arguments(self, page):
        """The table has the arguments and defaults of the signature."""
        common = arguments_of(self.base)
        if page == "README":
            check_defaults(table_of_arguments(self.texts[page]), common)
            return
        # A class without an `__init__` of its own has the common ones only.
        arguments = arguments_of(self.classes[page])
        own = {k: v for k, v in arguments.items() if k not in common}
        check_defaults(table_of_arguments(self.texts[page]), own)


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


def check_defaults(table, arguments):
    assert set(table) == set(arguments)
    for name, default in arguments.items():
        if default is inspect.Parameter.empty:
            assert table[name] == "required", name
            continue
        found = ast.literal_eval(table[name].strip("`"))
        assert type(found) is type(default), name
        assert found == default, name
