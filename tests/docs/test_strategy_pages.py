"""The pages of docs/strategies: true to the signatures, with code that runs."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from code_blocks import promised_output, python_blocks, run_block

from mtlkeras import strategies

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "strategies"
PAGES = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.md"))}


def strategy_class(name):
    return next(
        getattr(strategies, cls)
        for cls in strategies.__all__
        if getattr(strategies, cls).__module__.endswith(f".{name}")
    )


@pytest.mark.parametrize("name", PAGES)
def test_page(name, tmp_path, monkeypatch):
    cls, text = strategy_class(name), PAGES[name]
    assert f'`strategy="{name}"`' in text
    assert f"mtlkeras.strategies.{cls.__name__}" in text
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| .+ \|$", text, re.M)
    assert {key: ast.literal_eval(value) for key, value in rows} == {
        parameter.name: parameter.default
        for parameter in inspect.signature(cls).parameters.values()
    }
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        assert (FOLDER / link).exists(), link
    # Where pictures are drawn to a file.
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    assert python_blocks(text)
    for number, block in enumerate(python_blocks(text), 1):
        printed = run_block(block, f"{name}.md, block {number}").splitlines()
        promised = promised_output(block)
        assert [line for line in printed if line in promised] == promised
