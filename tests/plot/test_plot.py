"""What the artists of each figure hold, and that files can be read."""

import sys

import keras
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from nets import TASKS, Subclassed, losses, mlp, regression_data
from PIL import Image

import mtlkeras
from mtlkeras import plot
from mtlkeras.metrics import hypervolume
from mtlkeras.plot.figure import COLORS, task_style

HISTORY = {
    "loss": [3.0, 2.0, 1.0],
    "left_loss": [1.0, 0.5, 0.25],
    "val_left_loss": [1.1, 0.6, 0.5],
    "right_loss": [2.0, np.nan, 0.75],
    "val_right_loss": [2.1, 1.5, 1.0],
    "left_accuracy": [0.1, 0.2, 0.3],
    "task_weight/left": [1.0, 0.9, 0.8],
    "task_weight/right": [1.0, 1.1, 1.2],
    "cosine/left/right": [0.5, 0.0, -0.5],
    "cosine/left/sum": [0.1, 0.2, 0.3],
}
MATRIX = np.array([[1.0, -0.4, 0.3], [-0.2, 1.0, 0.1], [0.5, 0.0, 1.0]])
GROUPS = (("left", "sum"), ("right",))
NAMES = ["left", "right", "sum"]
RUNS = {"a": (1.0, 5.0), "b": (2.0, 2.0), "c": (3.0, 3.0), "d": (5.0, 1.0)}


def draw_graph(**arguments):
    return plot.task_graph(mlp(), **arguments)


DRAW = {
    "conflicts": lambda **a: plot.conflicts(HISTORY, **a),
    "grouping": lambda **a: plot.grouping(MATRIX, GROUPS, NAMES, **a),
    "pareto": lambda **a: plot.pareto(RUNS, reference=(6, 6), **a),
    "task_curves": lambda **a: plot.task_curves(HISTORY, **a),
    "task_graph": draw_graph,
    "task_weights": lambda **a: plot.task_weights(HISTORY, **a),
}


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().texts]


class TestEveryPlot:
    def test_all_are_here(self):
        assert set(DRAW) == set(plot.__all__)

    @pytest.mark.parametrize("name", DRAW)
    def test_a_file_that_pillow_reads(self, name, tmp_path):
        figure = DRAW[name]()
        assert type(figure) is Figure
        file = tmp_path / "figure.png"
        figure.savefig(file, dpi=50)
        with Image.open(file) as image:
            image.load()
            assert image.size == tuple(
                (figure.get_size_inches() * 50).astype(int)
            )
            assert len(image.getcolors(10**6)) > 20
        figure.savefig(tmp_path / "figure.pdf")

    @pytest.mark.parametrize("name", DRAW)
    def test_into_given_axes(self, name):
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert DRAW[name](ax=right) is figure
        assert not left.has_data()
        assert right.has_data() or right.patches
        inside = Figure().subfigures(1, 2)[0]
        assert DRAW[name](ax=inside.add_subplot()) is inside.figure

    @pytest.mark.parametrize("name", DRAW)
    def test_pyplot_is_left_alone(self, name):
        DRAW[name]()
        pyplot = sys.modules.get("matplotlib.pyplot")
        assert pyplot is None or not pyplot.get_fignums()

    @pytest.mark.parametrize("name", DRAW)
    def test_without_matplotlib(self, name, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"mtlkeras\[plot\]"):
            DRAW[name]()

    @pytest.mark.parametrize(
        "name", ["conflicts", "pareto", "task_curves", "task_weights"]
    )
    def test_axes_have_labels(self, name):
        ax = DRAW[name]().axes[0]
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert ax.get_legend()


def test_styles_differ_and_colors_are_far_apart_in_lightness_or_hue():
    styles = [tuple(task_style(i).values()) for i in range(49)]
    assert len(set(styles)) == 49
    # As a deuteranope sees them (Viénot et al., 1999), in linear RGB.
    rgb = np.array(
        [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLORS]
    )
    linear = np.where(
        rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92
    )
    for matrix in (
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    ):
        seen = linear @ np.array(matrix).T
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distance[~np.eye(len(COLORS), dtype=bool)].min() > 0.1


