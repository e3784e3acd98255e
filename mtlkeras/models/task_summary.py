"""`model.summary()` with a table of which layers the tasks share."""

import math
import re

import keras
import rich.console
import rich.markup
import rich.table
from absl import logging


def print_summary(model, keras_summary, print_fn, **arguments):
    """Prints Keras's summary of a model and the table of tasks below.

    Args:
        model: A `MultiTaskModel`.
        keras_summary: Keras's method.
        print_fn: As in `keras.Model.summary`.
        **arguments: Of Keras's method.
    """
    if print_fn is None and keras.config.is_interactive_logging_enabled():
        keras_summary(**arguments)
        table = _table_of_tasks(model, **arguments)
        if table is not None:
            rich.console.Console(highlight=False).print(table)
        return
    # One text without colors, and to the log where Keras would write there.
    texts = []
    keras_summary(print_fn=texts.append, **arguments)
    table = _table_of_tasks(model, **arguments)
    console = rich.console.Console(
        highlight=False, force_terminal=False, color_system=None
    )
    with console.capture() as capture:
        if table is not None:
            console.print(table)
    (print_fn or logging.info)("".join([*texts, capture.get()]))


def _table_of_tasks(
    model, line_length=None, expand_nested=False, layer_range=None, **ignored
):
    """A table of rich, or `None` where there is nothing to tell."""
    try:
        tasks, structure = model._bound_tasks()
    except ValueError:  # no tasks yet, or outputs that cannot be tasks
        return None
    if len(tasks.output_names) < 2:
        return None
    rows = {}
    for layer in _layers(model.layers, expand_nested, layer_range):
        users = _users(layer, structure)
        # Without a graph, users show only where a gradient flows.
        if users or structure.graph is not None:
            rows.setdefault(users, []).append(layer)
    width = line_length or min(88, rich.console.Console().width - 4)
    table = rich.table.Table(
        rich.table.Column("Tasks", ratio=3),
        rich.table.Column("Layers", ratio=5),
        rich.table.Column("Param #", ratio=2, justify="right"),
        width=width,
        show_lines=True,
    )
    # What most tasks share comes first, then in the order of the tasks.
    order = {name: i for i, name in enumerate(tasks.names)}
    for users in sorted(
        rows, key=lambda u: (-len(u) if u else 1, [order[n] for n in u])
    ):
        weights = {id(w): w for layer in rows[users] for w in layer.weights}
        count = sum(math.prod(w.shape) for w in weights.values())
        names = ", ".join(layer.name for layer in rows[users])
        table.add_row(
            rich.markup.escape(_title(users, tasks.names)),
            rich.markup.escape(names),
            f"{count:,}",
        )
    return table


def _title(users, names):
    if not users:
        return "no task"
    if len(users) == 1:
        return users[0]
    if len(users) == len(names):
        return f"shared by all {len(names)}"
    return f"shared by {', '.join(users)}"


def _users(layer, structure):
    """The tasks that use a layer, or one of the layers inside of it."""
    inside = {id(inner) for inner in layer._flatten_layers()}
    found = {
        name
        for inner, users in structure.layer_tasks
        if id(inner) in inside
        and (structure.graph is not None or inner.trainable_variables)
        for name in users
    }
    return tuple(n for n in structure.tasks.names if n in found)


def _layers(layers, expand_nested, layer_range):
    """The layers that Keras's table shows, without the inputs."""
    if layer_range is not None:
        first, last = (
            [i for i, x in enumerate(layers) if re.match(pattern, x.name)]
            for pattern in layer_range
        )
        if min(first) > max(last):
            first, last = last, first
        layers = layers[min(first) : max(last) + 1]
    for layer in layers:
        if expand_nested and getattr(layer, "layers", None):
            yield from _layers(layer.layers, expand_nested, None)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer
