"""Checks of arguments that several data sets take."""

import numpy as np


def check_sizes(**sizes):
    for name, size in sizes.items():
        if not is_integer(size) or size < 1:
            raise ValueError(
                f"Argument `{name}` must be a positive integer. "
                f"Received: {name}={size!r}"
            )


def check_tasks(tasks, known):
    if not isinstance(tasks, (list, tuple)) or not tasks:
        raise ValueError(
            "Argument `tasks` must be a list or tuple of at least one name out "
            f"of {list(known)}. Received: tasks={tasks!r}"
        )
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ValueError(
            f"Argument `tasks` must name tasks out of {list(known)}. "
            f"Received: tasks={tasks!r}, with the unknown {unknown}"
        )
    if len(set(tasks)) < len(tasks):
        raise ValueError(
            "Argument `tasks` must name each task once. "
            f"Received: tasks={tasks!r}"
        )


def check_seed(seed):
    if not is_integer(seed) or seed < 0:
        raise ValueError(
            "Argument `seed` must be a non-negative integer. "
            f"Received: seed={seed!r}"
        )


def is_integer(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
