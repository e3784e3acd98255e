"""The pages of docs/examples: their code runs, what they show is there."""

import re
from pathlib import Path

import pytest
from code_blocks import promised_output, python_blocks, run_block

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "examples"
FILES = sorted(FOLDER.glob("*.md"))
PAGES = {file.stem: file.read_text() for file in FILES}
EXAMPLES = sorted(set(PAGES) - {"README"})
BLOCKS = [
    pytest.param(name, number, block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(python_blocks(text), 1)
]


def test_there_are_pages():
    assert {"dense_prediction", "glaucoma"} <= set(PAGES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_is_of_an_example(name):
    assert f"examples/{name}.py" in PAGES[name]
    assert (ROOT / "examples" / f"{name}.py").exists()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", PAGES[name]):
        assert (FOLDER / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("name", PAGES)
def test_pictures_are_small(name):
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGES[name])
    assert pictures
    for picture in pictures:
        assert 10_000 < (FOLDER / picture).stat().st_size < 300_000


@pytest.mark.parametrize("name", PAGES)
def test_options_in_commands_exist(name):
    for command in re.findall(r"^python examples/.+$", PAGES[name], re.M):
        script, *rest = command.partition("#")[0].split()[1:]
        source = (ROOT / script).read_text()
        for option in rest:
            if option.startswith("--"):
                assert f'"{option}"' in source, command


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS)
def test_blocks_run_on_their_own(name, number, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run_block(block, f"{name}.md, block {number}").splitlines()
    promised = promised_output(block)
    assert [line for line in printed if line in promised] == promised
