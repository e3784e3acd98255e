"""examples/unitary_scalarization.py: equal budgets, chosen on validation."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "unitary_scalarization.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("unitary", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_gets_the_same_trials(example, tmp_path, monkeypatch):
    tried = []
    train = example.train

    def record(method, setting, data, seed, epochs):
        tried.append((method, tuple(setting.values()), seed))
        return train(method, setting, data, seed, epochs)

    monkeypatch.setattr(example, "train", record)
    # The baseline and one rival: the others differ in an argument of `fit`.
    names = list(example.METHODS)[:2]
    methods = {name: example.METHODS[name] for name in names}
    monkeypatch.setattr(example, "METHODS", methods)
    options = example.parse(["--quick", "--trials", "2"])
    options.rows, options.epochs, options.seeds = 200, 1, 1
    results = example.compare(options)
    assert [r["method"] for r in results] == names
    by_method = {
        name: [(setting, seed) for m, setting, seed in tried if m == name]
        for name in names
    }
    searches = [found[:2] for found in by_method.values()]
    assert searches[0] == searches[1]
    assert len(set(searches[0])) == 2
    for result in results:
        settings = [setting for setting, _ in by_method[result["method"]]]
        best = settings[int(np.argmax(result["trials"]))]
        assert tuple(result["setting"].values()) == best
        assert settings[2] == best  # what the test set has seen
        assert result["test"].shape == (1, len(example.TASKS))
    example.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_all_methods_are_arguments_of_fit(example):
    from mtlkeras import aggregators, balancers, strategies

    for arguments in example.METHODS.values():
        strategies.get(arguments.get("strategy"))
        aggregators.get(arguments.get("aggregator"))
        balancers.get(arguments.get("balancer"))
    assert next(iter(example.METHODS.values())) == {}
