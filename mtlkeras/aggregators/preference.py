"""The argument `preference` that several rules have."""

import numpy as np
from keras import ops


def check_preference(preference):
    """A list of floats, or `None`."""
    if preference is None:
        return None
    values = np.asarray(preference, dtype="float64")
    if values.ndim != 1 or (values < 0).any() or not values.sum() > 0:
        raise ValueError(
            "Argument `preference` must hold one non-negative number per task, "
            f"with a positive sum. Received: preference={preference!r}"
        )
    return values.tolist()


def preference_weights(preference, num_tasks, live=None):
    """The preference as a tensor of dtype float64; `1 / T` each for `None`.

    Args:
        preference: A list as `check_preference` returns it, or `None`.
        num_tasks: Integer.
        live: Boolean tensor of shape `[num_tasks]`, or `None`. The live tasks
            share the weight of the others in proportion to their own.

    Returns:
        A tensor of shape `[num_tasks]`.
    """
    if preference is None:
        preference = [1.0 / num_tasks] * num_tasks
    if len(preference) != num_tasks:
        raise ValueError(
            "Argument `preference` must hold one number for each of the "
            f"{num_tasks} tasks. Received: preference={preference!r}"
        )
    weights = ops.convert_to_tensor(preference, "float64")
    if live is None:
        return weights
    kept = ops.where(live, weights, 0.0)
    return kept * ops.divide_no_nan(ops.sum(weights), ops.sum(kept))
