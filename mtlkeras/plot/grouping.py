import numpy as np

from mtlkeras.plot.figure import axes_for, figure_of

MOST_NUMBERS = 12  # tasks, for numbers in the cells to be readable


def grouping(matrix, groups, names, label="affinity", ax=None):
    """A matrix over pairs of tasks as a heat map, with groups outlined.

    Rows and columns are reordered so that groups stand together.

    Args:
        matrix: Array of shape `[num_tasks, num_tasks]`, e.g. affinities or
            cosines; row and column are tasks in the order of `names`.
        groups: Tuple of tuples of task names, as
            `model.update_strategy.groups`; every task in exactly one.
        names: List of task names.
        label: String, what the numbers are. Defaults to `"affinity"`.
        ax: `matplotlib.axes.Axes` to draw into. Defaults to `None`: a figure
            of its own.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the matrix is not square over the names, or the groups
            are no partition of them.

    Example:

    >>> affinity = np.array([[1.0, -0.2, 0.5], [-0.1, 1.0, 0.0], [0.4, 0.1, 1]])
    >>> groups = (("left", "sum"), ("right",))
    >>> names = ["left", "right", "sum"]
    >>> figure = mtlkeras.plot.grouping(affinity, groups, names)
    >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
    ['left', 'sum', 'right']
    """
    names = list(names)
    matrix = np.asarray(matrix, "float64")
    if matrix.shape != (len(names), len(names)) or not names:
        raise ValueError(
            "Argument `matrix` must have a row and a column for each of the "
            f"{len(names)} tasks {names}. Received: matrix of shape "
            f"{matrix.shape}"
        )
    order = [name for group in groups for name in group]
    if sorted(order) != sorted(names) or not all(groups):
        raise ValueError(
            f"Argument `groups` must hold each of the tasks {names} in exactly "
            f"one group, none empty. Received: groups={groups!r}"
        )
    size = max(3.5, 1.8 + 0.42 * len(names))
    ax = axes_for(ax, figsize=(size * 1.15, size))
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    index = [names.index(name) for name in order]
    matrix = matrix[np.ix_(index, index)]
    image = ax.imshow(matrix, **color_scale(matrix))
    ticks = range(len(order))
    ax.set_xticks(ticks, order, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, order)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    start = 0
    for group in groups:
        ax.add_patch(
            Rectangle(
                (start - 0.5, start - 0.5),
                len(group),
                len(group),
                fill=False,
                edgecolor="black",
                linewidth=2.5,
                clip_on=False,
                # Seen on dark cells, too.
                path_effects=[withStroke(linewidth=5, foreground="white")],
            )
        )
        start += len(group)
    if len(order) <= MOST_NUMBERS:
        for row, column in np.ndindex(matrix.shape):
            red, green, blue, _ = image.cmap(image.norm(matrix[row, column]))
            is_dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            ax.text(
                column,
                row,
                f"{matrix[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize="small",
                color="white" if is_dark else "black",
            )
    figure = figure_of(ax)
    figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return figure


def color_scale(matrix):
    """White is 0 where there are both signs; both maps are for all eyes."""
    low, high = np.nanmin(matrix), np.nanmax(matrix)
    if low < 0 < high:
        limit = max(-low, high)
        return {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    return {"cmap": "cividis", "vmin": low, "vmax": high}
