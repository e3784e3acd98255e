"""What the user may give to `compile(optimizer=...)`."""

import keras

from mtlkeras.optimizers.per_task_optimizer import PerTaskOptimizer, innermost


def check_unclaimed(optimizer, variables):
    """Refuses an optimizer whose state belongs to another model.

    Args:
        optimizer: A Keras optimizer.
        variables: The model's variables.

    Raises:
        ValueError: If the optimizer holds state for other variables.
    """
    if not optimizer.built:
        return
    mine = {id(v) for v in variables}
    held = innermost(optimizer)._trainable_variables
    foreign = [v.path for v in held if id(v) not in mine]
    if foreign:
        raise ValueError(
            "The optimizer was already built for another model: it holds "
            f"state for {foreign[:3]}{'...' if foreign[3:] else ''}. Pass a "
            f"new optimizer, e.g. `keras.optimizers.{type(optimizer).__name__}"
            "(...)`."
        )


def as_template(optimizer, scale_loss):
    """The optimizer to clone, with loss scaling inside of every clone.

    Args:
        optimizer: A Keras optimizer; of a `PerTaskOptimizer` its template.
        scale_loss: Whether float16 asks for a dynamic loss scale.
    """
    if isinstance(optimizer, PerTaskOptimizer):
        return optimizer.template()
    scaling = keras.optimizers.LossScaleOptimizer
    if scale_loss and not isinstance(optimizer, scaling):
        return scaling(optimizer, name="loss_scale_optimizer")
    return optimizer


def fits(container, slots, variables):
    """Whether a given container may go on as it is.

    Args:
        container: A `PerTaskOptimizer`.
        slots: The slots that the model needs, or `None` for any.
        variables: The model's trainable variables.
    """
    if slots is not None and container.slots not in (None, slots):
        return False
    if not container.built:
        return True
    held = [id(v) for v in container._trainable_variables]
    return held == [id(v) for v in variables]
