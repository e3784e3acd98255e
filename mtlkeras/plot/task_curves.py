from mtlkeras.plot.figure import (
    GREY,
    axes_for,
    draw_series,
    figure_of,
    finish_epochs,
    in_task_order,
    legend_beside,
    logs_of,
    task_style,
)


def task_curves(history, metric="loss", tasks=None, validation=True, ax=None):
    """Curves of a metric over the epochs, one colour per task.

    Dashed in training, solid in validation.

    Args:
        history: What `fit` returns, or its `history` dict.
        metric: String: draws the keys `<task>_<metric>` and
            `val_<task>_<metric>`. Defaults to `"loss"`.
        tasks: List of task names. Defaults to `None`: all that have the
            metric.
        validation: Boolean, whether to draw validation curves where there are
            any. Defaults to `True`.
        ax: `matplotlib.axes.Axes` to draw into. Defaults to `None`: a figure
            of its own.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If no task has the metric.

    Example:

    >>> history = {
    ...     "left_loss": [1.0, 0.5], "val_left_loss": [1.1, 0.7],
    ...     "right_loss": [2.0, 0.9], "val_right_loss": [2.1, 1.2],
    ... }
    >>> figure = mtlkeras.plot.task_curves(history)
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['left, training', 'left, validation', 'right, training', ...]
    """
    logs, epochs = logs_of(history)
    suffix = f"_{metric}"
    found = [
        key.removesuffix(suffix)
        for key in logs
        if key.endswith(suffix) and not key.startswith("val_")
    ]
    tasks = in_task_order(history, found) if tasks is None else list(tasks)
    missing = [task for task in tasks if task not in found]
    if missing or not tasks:
        raise ValueError(
            f"The history must have keys `<task>{suffix}` for the tasks. "
            f"Received: tasks {missing or 'none'} that it lacks, while it has "
            f"the keys {sorted(logs)}"
        )
    # The legend of many tasks has several columns.
    ax = axes_for(ax, figsize=(6.0 + 1.2 * (len(tasks) // 15), 4.0))
    has_validation = validation and any(
        f"val_{task}{suffix}" in logs for task in tasks
    )
    handles = []
    for index, task in enumerate(tasks):
        style = task_style(index)
        for prefix, kind, line in (
            ("", "training", "--"),
            ("val_", "validation", "-"),
        ):
            key = f"{prefix}{task}{suffix}"
            if key not in logs or (prefix and not validation):
                continue
            draw_series(
                ax,
                epochs,
                key,
                logs[key],
                label=f"{task}, {kind}",
                linestyle=line if has_validation else "-",
                alpha=0.55 if has_validation and not prefix else 1.0,
                **style,
            )
        handles.append(_line(task, linestyle="-", markersize=3.5, **style))
    if has_validation:
        handles += [
            _line("validation", linestyle="-", color=GREY),
            _line("training", linestyle="--", color=GREY),
        ]
    finish_epochs(ax, metric)
    legend_beside(ax, handles)
    return figure_of(ax)


def _line(label, **style):
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)