class TestTaskCurves:
    def test_data(self):
        figure = plot.task_curves(HISTORY)
        found = lines(figure)
        assert list(found) == [
            "left, training",
            "left, validation",
            "right, training",
            "right, validation",
        ]
        for label, line in found.items():
            task, kind = label.split(", ")
            prefix = {"training": "", "validation": "val_"}[kind]
            np.testing.assert_array_equal(
                line.get_ydata(), HISTORY[f"{prefix}{task}_loss"]
            )
            assert line.get_xdata().tolist() == [1, 2, 3]
            assert line.get_color() == COLORS[task == "right"]
            style = {"training": "--", "validation": "-"}[kind]
            assert line.get_linestyle() == style
        assert figure.axes[0].get_xlabel() == "epoch"
        assert figure.axes[0].get_ylabel() == "loss"
        assert legend(figure) == ["left", "right", "validation", "training"]

    def test_one_metric_of_one_task(self):
        found = lines(plot.task_curves(HISTORY, "accuracy"))
        assert list(found) == ["left, training"]
        assert found["left, training"].get_linestyle() == "-"
        only = plot.task_curves(HISTORY, tasks=["right"], validation=False)
        assert list(lines(only)) == ["right, training"]

    def test_what_fit_returns(self):
        model = mlp()
        model.compile("adam", losses(), metrics=dict.fromkeys(TASKS, "mae"))
        data = regression_data()
        history = model.fit(
            *data, validation_data=data, initial_epoch=3, epochs=5, verbose=0
        )
        logs = history.history
        history.history = {key: logs[key] for key in sorted(logs)[::-1]}
        found = lines(plot.task_curves(history, "mae"))
        assert len(found) == 6
        # In the order of the model, so that plots of it agree on colours.
        order = [label.partition(",")[0] for label in found]
        assert order[::2] == list(model.task_names)
        line = found["middle, validation"]
        assert line.get_xdata().tolist() == [4, 5]
        assert line.get_ydata() == pytest.approx(
            history.history["val_middle_mae"]
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((None,), "`history` must"),
            (({},), "`history` must"),
            ((HISTORY, "auc"), "keys `<task>_auc`"),
            ((HISTORY, "accuracy", ["right"]), r"\['right'\] that it lacks"),
            (({"a_loss": [1, 2], "val_a_loss": [1]},), "validation=False"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plot.task_curves(*arguments)


class TestTaskWeights:
    def test_data(self):
        found = lines(plot.task_weights(HISTORY))
        assert list(found) == ["left", "right"]
        assert found["right"].get_ydata().tolist() == [1.0, 1.1, 1.2]

    def test_without_weights(self):
        with pytest.raises(ValueError, match="task_weight/<task>"):
            plot.task_weights({"loss": [1.0]})


class TestConflicts:
    def test_data(self):
        figure = plot.conflicts(HISTORY)
        found = lines(figure)
        assert found["left / right"].get_ydata().tolist() == [0.5, 0.0, -0.5]
        assert legend(figure) == ["left / right", "left / sum"]
        ax = figure.axes[0]
        assert ax.get_ylim() == (-1, 1)
        (band,) = ax.patches
        assert band.get_y() == -1
        assert band.get_height() == 1

    def test_pairs_in_any_order(self):
        figure = plot.conflicts(HISTORY, [("right", "left")])
        assert legend(figure) == ["left / right"]
        with pytest.raises(ValueError, match="keys `cosine/"):
            plot.conflicts(HISTORY, [("right", "sum")])
        with pytest.raises(ValueError, match="keys `cosine/"):
            plot.conflicts({"loss": [1.0]})

    def test_many_pairs_are_summarised(self):
        rng = np.random.default_rng(0)
        table = rng.uniform(-1, 1, size=(16, 5))
        history = {f"cosine/a/{i}": row.tolist() for i, row in enumerate(table)}
        figure = plot.conflicts(history)
        assert legend(figure) == [
            "all pairs",
            "middle 80 %",
            "median of 16 pairs",
        ]
        median = lines(figure)["median of 16 pairs"].get_ydata()
        np.testing.assert_allclose(median, np.median(table, 0))
        outer = figure.axes[0].collections[0].get_paths()[0].vertices
        assert outer[:, 1].max() == pytest.approx(table.max())
        assert outer[:, 1].min() == pytest.approx(table.min())


def shaded_area(figure):
    """Of the polygon that marks the hypervolume (shoelace formula)."""
    polygons = [
        c for c in figure.axes[0].collections if c.get_label() == "hypervolume"
    ]
    if not polygons:
        return 0.0
    x, y = polygons[0].get_paths()[0].vertices.T
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


class TestPareto:
    def test_front_and_names(self):
        figure = plot.pareto(RUNS, ("left loss", "right loss"))
        ax = figure.axes[0]
        front, others = ax.collections[:2]
        assert front.get_offsets().tolist() == [[1, 5], [2, 2], [5, 1]]
        assert others.get_offsets().tolist() == [[3, 3]]
        assert others.get_facecolors().size == 0
        assert [t.get_text() for t in ax.texts] == list(RUNS)
        assert [t.xy for t in ax.texts] == list(RUNS.values())
        assert ax.get_xlabel() == "left loss (lower is better)"
        assert ax.get_ylabel() == "right loss (lower is better)"

    @pytest.mark.parametrize(
        "better", [False, True, [True, False], [False, True]]
    )
    def test_random_points(self, better):
        """Against moocore, in every direction."""
        moocore = pytest.importorskip("moocore")
        rng = np.random.default_rng(2)
        points = rng.integers(0, 30, size=(40, 2)) / 10.0
        points[:15] = rng.normal(size=(15, 2)) + 1.5
        signs = np.where(better, -1, 1) * np.ones(2)
        reference = np.where(signs > 0, 2.5, 0.5)
        figure = plot.pareto(
            points, higher_is_better=better, reference=reference
        )
        front, others = figure.axes[0].collections[:2]
        expected = moocore.is_nondominated(points * signs, keep_weakly=True)
        assert sorted(front.get_offsets().tolist()) == sorted(
            points[expected].tolist()
        )
        assert len(others.get_offsets()) == (~expected).sum()
        assert shaded_area(figure) == pytest.approx(
            hypervolume(points, reference, better)
        )

    def test_reference_that_nothing_dominates(self):
        figure = plot.pareto(RUNS, reference=(0, 0))
        assert shaded_area(figure) == 0
        assert "reference" in legend(figure)
        assert "hypervolume" not in legend(figure)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"points": [1.0, 2.0]},
            {"points": np.zeros((0, 2))},
            {"points": np.zeros((3, 3))},
            {"points": RUNS, "objectives": ("a",)},
            {"points": RUNS, "reference": 1.0},
            {"points": RUNS, "higher_is_better": [True, False, True]},
        ],
    )
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError, match="two values each"):
            plot.pareto(**arguments)


