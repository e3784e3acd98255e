"""What the plots have in common: axes, colours, series of a history."""

import numpy as np

# Okabe and Ito's colours that people with any common colour blindness can
# tell apart, without the yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLORS += ("#000000",)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8C8C8C"


def axes_for(ax, figsize=(6.0, 4.0)):
    """The given axes, or new ones in a figure of their own.

    The figure is not one of pyplot's: nothing keeps it alive, no window opens
    and no backend is chosen.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            "`mtlkeras.plot` draws with matplotlib, but the package "
            f"`{error.name}` is not installed. Install it with: "
            '`pip install "mtlkeras[plot]"`'
        ) from error
    if ax is not None:
        return ax
    return Figure(figsize=figsize, layout="constrained").add_subplot()


def figure_of(ax):
    """The figure of the axes, also where they are in a subfigure."""
    figure = ax.figure
    while figure.figure is not figure:
        figure = figure.figure
    return figure


def task_style(index):
    """Colour and marker; unlike ones for the first 49 tasks."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index // len(COLORS) % len(MARKERS)],
    }


def logs_of(history):
    """Dict of the logs of a `History` or as given, and the epochs from 1."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, dict) or not logs:
        raise ValueError(
            "Argument `history` must be what `fit` returns, or its `history` "
            f"dict, with at least one epoch. Received: history={history!r}"
        )
    epochs = getattr(history, "epoch", None)
    if epochs is None:
        epochs = range(max(len(values) for values in logs.values()))
    return logs, np.asarray(list(epochs)) + 1


def in_task_order(history, tasks):
    """Tasks in the order of the model, where the history knows it.

    So that a task has the same colour in all plots of the model.
    """
    model = getattr(history, "model", None)
    first = [t for t in getattr(model, "task_names", ()) if t in tasks]
    return first + [task for task in tasks if task not in first]


def draw_series(ax, epochs, key, values, **style):
    """One line over the epochs."""
    if len(values) != len(epochs):
        raise ValueError(
            "A curve needs a value for every epoch. Received: "
            f"{len(values)} values of '{key}' for {len(epochs)} epochs, as "
            "`validation_freq` leaves it. Draw the training curves only, with "
            "`validation=False`."
        )
    style = {"linewidth": 1.6, "markersize": 3.5, **style}
    ax.plot(epochs, values, **style)


def finish_epochs(ax, ylabel):
    """Labels and grid of a plot over epochs."""
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(color="#E5E5E5")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def legend_beside(ax, handles=None):
    """A legend that covers no curve, in as many columns as it needs."""
    if handles is None:
        handles, _ = ax.get_legend_handles_labels()
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=1 + (len(handles) - 1) // 15,
        frameon=False,
        fontsize="small",
    )
