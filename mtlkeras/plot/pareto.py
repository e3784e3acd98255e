import numpy as np

from mtlkeras.plot.figure import COLORS, GREY, axes_for, figure_of


def pareto(
    points,
    objectives=("first objective", "second objective"),
    higher_is_better=False,
    reference=None,
    ax=None,
):
    """Trade-offs between two objectives, with the Pareto front marked.

    Points that no other dominates are filled and joined by the steps that
    bound what they dominate; the others are hollow. With a reference point the
    area is shaded that `metrics.hypervolume` measures.

    Args:
        points: Array of shape `[num_points, 2]`, or a dict from a name, which
            is written beside the point, to its two values.
        objectives: Two strings, labels of the axes.
        higher_is_better: Boolean, or two. Defaults to `False`: losses.
        reference: Two numbers, or `None`. Defaults to `None`.
        ax: `matplotlib.axes.Axes` to draw into. Defaults to `None`: a figure
            of its own.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If points or objectives are not two each.

    Example:

    >>> runs = {"joint": (0.5, 0.9), "mgda": (0.7, 0.4), "pcgrad": (0.8, 0.6)}
    >>> figure = mtlkeras.plot.pareto(runs, ("left loss", "right loss"))
    >>> figure.axes[0].collections[0].get_offsets().tolist()  # the front
    [[0.5, 0.9], [0.7, 0.4]]
    """
    ax = axes_for(ax, figsize=(5.0, 4.0))
    names = list(points) if isinstance(points, dict) else []
    values = list(points.values()) if names else points
    values = np.asarray(values, "float64")
    better = np.asarray(higher_is_better, "bool")
    if (
        values.ndim != 2
        or values.shape[1] != 2
        or not len(values)
        or len(objectives) != 2
        or better.shape not in ((), (2,))
        or (reference is not None and np.shape(reference) != (2,))
    ):
        raise ValueError(
            "A Pareto plot needs points with two values each, two objectives "
            f"and two numbers as `reference`. Received: points of shape "
            f"{values.shape}, objectives={objectives!r}, "
            f"higher_is_better={higher_is_better!r}, reference={reference!r}"
        )
    signs = np.where(better, -1.0, 1.0) * np.ones(2)
    on_front = is_on_front(values * signs)
    front = values[on_front]
    front = front[np.lexsort((front[:, 1] * signs[1], front[:, 0]))]
    ax.scatter(*front.T, s=36, color=COLORS[0], zorder=3, label="Pareto front")
    others = values[~on_front]
    ax.scatter(
        *others.T,
        s=36,
        facecolors="none",
        edgecolors=GREY,
        zorder=2,
        label="dominated",
    )
    # The second objective of the last point holds until the first gets worse.
    where = "post" if signs[0] > 0 else "pre"
    ax.step(*front.T, where=where, color=COLORS[0], linewidth=1.2, zorder=1)
    if reference is not None:
        _shade(ax, front, np.asarray(reference, "float64"), signs, where)
    for name, point in zip(names, values, strict=False):
        ax.annotate(
            name,
            point,
            xytext=(5, 4),
            textcoords="offset points",
            fontsize="small",
        )
    hints = ["higher is better" if s < 0 else "lower is better" for s in signs]
    ax.set_xlabel(f"{objectives[0]} ({hints[0]})")
    ax.set_ylabel(f"{objectives[1]} ({hints[1]})")
    ax.grid(color="#E5E5E5")
    ax.set_axisbelow(True)
    ax.margins(0.12)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return figure_of(ax)


def is_on_front(losses):
    """Which rows no other row dominates; `[n, 2]`, lower is better."""
    no_worse = (losses[:, None] <= losses[None]).all(-1)
    better = (losses[:, None] < losses[None]).any(-1)
    return ~(no_worse & better).any(0)


def _shade(ax, front, reference, signs, where):
    """The area between the front and the reference."""
    inside = front[((reference - front) * signs > 0).all(1)]
    ax.scatter(
        *reference, marker="x", color="black", zorder=3, label="reference"
    )
    if not len(inside):
        return
    end = [[reference[0], 0.0]]
    x = np.concatenate([inside, end] if where == "post" else [end, inside])
    # The outermost point's value holds up to the reference.
    x[-1 if where == "post" else 0, 1] = inside[-1 if where == "post" else 0, 1]
    ax.fill_between(
        x[:, 0],
        x[:, 1],
        reference[1],
        step=where,
        color=COLORS[0],
        alpha=0.12,
        linewidth=0,
        label="hypervolume",
    )
