"""The pages of docs/layers: complete, linked, true to the signatures."""

import pytest
from pages import Pages, arguments_of, check_block

from mtlkeras import layers

PAGES = Pages("layers")
CLASSES = {
    getattr(layers, name).__module__.rpartition(".")[2]: getattr(layers, name)
    for name in layers.__all__
}


def test_every_layer_has_a_page_and_every_page_a_layer():
    PAGES.check_names(CLASSES)


@pytest.mark.parametrize("name", PAGES.texts)
def test_links_lead_somewhere(name):
    PAGES.check_links(name)


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_names_its_class(name):
    assert f"mtlkeras.layers.{CLASSES[name].__name__}`" in PAGES.texts[name]


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_the_signature(name):
    PAGES.check_defaults(name, arguments_of(CLASSES[name]))


@pytest.mark.parametrize("name", CLASSES)
def test_pages_have_the_same_headings(name):
    PAGES.check_headings(
        name,
        [
            "Formula",
            "When to choose it",
            "Cost and memory",
            "Inputs and outputs",
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
