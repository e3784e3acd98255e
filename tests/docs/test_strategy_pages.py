"""The pages of docs/strategies: true to the signatures, with code that runs."""

import pytest
from pages import Pages, arguments_of, check_block

from mtlkeras import strategies

PAGES = Pages("strategies")
CLASSES = {"affinity_groups": strategies.AffinityGroups}


def test_the_index_names_every_strategy_and_page():
    PAGES.check_names(CLASSES)
    for name in strategies.ids():
        assert f"`{name}`" in PAGES.index


@pytest.mark.parametrize("name", PAGES.texts)
def test_links_lead_somewhere(name):
    PAGES.check_links(name)


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_the_signature(name):
    PAGES.check_defaults(name, arguments_of(CLASSES[name]))


@pytest.mark.parametrize(("name", "number", "block"), PAGES.blocks)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_block(name, number, block)
