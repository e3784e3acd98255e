"""The pages of docs/aggregators: complete, linked, true to the signatures."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from code_blocks import promised_output, python_blocks, run_block

from mtlkeras import aggregators

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "aggregators"
CLASSES = {
    getattr(aggregators, name).__module__.rpartition(".")[2]: getattr(
        aggregators, name
    )
    for name in aggregators.__all__
    if name not in ("Aggregator", "GramianAggregator", "get", "ids")
}
PAGES = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.md"))}
INDEX = PAGES["README"]
BLOCKS = [
    pytest.param(name, number, block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(python_blocks(text), 1)
]


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


def test_every_rule_has_a_page_and_every_page_a_rule():
    assert set(CLASSES) == {*aggregators.ids(), "ema"}
    assert set(PAGES) - {"README"} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_index_links_the_page(name):
    assert f"]({name}.md)" in INDEX


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[name]):
        file, _, heading = link.partition("#")
        text = (FOLDER / file).read_text() if file else PAGES[name]
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", h).lower() for h in headings]
        if heading:
            assert heading in [a.replace(" ", "-") for a in anchors], link


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_names_its_class_and_how_to_get_it(name):
    cls, text = CLASSES[name], PAGES[name]
    assert f"mtlkeras.aggregators.{cls.__name__}" in text
    if name in aggregators.ids():
        assert f'`aggregator="{name}"`' in text
        assert type(aggregators.get(name)) is cls


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_the_signature(name):
    arguments = arguments_of(CLASSES[name])
    # A class without an `__init__` of its own has the common arguments only.
    common = arguments_of(aggregators.Aggregator)
    own = {k: v for k, v in arguments.items() if k not in common}
    check_defaults(table_of_arguments(PAGES[name]), own)


def test_common_defaults_are_those_of_the_base_class():
    check_defaults(
        table_of_arguments(INDEX), arguments_of(aggregators.Aggregator)
    )


@pytest.mark.parametrize("name", CLASSES)
def test_pages_have_the_same_headings(name):
    headings = re.findall(r"^## (.+)$", PAGES[name], re.MULTILINE)
    assert headings == [
        "Formula",
        "When to choose it",
        "Cost and memory",
        "Arguments",
        "Example",
        "Edge cases",
        "Departures",
        "References",
    ]
    assert python_blocks(PAGES[name])
    assert re.search(r"\]\(https://\S+\)", PAGES[name])


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    """A fresh namespace for each: every block imports what it uses."""
    monkeypatch.chdir(tmp_path)
    printed = run_block(block, f"{name}.md, block {number}").splitlines()
    promised = promised_output(block)
    assert [line for line in printed if line in promised] == promised
