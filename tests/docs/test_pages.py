"""Pages that stand by themselves: their code runs, their links lead on."""

import re

import pytest
from code_blocks import promised_output, python_blocks, run_block
from pages import DOCS

# What other files here test: pages about classes, guides, examples.
TESTED = {"aggregators", "balancers", "callbacks", "examples", "guides"}
TESTED |= {"layers", "strategies"}
PAGES = {
    str(file.relative_to(DOCS)): file.read_text()
    for file in sorted(DOCS.rglob("*.md"))
    if file.relative_to(DOCS).parts[0] not in TESTED
}
# Pages whose blocks go on where the ones before ended.
STORIES = ["add_your_own.md", "how_it_works.md", "tour.md"]
STORIES += ["migration/torchjd.md"]
BLOCKS = [
    pytest.param(name, number, block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    if name not in STORIES
    for number, block in enumerate(python_blocks(text), 1)
]


def check_block(name, number, block, namespace=None):
    printed = run_block(block, f"{name}, block {number}", namespace)
    promised = promised_output(block)
    assert [s for s in printed.splitlines() if s in promised] == promised


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "import tensorflow_datasets" in block:
        pytest.importorskip(
            "tensorflow_datasets",
            reason="needs TensorFlow Datasets: pip install 'mtlkeras[tfds]'",
        )
    check_block(name, number, block)


@pytest.mark.parametrize("name", STORIES)
def test_blocks_of_a_story_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": name}
    for number, block in enumerate(python_blocks(PAGES[name]), 1):
        check_block(name, number, block, namespace)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    prose = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose):
        assert (DOCS / name).parent.joinpath(link).exists(), link