class TestGrouping:
    def test_reordered_and_outlined(self):
        figure = plot.grouping(MATRIX, GROUPS, NAMES, label="cosine")
        ax = figure.axes[0]
        (image,) = ax.images
        order = [0, 2, 1]
        np.testing.assert_array_equal(
            image.get_array(), MATRIX[np.ix_(order, order)]
        )
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            assert [t.get_text() for t in labels] == ["left", "sum", "right"]
        boxes = [p for p in ax.patches if isinstance(p, Rectangle)]
        assert [(b.get_xy(), b.get_width(), b.get_height()) for b in boxes] == [
            ((-0.5, -0.5), 2, 2),
            ((1.5, 1.5), 1, 1),
        ]
        assert [t.get_text() for t in ax.texts][:3] == ["1.00", "0.30", "-0.40"]
        # Zero is the white middle of the scale.
        assert image.norm.vmin == -image.norm.vmax == -1
        assert figure.axes[1].get_ylabel() == "cosine"

    def test_one_sign_and_many_tasks(self):
        matrix = np.arange(169.0).reshape(13, 13)
        names = [f"t{i}" for i in range(13)]
        ax = plot.grouping(matrix, [names], names).axes[0]
        assert ax.images[0].norm.vmin == 0
        assert ax.images[0].cmap.name == "cividis"
        assert not ax.texts

    def test_groups_of_a_model(self):
        model = mlp()
        strategy = mtlkeras.strategies.RandomGroups(2, seed=0)
        model.compile("sgd", losses(), strategy=strategy)
        groups = model.update_strategy.groups
        figure = plot.grouping(np.eye(3), groups, model.task_names)
        assert len(figure.axes[0].patches) == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((MATRIX[:2], GROUPS, NAMES), "`matrix` must"),
            ((MATRIX, GROUPS[:1], NAMES), "`groups` must"),
            ((MATRIX, (*GROUPS, ("left",)), NAMES), "`groups` must"),
            ((MATRIX, (*GROUPS, ()), NAMES), "`groups` must"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plot.grouping(*arguments)


def partly_shared():
    """Two tasks share a layer that the third does not; a layer used twice."""
    layers = keras.layers
    inputs = keras.Input((4,), name="image")
    trunk = layers.Dense(4, name="trunk")(inputs)
    pair = layers.Dense(4, name="pair")(trunk)
    twice = layers.Dense(4, name="twice")
    return mtlkeras.MultiTaskModel(
        inputs,
        {
            "left": layers.Dense(1, name="left_head")(pair),
            "right": layers.Dense(1, name="right_head")(pair),
            "other": layers.Add(name="other_head")(
                [twice(twice(trunk)), trunk]
            ),
        },
    )


class TestTaskGraph:
    def boxes(self, figure):
        return [
            p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)
        ]

    def test_colors_tell_whose_a_layer_is(self):
        figure = plot.task_graph(partly_shared())
        colors = {}
        for box in self.boxes(figure):
            colors.setdefault(box.get_label(), []).append(
                to_hex(box.get_facecolor()).upper()
            )
        assert colors == {
            "image": ["#D0D0D0"],
            "trunk": ["#D0D0D0"],
            "pair": ["#FFFFFF"],
            "left_head": [COLORS[0]],
            "right_head": [COLORS[1]],
            "twice": [COLORS[2]] * 2,
            "other_head": [COLORS[2]],
        }
        assert legend(figure) == [
            "shared by all tasks",
            "shared by several",
            "left",
            "right",
            "other",
        ]

    def test_as_the_model_has_it(self):
        """Against `shared_variables` and `task_variables`."""
        model = partly_shared()
        shared = {v.path.split("/")[0] for v in model.shared_variables}
        own = {
            v.path.split("/")[0]: task
            for task in model.task_names
            for v in model.task_variables(task)
        }
        index = {task: i for i, task in enumerate(model.task_names)}
        for box in self.boxes(plot.task_graph(model)):
            color = to_hex(box.get_facecolor()).upper()
            name = box.get_label()
            if name in shared:
                assert color in ("#D0D0D0", "#FFFFFF")
            elif name in own:
                assert color == COLORS[index[own[name]]]

    def test_arrows_are_the_connections(self):
        figure = plot.task_graph(partly_shared())
        arrows = [
            p.get_label()
            for p in figure.axes[0].patches
            if isinstance(p, FancyArrowPatch)
        ]
        assert sorted(arrows) == [
            "image to trunk",
            "pair to left_head",
            "pair to right_head",
            "trunk to other_head",
            "trunk to pair",
            "trunk to twice",
            "twice to other_head",
            "twice to twice",
        ]

    def test_boxes_do_not_overlap_and_lie_below_their_parents(self):
        figure = plot.task_graph(partly_shared())
        places = [
            (b.get_x(), b.get_y(), b.get_width(), b.get_height())
            for b in self.boxes(figure)
        ]
        for i, (x, y, width, height) in enumerate(places):
            for other_x, other_y, *_ in places[:i]:
                assert abs(x - other_x) >= width or abs(y - other_y) >= height
        depth = {b.get_label(): b.get_y() for b in self.boxes(figure)}
        assert depth["image"] < depth["trunk"] < depth["pair"]
        assert depth["pair"] < depth["left_head"]

    def test_an_output_that_is_no_task_is_left_out(self):
        model = partly_shared()
        model.compile("sgd", {"left": "mse", "right": "mse"})
        names = {b.get_label() for b in self.boxes(plot.task_graph(model))}
        assert "other_head" not in names
        assert "pair" in names

    def test_deep_and_nested_models(self):
        inputs = keras.Input((2,))
        x = inputs
        for _ in range(400):
            x = keras.layers.Activation("relu")(x)
        inner_input = keras.Input((2,))
        inner = keras.Model(
            inner_input, keras.layers.Dense(2)(inner_input), name="inner"
        )
        x = inner(x)
        model = mtlkeras.MultiTaskModel(
            inputs, [keras.layers.Dense(1)(x), keras.layers.Dense(1)(x)]
        )
        boxes = self.boxes(plot.task_graph(model))
        assert len(boxes) == 404
        assert [b.get_label() for b in boxes].count("inner") == 1

    def test_models_without_a_graph(self):
        for model in (Subclassed(), keras.Sequential([keras.Input((2,))])):
            with pytest.raises(ValueError, match="functional `MultiTaskModel`"):
                plot.task_graph(model)
