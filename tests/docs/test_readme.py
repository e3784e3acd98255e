import re
from pathlib import Path

import pytest
from code_blocks import python_blocks, run_block

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch):
    """Blocks share their names, as a reader types them one after another."""
    blocks = python_blocks(README)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    printed = ""
    for number, block in enumerate(blocks, 1):
        printed += run_block(block, f"README block {number}", namespace)
    assert "joint" in printed
    assert "alternating" in printed


@pytest.mark.parametrize(
    "link", sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)))
)
def test_links_into_the_repository(link):
    assert (ROOT / link).exists()


def test_the_table_names_every_strategy_and_no_other():
    from mtlkeras import strategies

    table = re.findall(r"^\| `([a-z_]+)` \|", README, re.MULTILINE)
    assert table
    assert set(table) == set(strategies.ids())
