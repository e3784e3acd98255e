import contextlib
import functools

import keras
from keras import ops


def variable_state(optimizer, variable):
    """What an optimizer, without loss scaling, keeps for one variable.

    Keras's optimizers keep it in lists in the order of their variables.

    Returns:
        List of `keras.Variable`.
    """
    index = optimizer._get_variable_index(variable)
    count = len(optimizer._trainable_variables)
    lists = [
        value
        for name, value in vars(optimizer).items()
        if isinstance(value, list)
        and len(value) == count
        and name not in ("_variables", "_trainable_variables")
    ]
    return [
        state[index]
        for state in lists
        if isinstance(state[index], keras.Variable)
    ]


@contextlib.contextmanager
def at_rest(optimizer, resting, update_if):
    """Whatever happens in this scope, these variables and their state rest.

    Args:
        optimizer: An optimizer without loss scaling.
        resting: List of `(rests, variables)`: the variables and what the
            optimizer keeps for them have their old values at the end where
            the boolean tensor `rests` is true.
        update_if: Function from `(condition, update, variables)` that runs an
            update where the condition holds.
    """
    # A backend's own update may know how to leave a variable as it is.
    step = optimizer._backend_update_step
    holding = getattr(step, "holding", contextlib.nullcontext)
    with holding(resting) as left, put_back(optimizer, left, update_if):
        yield


@contextlib.contextmanager
def put_back(optimizer, resting, update_if):
    """`at_rest` for any update: what it changed is undone at the end."""
    kept = [
        (rests, kept, ops.copy(kept))
        for rests, variables in resting
        for v in variables
        for kept in (v, *variable_state(optimizer, v))
    ]
    yield
    if not kept:
        return

    def restore():
        for rests, variable, before in kept:
            variable.assign(ops.where(rests, before, variable))

    # In one branch, since hardly ever a task rests.
    any_rests = functools.reduce(ops.logical_or, [r for r, _ in resting])
    update_if(any_rests, restore, [variable for _, variable, _ in kept])
