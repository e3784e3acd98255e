from mtlkeras.plot.figure import (
    axes_for,
    draw_series,
    figure_of,
    finish_epochs,
    in_task_order,
    legend_beside,
    logs_of,
    task_style,
)


def task_weights(history, ax=None):
    """The weights that a balancer or an aggregator gave to the tasks.

    Draws the keys `task_weight/<task>` of the logs over the epochs.

    Args:
        history: What `fit` returns, or its `history` dict.
        ax: `matplotlib.axes.Axes` to draw into. Defaults to `None`: a figure
            of its own.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the logs hold no task weights.

    Example:

    >>> history = {
    ...     "task_weight/left": [1.0, 0.8], "task_weight/right": [1.0, 1.2]
    ... }
    >>> figure = mtlkeras.plot.task_weights(history)
    >>> figure.axes[0].lines[1].get_ydata().tolist()
    [1.0, 1.2]
    """
    ax = axes_for(ax)
    logs, epochs = logs_of(history)
    prefix = "task_weight/"
    tasks = [key.removeprefix(prefix) for key in logs if key.startswith(prefix)]
    if not tasks:
        raise ValueError(
            f"The history must have keys `{prefix}<task>`, which are logged "
            "when task weights are. Received: a history with the keys "
            f"{sorted(logs)}"
        )
    for index, task in enumerate(in_task_order(history, tasks)):
        key = prefix + task
        draw_series(ax, epochs, key, logs[key], label=task, **task_style(index))
    finish_epochs(ax, "task weight")
    legend_beside(ax)
    return figure_of(ax)
