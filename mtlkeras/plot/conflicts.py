import numpy as np

from mtlkeras.plot.figure import (
    COLORS,
    axes_for,
    draw_series,
    figure_of,
    finish_epochs,
    legend_beside,
    logs_of,
    task_style,
)

MOST_LINES = 15


def conflicts(history, pairs=None, ax=None):
    """Cosines between the gradients of tasks; below 0 they conflict.

    Draws the keys `cosine/<a>/<b>` of the logs over the epochs: a line for
    each pair of tasks, or, for more than 15 pairs, their median and the ranges
    that hold the middle 80 % and all of them.

    Args:
        history: What `fit` returns, or its `history` dict.
        pairs: List of pairs of task names, in any order. Defaults to `None`:
            all.
        ax: `matplotlib.axes.Axes` to draw into. Defaults to `None`: a figure
            of its own.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the logs hold no cosines, or not those of a pair.

    Example:

    >>> history = {"cosine/left/right": [0.4, -0.1, -0.3]}
    >>> figure = mtlkeras.plot.conflicts(history)
    >>> figure.axes[0].get_ylabel()
    'cosine of gradients'
    """
    ax = axes_for(ax)
    logs, epochs = logs_of(history)
    keys = [key for key in logs if key.startswith("cosine/")]
    if pairs is not None:
        keys = [
            next((key for key in names_of(pair) if key in logs), None)
            for pair in pairs
        ]
    if not keys or None in keys:
        raise ValueError(
            "The history must have keys `cosine/<task>/<task>`, which are "
            "logged when conflicts are monitored. Received: "
            f"pairs={pairs!r}, and a history with the keys {sorted(logs)}"
        )
    if len(keys) <= MOST_LINES:
        for index, key in enumerate(keys):
            label = " / ".join(key.split("/")[1:])
            draw_series(
                ax, epochs, key, logs[key], label=label, **task_style(index)
            )
    else:
        table = np.array([logs[key] for key in keys])  # [pairs, epochs]
        for low, high, alpha, name in (
            (0, 100, 0.15, "all pairs"),
            (10, 90, 0.35, "middle 80 %"),
        ):
            ax.fill_between(
                epochs,
                *np.nanpercentile(table, [low, high], axis=0),
                color=COLORS[0],
                alpha=alpha,
                linewidth=0,
                label=name,
            )
        draw_series(
            ax,
            epochs,
            "median",
            np.nanmedian(table, axis=0),
            color=COLORS[0],
            label=f"median of {len(keys)} pairs",
        )
    ax.axhspan(-1, 0, color=COLORS[1], alpha=0.08, linewidth=0)
    ax.axhline(0, color="#555555", linewidth=0.8)
    ax.set_ylim(-1, 1)
    ax.annotate(
        "conflict",
        (0.01, -0.98),
        xycoords=("axes fraction", "data"),
        color="#9A4300",
        fontsize="small",
    )
    finish_epochs(ax, "cosine of gradients")
    legend_beside(ax)
    return figure_of(ax)


def names_of(pair):
    first, second = pair
    return f"cosine/{first}/{second}", f"cosine/{second}/{first}"
