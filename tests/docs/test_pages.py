"""Pages that stand by themselves: their code runs, their links lead on."""

import re
from pathlib import Path

import pytest
from code_blocks import promised_output, python_blocks, run_block

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMES = ["metrics.md", "datasets/README.md", "datasets/from_tfds.md"]
NAMES += ["datasets/interleave.md", "plots.md", "callbacks.md"]
NAMES += ["maximum_roaming.md", "benchmarks.md"]
PAGES = {name: (DOCS / name).read_text() for name in NAMES}
BLOCKS = [
    pytest.param(name, number, block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(python_blocks(text), 1)
]


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "import tensorflow_datasets" in block:
        pytest.importorskip(
            "tensorflow_datasets",
            reason="needs TensorFlow Datasets: pip install 'mtlkeras[tfds]'",
        )
    printed = run_block(block, f"{name}, block {number}").splitlines()
    promised = promised_output(block)
    assert [line for line in printed if line in promised] == promised


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[name]):
        assert (DOCS / name).parent.joinpath(link).exists(), link
