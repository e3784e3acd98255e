"""examples/tune.py: a search, its table, its picture, and going on with it."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("keras_tuner", reason="needs the extra `tuner`")

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "tune.py"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner"),
    pytest.mark.filterwarnings("ignore:With optimizer slots:UserWarning"),
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("tune", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def search(example, folder, capsys, trials):
    picture = folder / "trials.png"
    picture.unlink(missing_ok=True)
    arguments = ["--rows", "256", "--epochs", "1", "--trials", str(trials)]
    example.main(
        [*arguments, f"--folder={folder / 'tune'}", f"--output={picture}"]
    )
    assert picture.stat().st_size > 10_000
    return capsys.readouterr().out


def table_of(printed):
    """The rows below the header, as lists of cells."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if "val_delta_m" in line)
    stop = next(i for i, line in enumerate(lines) if "Wrote" in line)
    return [line.split() for line in lines[start + 1 : stop]]


def test_a_search_and_one_that_goes_on(example, tmp_path, capsys, monkeypatch):
    # Two of the four, since every model is traced anew.
    tasks = {"left": 10, "larger": 3}
    monkeypatch.setattr(example, "TASKS", tasks)
    printed = search(example, tmp_path, capsys, 1)
    (row,) = table_of(printed)
    assert len(row) == 6 + len(tasks)
    assert "The best of 1 trials" in printed
    for task in tasks:
        assert f"{task}: test error 0." in printed
    later = table_of(search(example, tmp_path, capsys, 2))
    assert len(later) == 2
    assert row in later
    scores = [float(cells[0]) for cells in later]
    assert scores == sorted(scores)


def test_all_choices_are_ids(example):
    options = example.parse(["--quick"])
    assert (options.trials, options.epochs) == (12, 2)
    assert set(example.TUNERS) == {"random", "bayesian", "hyperband"}
