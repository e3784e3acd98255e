"""The problems, one file each, imported only where they run."""

import functools
import importlib
import json


def find(name):
    """The class of a problem: `multi_digits` is `MultiDigits` in its file."""
    module = importlib.import_module(f"benchmarks.quality.problems.{name}")
    return getattr(module, "".join(p.capitalize() for p in name.split("_")))


def get(name, arguments):
    """The problem, made once per process: data are loaded once."""
    return _get(name, json.dumps(arguments, sort_keys=True))


@functools.lru_cache(maxsize=1)
def _get(name, arguments):
    return find(name)(**json.loads(arguments))


def describe(name, arguments):
    """`(task names, None)`, or `(None, why the problem cannot run here)`."""
    reason = find(name).missing_data(**arguments)
    if reason:
        return None, reason
    return list(get(name, arguments).task_names), None
