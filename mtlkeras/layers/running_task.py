"""Which task a layer runs for, without threading it through `call`."""

import contextlib
import threading

# Replicas of a distributed model are traced in threads of their own.
_running = threading.local()


@contextlib.contextmanager
def running_task(task):
    """In this scope layers that depend on the task run for `task`.

    Args:
        task: Index of the task, a Python integer or a scalar integer tensor.
    """
    before = current_task()
    _running.task = task
    try:
        yield
    finally:
        _running.task = before


def current_task():
    """Index of the task that runs, or `None` outside of a scope."""
    return getattr(_running, "task", None)


def task_of_call(layer, task, num_tasks):
    """The task that a layer's call is for.

    Args:
        layer: The layer, for error messages.
        task: What was passed to `call`, or `None`.
        num_tasks: How many tasks the layer knows.

    Raises:
        ValueError: If it is not known, or there is no such task.
    """
    if task is None:
        task = current_task()
    if task is None:
        raise ValueError(
            f"The layer '{layer.name}' ({type(layer).__name__}) does something "
            "else for every task, and must know for which one it runs. A "
            "`mtlkeras.MultiTaskModel` made of inputs and outputs tells it by "
            "itself; elsewhere pass the index: `layer(inputs, task=0)`. "
            "Received: task=None"
        )
    if isinstance(task, int) and not 0 <= task < num_tasks:
        raise ValueError(
            f"The layer '{layer.name}' ({type(layer).__name__}) was made for "
            f"{num_tasks} tasks, so `task` must be from 0 to {num_tasks - 1}. "
            f"Received: task={task}. Give it as many tasks as the model has "
            "outputs."
        )
    return task
