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
    if isinstance(given, (np.ndarray, np.generic)):
        given = given.tolist()
    values = list(given.values()) if isinstance(given, dict) else given
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


def check_positive(name, given):
    """As `check_per_task`, for numbers that must be greater than 0.

    Raises:
        ValueError: If one is not.
    """
    checked = check_per_task(name, given)
    values = checked.values() if isinstance(checked, dict) else checked
    if checked is not None and not np.all(np.asarray(list_of(values)) > 0):
        raise ValueError(
            f"Argument `{name}` must hold positive numbers. Received: "
            f"{name}={given!r}"
        )
    return checked


def list_of(values):
    return [values] if isinstance(values, float) else list(values)


def values_per_task(name, given, balancer, default=None):
    """A float64 array `[num_tasks]` from an argument that was checked.

    Args:
        name: Name of the argument, for error messages.
        given: The argument.
        balancer: The `LossBalancer`, which knows the tasks.
        default: Float for tasks that a dict leaves out, and for `None`.
            Defaults to `None`: a dict must name all tasks.

    Returns:
        A NumPy array, or `None` if there is neither argument nor default.
    """
    count, names = balancer.num_tasks, balancer.task_names
    if given is None:
        given = default
    if given is None:
        return None
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
                f"Names in `{name}` must be tasks of the model, which has the "
                f"tasks {list(names)}. Received unknown names: {unknown}"
            )
        left_out = [task for task in names if task not in given]
        if left_out and default is None:
            raise ValueError(
                f"A dict in `{name}` must have a number for every task. "
                f"Received none for {left_out}: {name}={given!r}"
            )
        given = [given.get(task, default) for task in names]
    if isinstance(given, list) and len(given) != count:
        raise ValueError(
            f"A list in `{name}` must have one number for each of the {count} "
            f"tasks. Received {len(given)} numbers: {name}={given!r}"
        )
    return np.broadcast_to(np.asarray(given, "float64"), (count,))
