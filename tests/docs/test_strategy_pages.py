"""The pages of docs/strategies: true to the signatures, with code that runs."""

import re

import pytest
from code_blocks import promised_output, run_block
from object_pages import ObjectPages

from mtlkeras import strategies

# Those that are more than a few lines of the README.
WITH_PAGE = ["AffinityGroups"]
PAGES = ObjectPages(
    strategies,
    "strategy",
    object,
    without_page=set(strategies.__all__) - set(WITH_PAGE),
)


def test_pages_are_about_strategies():
    assert set(PAGES.texts) == set(PAGES.classes)


@pytest.mark.parametrize("page", PAGES.classes)
def test_page(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES.texts[page]):
        assert (PAGES.folder / link).exists(), link
    PAGES.check_names(page)
    PAGES.check_arguments(page)
    PAGES.check_headings(page)


@pytest.mark.parametrize(("page", "number", "block"), list(PAGES.blocks()))
def test_blocks_run(page, number, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run_block(block, f"{page}.md, block {number}").splitlines()
    promised = promised_output(block)
    assert promised
    assert [line for line in printed if line in promised] == promised
