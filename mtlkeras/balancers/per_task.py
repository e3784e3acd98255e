"""Arguments with one value per task: numbers, lists and dicts by name."""

import keras
import numpy as np


def check_per_task(name, given):
    """An argument as it is kept and saved: a float, a list, a dict or `None`.

    Raises:
        ValueError: If it holds anything but finite numbers.
    """
    if given is None:
        return None
    if isinstance(given, np.ndarray):
        given = given.tolist()
    values = given
    if isinstance(given, dict):
        values = list(given.values())
    try:
        array = np.asarray(keras.tree.map_structure(float, values), "float64")
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.ndim > 1 or not np.all(np.isfinite(array)):
        raise ValueError(
            f"Argument `{name}` must be a number, a list with one number per "
            f"task or a dict from task names to numbers. Received: "
            f"{name}={given!r}"
        )
    if isinstance(given, dict):
        return dict(zip(given, array.tolist(), strict=True))
    return array.tolist()


def values_per_task(name, given, balancer, default=0.0):
    """A float64 array `[num_tasks]` from an argument that was checked.

    Args:
        name: Name of the argument, for error messages.
        given: The argument; tasks not in a dict have the default.
        balancer: The `LossBalancer`, which knows the tasks.
        default: Float.
    """
    count, names = balancer.num_tasks, balancer.task_names
    if given is None:
        given = default
    if isinstance(given, dict):
        if names is None:
            raise ValueError(
                f"Argument `{name}` by task name needs names: put the "
                f"{type(balancer).__name__} in force in a model, or call "
                f"`bind(task_names)` first. Received: {name}={given!r}"
            )
        unknown = [key for key in given if key not in names]
        if unknown:
            raise ValueError(
                f"The keys of `{name}` must be tasks of the model, which has "
                f"the tasks {list(names)}. Received unknown keys: {unknown}"
            )
        given = [given.get(task, default) for task in names]
    if isinstance(given, list) and len(given) != count:
        raise ValueError(
            f"A list in `{name}` must have one number for each of the {count} "
            f"tasks. Received {len(given)} numbers: {name}={given!r}"
        )
    return np.broadcast_to(np.asarray(given, "float64"), (count,))
