"""benchmarks/speed: it runs, and its page holds what its results say."""

import importlib
import json
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_page_holds_the_stored_results():
    page = importlib.import_module("benchmarks.speed.page")
    text = page.PAGE.read_text()
    tables = page.make_tables()
    assert len(tables) > 8
    assert page.put_tables(text, tables) == text
    # And a cell by hand: the step of `alternating` with 40 tasks.
    report = json.loads((page.RESULTS / "strategies.json").read_text())
    (row,) = [
        row
        for row in report["rows"]
        if (row["net"], row["tasks"], row["row"]) == ("mlp", 40, "alternating")
    ]
    cells = re.search(r"^\| `alternating`, .*$", text, re.MULTILINE)[0]
    heads = re.search(r"^\| strategy \| MLP.*$", text, re.MULTILINE)[0]
    column = [cell.strip() for cell in heads.split("|")].index("MLP T = 40")
    found = cells.split("|")[column].strip()
    assert found.strip("*") == f"{row['wall']['ratio']:.2f}"


def test_what_misses_its_target_is_bold():
    page = importlib.import_module("benchmarks.speed.page")
    assert page.limit_of("1.00 +- 0.02") == 1.02
    assert page.ratio(1.021, page.limit_of("1.00 +- 0.02")) == "1.02"
    assert page.ratio(1.026, page.limit_of("1.00 +- 0.02")) == "**1.03**"
    assert page.ratio(9.0, page.limit_of("")) == "9.00"


def test_a_page_without_a_marker_is_an_error():
    page = importlib.import_module("benchmarks.speed.page")
    with pytest.raises(ValueError, match="table: solvers"):
        page.put_tables("no marker", {"solvers": "a table"})


def test_a_short_run(tmp_path, capsys):
    part = importlib.import_module("benchmarks.speed.balancers")
    file = tmp_path / "balancers.json"
    part.main(
        [
            *["--quick", "--nets", "mlp", "--tasks", "2", "--rules", "slaw"],
            *["--seconds", "0.2", "--output", str(file)],
        ]
    )
    assert "slaw" in capsys.readouterr().out
    page = importlib.import_module("benchmarks.speed.page")
    table = page.make_tables(tmp_path)["balancers"]
    assert re.search(r"^\| `slaw`, over joint \| \**\d\.\d\d", table, re.M)
    assert "benchmarks.speed.measure" in sys.modules
