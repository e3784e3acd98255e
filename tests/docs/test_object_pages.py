"""Pages about one class each: complete, linked, true to the signatures.

A folder of such pages is a line in `FOLDERS`.
"""

import pytest
from object_pages import HEADINGS, ObjectPages
from pages import check_block

from mtlkeras import aggregators, balancers, strategies

FOLDERS = [
    ObjectPages(
        aggregators,
        "aggregator",
        aggregators.Aggregator,
        without_page=["Aggregator", "GramianAggregator"],
        without_id=["ema"],
    ),
    ObjectPages(
        balancers,
        "balancer",
        balancers.LossBalancer,
        without_page=["LearnedLossBalancer", "LossBalancer"],
    ),
    ObjectPages(
        strategies,
        "strategy",
        strategies.UpdateStrategy,
        without_page=["UpdateStrategy"],
        without_id=["grouped"],
    ),
]


def each(kind):
    """Parametrizes by folder and page: `"classes"`, or `"texts"` for all."""
    return pytest.mark.parametrize(
        ("pages", "page"),
        [
            pytest.param(pages, page, id=f"{pages.name}-{page}")
            for pages in FOLDERS
            for page in getattr(pages, kind)
        ],
    )


@pytest.mark.parametrize("pages", FOLDERS, ids=lambda pages: pages.name)
def test_every_class_has_a_page_that_the_index_links(pages):
    pages.check_complete()


@each("texts")
def test_links_lead_somewhere(pages, page):
    pages.check_links(page)


@each("classes")
def test_the_page_names_its_class_and_how_to_get_it(pages, page):
    pages.check_identity(page)


@each("texts")
def test_defaults_are_those_of_the_signature(pages, page):
    pages.check_arguments(page)


@each("classes")
def test_pages_have_the_same_headings(pages, page):
    pages.check_headings(page, HEADINGS)


@pytest.mark.parametrize(
    ("name", "number", "block"),
    [
        pytest.param(*block.values, id=f"{pages.name}-{block.id}")
        for pages in FOLDERS
        for block in pages.blocks
    ],
)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    """A fresh namespace for each: every block imports what it uses."""
    monkeypatch.chdir(tmp_path)
    check_block(name, number, block)
