"""The pages of docs/aggregators: complete, linked, true to the signatures."""

import pytest
from pages import Pages, arguments_of, check_block

from mtlkeras import aggregators

PAGES = Pages("aggregators")
CLASSES = {
    getattr(aggregators, name).__module__.rpartition(".")[2]: getattr(
        aggregators, name
    )
    for name in aggregators.__all__
    if name not in ("Aggregator", "GramianAggregator", "get", "ids")
}


def test_every_rule_has_a_page_and_every_page_a_rule():
    assert set(CLASSES) == {*aggregators.ids(), "ema"}
    PAGES.check_names(CLASSES)


@pytest.mark.parametrize("name", PAGES.texts)
def test_links_lead_somewhere(name):
    PAGES.check_links(name)


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_names_its_class_and_how_to_get_it(name):
    cls, text = CLASSES[name], PAGES.texts[name]
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
    PAGES.check_defaults(name, own)


def test_common_defaults_are_those_of_the_base_class():
    PAGES.check_defaults("README", arguments_of(aggregators.Aggregator))


@pytest.mark.parametrize("name", CLASSES)
def test_pages_have_the_same_headings(name):
    PAGES.check_headings(
        name,
        [
            "Formula",
            "When to choose it",
            "Cost and memory",
            "Arguments",
            "Example",
            "Edge cases",
            "Departures",
            "References",
        ],
    )


@pytest.mark.parametrize(("name", "number", "block"), PAGES.blocks)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    """A fresh namespace for each: every block imports what it uses."""
    monkeypatch.chdir(tmp_path)
    check_block(name, number, block)
