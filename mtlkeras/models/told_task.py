import keras

from mtlkeras.models.task_graph import is_functional
from mtlkeras.models.task_structure import depends_on_task


def told_task(model, task):
    """The same layers in a model that tells them for which task they run.

    Args:
        model: A functional model with layers that depend on the task.
        task: Index of the task.
    """

    def inner(layer):
        nested = is_functional(layer) and depends_on_task(layer)
        return told_task(layer, task) if nested else layer

    def call(layer, *args, **kwargs):
        if getattr(layer, "depends_on_task", False):
            kwargs["task"] = task
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        model, clone_function=inner, call_function=call
    )
