"""Result files: one JSON file per experiment and method."""

import json
import os
from pathlib import Path

from benchmarks.quality.methods import METHODS
from benchmarks.quality.schema import check_result

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path("build") / "quality_smoke"


def path_of(folder, config, method):
    return Path(folder) / config["name"] / f"{method}.json"


def read(folder, config, method):
    """The stored result of a method, or `None`."""
    path = path_of(folder, config, method)
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    check_result(result)
    return result


def read_matching(folder, config, method):
    """As `read`; raises for results of another config or definition."""
    result = read(folder, config, method)
    if result and (
        not same_run(result["config"], config)
        or result["definition"] != METHODS[method]
    ):
        raise ValueError(
            f"{path_of(folder, config, method)} holds results of another "
            "config or definition of the method. Delete it, or pass --fresh."
        )
    return result


def same_run(stored, config):
    """Whether two configs lead to the same cells of a method."""
    # More methods or trials add cells, and words change none.
    free = {"methods", "about", "table", "acceptance", "trials", "seeds"}
    return {k: v for k, v in stored.items() if k not in free} == {
        k: v for k, v in config.items() if k not in free
    }


def write(folder, config, result):
    """Writes a result in one go: an interrupted run leaves a whole file."""
    check_result(result)
    path = path_of(folder, config, result["method"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
