"""Every public name is documented, and no other."""

import importlib
import re
from pathlib import Path

import pytest
from cases import PUBLIC

import mtlkeras

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    str(file.relative_to(DOCS)): file.read_text()
    for file in sorted(DOCS.rglob("*.md"))
}
# Folders whose names are all on one page that has another name.
ONE_PAGE = {"plot": "plots.md"}
# What is named `folder.name` in a code span.
NAMED = re.compile(r"`(mtlkeras\.)?([a-z]+)\.(\w+)(?:\([^`]*\))?`")


def named_on(page, whole=False):
    """`(folder, name)` of the public folders in the page's code spans."""
    return {
        (folder, name)
        for prefix, folder, name in NAMED.findall(PAGES[page])
        if folder in PUBLIC and (prefix or not whole)
    }


def pages_of(folder):
    """The pages on which names of a folder are explained."""
    own = ONE_PAGE.get(folder, f"{folder}.md")
    return [
        page for page in PAGES if page == own or page.startswith(f"{folder}/")
    ]


@pytest.mark.parametrize("folder", PUBLIC)
def test_documented_are_the_exported_names_which_the_cases_list(folder):
    documented = {
        name
        for page in pages_of(folder)
        for found, name in named_on(page, whole=True)
        if found == folder
    }
    module = importlib.import_module(f"mtlkeras.{folder}")
    assert documented == set(module.__all__) == set(PUBLIC[folder])


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_nothing_that_does_not_exist(page):
    for folder, name in named_on(page):
        module = importlib.import_module(f"mtlkeras.{folder}")
        assert hasattr(module, name), f"{folder}.{name}"


def test_every_folder_has_a_page_in_the_api_reference():
    """`automodule` lists what `__all__` does."""
    pages = {page for page in PAGES if page.startswith("api/")}
    pages.remove("api/README.md")
    folders = set(PUBLIC) | (set(mtlkeras.__all__) - {"__version__"})
    folders.discard("MultiTaskModel")  # in `models`
    assert pages == {f"api/{folder}.md" for folder in folders}
    for folder in folders - {"models"}:
        text = PAGES[f"api/{folder}.md"]
        assert f".. automodule:: mtlkeras.{folder}\n   :members:" in text
    classes = re.findall(
        r"^\.\. autoclass:: mtlkeras\.models\.(\w+)$",
        PAGES["api/models.md"],
        re.MULTILINE,
    )
    assert sorted(classes) == sorted(PUBLIC["models"])
