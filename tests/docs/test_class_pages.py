"""Pages about one class each that has no id: complete, linked, running."""

import pytest
from pages import Pages, arguments_of, check_block

from mtlkeras import callbacks, layers

HEADINGS = {
    "callbacks": [
        "What it does",
        "When to choose it",
        "Arguments",
        "Example",
        "Edge cases",
        "References",
    ],
    "layers": [
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
}
MODULES = {"callbacks": callbacks, "layers": layers}
PAGES = {folder: Pages(folder) for folder in MODULES}
# folder -> name of the page -> class
CLASSES = {
    folder: {
        cls.__module__.rpartition(".")[2]: cls
        for cls in (getattr(module, name) for name in module.__all__)
    }
    for folder, module in MODULES.items()
}


def each(found):
    """Parametrizes by folder and page."""
    return pytest.mark.parametrize(
        ("folder", "page"),
        [
            pytest.param(folder, page, id=f"{folder}-{page}")
            for folder in MODULES
            for page in found(folder)
        ],
    )


@pytest.mark.parametrize("folder", MODULES)
def test_every_class_has_a_page_and_every_page_a_class(folder):
    PAGES[folder].check_names(CLASSES[folder])


@each(lambda folder: PAGES[folder].texts)
def test_links_lead_somewhere(folder, page):
    PAGES[folder].check_links(page)


@each(CLASSES.get)
def test_the_page_names_its_class(folder, page):
    name = CLASSES[folder][page].__name__
    assert f"`mtlkeras.{folder}.{name}`" in PAGES[folder].texts[page]


@each(CLASSES.get)
def test_defaults_are_those_of_the_signature(folder, page):
    PAGES[folder].check_defaults(page, arguments_of(CLASSES[folder][page]))


@each(CLASSES.get)
def test_pages_have_the_same_headings(folder, page):
    PAGES[folder].check_headings(page, HEADINGS[folder])


@pytest.mark.parametrize(
    ("name", "number", "block"),
    [
        pytest.param(*block.values, id=f"{folder}-{block.id}")
        for folder in MODULES
        for block in PAGES[folder].blocks
    ],
)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    """A fresh namespace for each: every block imports what it uses."""
    monkeypatch.chdir(tmp_path)
    check_block(name, number, block)
