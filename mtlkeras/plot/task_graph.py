import keras

from mtlkeras.plot.figure import COLORS, GREY, axes_for, figure_of

ROW, WIDTH, HEIGHT = 1.0, 0.86, 0.56  # in units of the axes


def task_graph(model, ax=None):
    """The layers of a model, and whose they are: shared or of one task.

    Draws the graph of a functional model from its inputs, at the top, to its
    outputs. Grey layers are reached by every task, white ones with a grey edge
    by several but not all, coloured ones by one task. A task has a column of
    its own; a shared layer stands in the middle of its tasks. A nested model
    is one box.

    Args:
        model: A functional `MultiTaskModel`, compiled or not.
        ax: `matplotlib.axes.Axes` to draw into. Defaults to `None`: a figure
            of its own.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the model has no graph of layers.

    Example:

    >>> inputs = keras.Input((4,), name="image")
    >>> x = keras.layers.Dense(8, name="trunk")(inputs)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {
    ...         "left": keras.layers.Dense(1, name="left_head")(x),
    ...         "right": keras.layers.Dense(1, name="right_head")(x),
    ...     },
    ... )
    >>> figure = mtlkeras.plot.task_graph(model)
    >>> [text.get_text().split()[0] for text in figure.axes[0].texts]
    ['image', 'trunk', 'left_head', 'right_head']
    """
    if not isinstance(model, keras.Function) or not hasattr(
        model, "task_names"
    ):
        raise ValueError(
            "`plot.task_graph` needs a functional `MultiTaskModel`, whose "
            f"graph of layers is known. Received: model={model!r}. Make one "
            "with `MultiTaskModel(inputs, outputs)` or "
            "`MultiTaskModel.from_model(model)`."
        )
    tasks = list(model.task_names)
    nodes = walk(model)
    places = place(nodes, tasks)
    xs = [x for x, _ in places.values()]
    columns = max(xs) - min(xs) + 1
    rows = max(y for _, y in places.values()) + 1
    ax = axes_for(ax, figsize=(1.5 + 1.15 * columns, 0.9 + 0.62 * rows))
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

    colors = {t: COLORS[i % len(COLORS)] for i, t in enumerate(tasks)}
    kinds = {}
    for key, node in nodes.items():
        x, y = places[key]
        users = node["tasks"]
        if len(users) == 1:
            kind, face, edge = users[0], colors[users[0]], colors[users[0]]
        elif len(users) == len(tasks):
            kind, face, edge = "shared by all tasks", "#D0D0D0", GREY
        else:
            kind, face, edge = "shared by several", "white", GREY
        kinds[kind] = (face, edge)
        for parent in node["parents"]:
            a, b = places[parent]
            # Around the boxes between, if there are some in the way.
            around = y - b > ROW and abs(x - a) < WIDTH
            side = -1 if a < x else 1
            ax.add_patch(
                FancyArrowPatch(
                    (a + side * WIDTH / 2, b)
                    if around
                    else (a, b + HEIGHT / 2),
                    (x + side * WIDTH / 2, y)
                    if around
                    else (x, y - HEIGHT / 2),
                    connectionstyle=f"arc3,rad={-0.3 * side * around}",
                    arrowstyle="-|>",
                    mutation_scale=8,
                    shrinkA=0,
                    shrinkB=0,
                    color="#666666",
                    label=f"{nodes[parent]['name']} to {node['name']}",
                    zorder=1,
                )
            )
        ax.add_patch(
            FancyBboxPatch(
                (x - WIDTH / 2, y - HEIGHT / 2),
                WIDTH,
                HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=face,
                edgecolor=edge,
                linewidth=1.4,
                label=node["name"],
                zorder=2,
            )
        )
        ax.text(
            x,
            y,
            f"{node['name']}\n{node['type']}",
            ha="center",
            va="center",
            # About 15 letters of the usual size fit into a box.
            fontsize=6.5 * min(1, 15 / len(node["name"])),
            color="white" if len(users) == 1 and is_dark(face) else "black",
            zorder=3,
        )
    ax.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_axis_off()
    order = ["shared by all tasks", "shared by several", *tasks]
    ax.legend(
        handles=[
            Patch(facecolor=kinds[k][0], edgecolor=kinds[k][1], label=k)
            for k in order
            if k in kinds
        ],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize="small",
    )
    return figure_of(ax)


def walk(model):
    """Nodes of the graph that lead to a task, inputs first.

    Returns:
        Dict from the id of a node to a dict of `name`, `type`, `depth`,
        `parents` (ids) and `tasks` (names, in their order).
    """
    _, structure = model._bound_tasks()
    nodes = {}
    for task in model.task_names:
        # A stack, not recursion: graphs may be deep.
        pending = [structure.outputs[task]]
        while pending:
            node = node_of(pending[-1])
            missing = [
                tensor
                for tensor in tensors_before(node)
                if id(node_of(tensor)) not in nodes
            ]
            pending.extend(missing)
            if missing:
                continue
            pending.pop()
            parents = [id(node_of(tensor)) for tensor in tensors_before(node)]
            parents = list(dict.fromkeys(parents))
            depths = [nodes[parent]["depth"] for parent in parents]
            nodes.setdefault(
                id(node),
                {
                    "name": node.operation.name,
                    "type": type(node.operation).__name__,
                    "depth": 1 + max(depths, default=-1),
                    "parents": parents,
                    "tasks": [],
                },
            )
    for task in model.task_names:
        pending = [id(node_of(structure.outputs[task]))]
        while pending:
            node = nodes[pending.pop()]
            if task not in node["tasks"]:
                node["tasks"].append(task)
                pending.extend(node["parents"])
    return nodes


def node_of(tensor):
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def tensors_before(node):
    return [] if node.is_input else node.input_tensors


def place(nodes, tasks):
    """Column and row of every node, none on top of another."""
    places = {}
    rows = {}
    for key, node in nodes.items():
        column = sum(tasks.index(t) for t in node["tasks"]) / len(node["tasks"])
        rows.setdefault(node["depth"], []).append((column, key))
    for depth, row in rows.items():
        row.sort(key=lambda entry: entry[0])
        columns = [column for column, _ in row]
        for i in range(1, len(row)):
            columns[i] = max(columns[i], columns[i - 1] + 1)
        # Pushed to the right only: back by half, to stay in the middle.
        shift = sum(
            new - old for new, (old, _) in zip(columns, row, strict=True)
        ) / len(row)
        for column, (_, key) in zip(columns, row, strict=True):
            places[key] = (column - shift, depth * ROW)
    return places


def is_dark(color):
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.6 * green + 0.1 * blue < 128
