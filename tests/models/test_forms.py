"""The forms of a model, and which variables belong to which task."""

import itertools
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from nets import (
    TASKS,
    Opaque,
    Subclassed,
    assert_same_bits,
    losses,
    mlp,
    regression_data,
    values,
)

from mtlkeras import MultiTaskModel
from mtlkeras.strategies import Alternating, RandomGroups, Sampled

Dense = keras.layers.Dense


def paths(variables):
    return [v.path for v in variables]


def train(model, x, y, strategy="alternating", loss=None, **arguments):
    """One epoch; returns the set of the variables that moved."""
    model.compile(
        keras.optimizers.Adam(0.01),
        loss or losses(),
        strategy=strategy,
        run_eagerly=True,
        **arguments,
    )
    before = {id(v): np.array(v) for v in model.variables}
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return {
        v.path
        for v in model.variables
        if id(v) not in before or (np.array(v) != before[id(v)]).any()
    }


STRATEGIES = ("alternating", "round_robin", "multi_adaptive")


# -- forms ---------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_functional(structure):
    x, y = regression_data(rows=8)
    model = mlp(structure=structure)
    # Known before `compile`, too.
    for _ in range(2):
        assert model.task_names == TASKS
        assert paths(model.shared_variables) == [
            "trunk_1/kernel",
            "trunk_1/bias",
            "trunk_2/kernel",
            "trunk_2/bias",
        ]
        for name in TASKS:
            head = name if structure == "list" else f"head_{name}"
            assert paths(model.task_variables(name)) == [
                f"{head}/kernel",
                f"{head}/bias",
            ]
        targets = y if structure == "dict" else list(y.values())
        moved = train(model, x, targets)
        assert moved == set(paths(model.variables))
    assert isinstance(model, MultiTaskModel)
    assert len(model.optimizer.optimizers) == 3


@pytest.mark.parametrize("structure", ["single", "dict"])
def test_one_task(structure):
    """T = 1: every strategy of one task is ordinary training."""
    x, y = regression_data(rows=8)
    tasks = TASKS[:1]
    name = "left" if structure == "dict" else "head_left"
    target = {"left": y["left"]} if structure == "dict" else y["left"]
    trained = []
    for strategy in ("joint", "alternating", "round_robin", RandomGroups(1)):
        model = mlp(tasks=tasks, structure=structure)
        loss = {"left": "mse"} if structure == "dict" else "mse"
        moved = train(model, x, target, strategy, loss)
        assert model.task_names == (name,)
        assert model.shared_variables == []
        assert model.task_variables(name) == model.trainable_variables
        assert model.update_strategy.groups == ((name,),)
        assert moved == set(paths(model.variables))
        assert list(model.history.history) == ["loss"]
        trained.append(values(model.weights))
    for weights in trained[1:]:
        for a, b in zip(weights, trained[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_subclass(strategy):
    x, y = regression_data(rows=24)
    functional = mlp()
    model = Subclassed()
    with pytest.raises(ValueError, match="seen data"):
        _ = model.task_names
    model(x[:1])
    with pytest.raises(ValueError, match="seen data"):
        _ = model.shared_variables
    model.set_weights(functional.get_weights())
    train(functional, x, y, strategy)
    moved = train(model, x, y, strategy)
    assert model.task_names == TASKS
    assert len(model.shared_variables) == 4
    for name in TASKS:
        own = model.heads[name].trainable_variables
        assert [id(v) for v in model.task_variables(name)] == [
            id(v) for v in own
        ]
    assert len(moved) == len(model.variables)
    for a, b in zip(model.weights, functional.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("first_call", ["evaluate", "train_on_batch", "fit"])
def test_subclass_learns_its_tasks_from_data(first_call):
    x, y = regression_data(rows=8)
    model = Subclassed()
    model.compile("adam", losses(), strategy="alternating", run_eagerly=True)
    arguments = {} if first_call == "train_on_batch" else {"verbose": 0}
    getattr(model, first_call)(x, y, **arguments)
    assert model.task_names == TASKS
    assert len(model.optimizer.optimizers) == 3
    before = values(model.weights)
    model.train_on_batch(x, y)
    assert all(
        (a != b).any()
        for a, b in zip(before, values(model.weights), strict=True)
    )


class FunctionalStyle(MultiTaskModel):
    """Builds its graph in `__init__`."""

    def __init__(self, width=8, **kwargs):
        inputs = keras.Input((6,))
        x = Dense(width, activation="tanh")(inputs)
        outputs = {name: Dense(1, name=f"h_{name}")(x) for name in TASKS}
        super().__init__(inputs, outputs, **kwargs)
        self.width = width


class Deeper(FunctionalStyle):
    def double(self):
        return 2 * self.width


def test_functional_style_subclass():
    x, y = regression_data(rows=8)
    for cls in (FunctionalStyle, Deeper, FunctionalStyle):
        model = cls(width=4)
        assert isinstance(model, FunctionalStyle)
        assert isinstance(model, MultiTaskModel)
        assert model.task_names == TASKS
        assert model.get_layer("h_left").units == 1
        assert len(model.shared_variables) == 2
        assert train(model, x, y) == set(paths(model.variables))
    assert Deeper(width=4).double() == 8
    # The other forms still work afterwards.
    assert len(train(Subclassed(), x, y)) == 10
    assert len(train(mlp(), x, y)) == 10


SCRIPT = """
    import keras
    import numpy as np
    from mtlkeras import MultiTaskModel

    x = np.ones((4, 3), "float32")
    y = {"a": x[:, :1], "b": x[:, :1]}

    def functional():
        inputs = keras.Input((3,))
        h = keras.layers.Dense(4)(inputs)
        return MultiTaskModel(
            inputs,
            {"a": keras.layers.Dense(1)(h), "b": keras.layers.Dense(1)(h)},
        )

    def existing():
        inputs = keras.Input((3,))
        h = keras.layers.Dense(4)(inputs)
        return MultiTaskModel.from_model(
            keras.Model(
                inputs,
                {"a": keras.layers.Dense(1)(h), "b": keras.layers.Dense(1)(h)},
            )
        )

    def functional_style():
        class Net(MultiTaskModel):
            def __init__(self):
                inputs = keras.Input((3,))
                h = keras.layers.Dense(4)(inputs)
                super().__init__(
                    inputs=inputs,
                    outputs={
                        "a": keras.layers.Dense(1)(h),
                        "b": keras.layers.Dense(1)(h),
                    },
                )
        return Net()

    def subclassed():
        class Net(MultiTaskModel):
            def __init__(self, width=4):
                super().__init__(name="net")
                self.trunk = keras.layers.Dense(width)
                self.a = keras.layers.Dense(1)
                self.b = keras.layers.Dense(1)

            def call(self, x):
                x = self.trunk(x)
                return {"a": self.a(x), "b": self.b(x)}
        return Net()

    for form in (FORMS):
        model = form()
        model.compile(
            "adam",
            {"a": "mse", "b": "mse"},
            strategy="alternating",
            run_eagerly=True,
        )
        model.train_on_batch(x, y)
        assert model.task_names == ("a", "b"), form
        assert len(model.shared_variables) == 2, form
    assert isinstance(functional(), keras.Model)
    assert not isinstance(subclassed(), type(functional()))
"""


def test_forms_in_one_process_in_both_orders():
    """Keras patches the bases of classes that are called with a graph."""
    root = pathlib.Path(__file__).parents[2]
    path = os.pathsep.join(
        [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    forms = ["functional", "subclassed", "existing", "functional_style"]
    orders = [forms, [*reversed(forms), "subclassed", "functional"]]
    runs = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SCRIPT).replace("FORMS", ", ".join(order)),
            ],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in orders
    ]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_from_model(structure):
    x, y = regression_data(rows=8)
    existing = mlp(keras.Model, structure=structure)
    model = MultiTaskModel.from_model(existing)
    assert isinstance(model, MultiTaskModel)
    assert model.name == existing.name
    assert model.task_names == TASKS
    assert model.get_layer("trunk_1") is existing.get_layer("trunk_1")
    for mine, theirs in zip(model.weights, existing.weights, strict=True):
        assert mine is theirs
    before = values(existing.weights)
    targets = y if structure == "dict" else list(y.values())
    train(model, x, targets)
    assert all(
        (a != b).any()
        for a, b in zip(before, values(existing.weights), strict=True)
    )


@pytest.mark.parametrize(
    "given", [Subclassed, lambda: keras.Sequential([Dense(1)]), lambda: "model"]
)
def test_from_model_refuses_what_has_no_graph(given):
    with pytest.raises(ValueError, match="functional Keras model"):
        MultiTaskModel.from_model(given())


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b: {"left": {"mean": a, "scale": b}},
        lambda a, b: {"left": [a, b]},
        lambda a, b: [[a, b]],
    ],
    ids=["dict_in_dict", "list_in_dict", "list_in_list"],
)
def test_nested_outputs_are_refused(nest):
    inputs = keras.Input((6,))
    outputs = nest(Dense(1)(inputs), Dense(1)(inputs))
    with pytest.raises(ValueError, match="not nested any further"):
        MultiTaskModel(inputs, outputs).compile("adam", "mse")


def test_nested_outputs_of_a_subclass_are_refused():
    class Net(Subclassed):
        def call(self, inputs, training=False):
            return {"left": super().call(inputs)}

    x, y = regression_data(rows=8)
    model = Net()
    model.compile("adam", {"left": "mse"}, run_eagerly=True)
    with pytest.raises(ValueError, match="not nested any further"):
        model.fit(x, y["left"], verbose=0)


# -- names ---------------------------------------------------------------------


def test_task_names_keep_the_order_of_the_outputs(tmp_path):
    """Not the alphabetical one, which Keras uses inside."""
    names = ("zebra", "ant", "mole")
    x, y = regression_data(names, rows=8)
    models = [mlp(tasks=names), Subclassed(names)]
    for model in models:
        # The loss dict has another order.
        train(model, x, y, loss=losses(sorted(names)))
        assert model.task_names == names
        assert model.update_strategy.groups == tuple((n,) for n in names)
    path = tmp_path / "model.keras"
    models[0].save(path)
    loaded = keras.models.load_model(path)
    assert loaded.task_names == names
    assert loaded.update_strategy.groups == tuple((n,) for n in names)


# -- variables -----------------------------------------------------------------


def partly_shared(cls):
    """`pair` belongs to left and middle, not to right."""
    inputs = keras.Input((6,))
    x = Dense(5, activation="tanh", name="trunk")(inputs)
    pair = Dense(4, activation="tanh", name="pair")(x)
    deep = Dense(3, activation="tanh", name="deep")(x)
    return cls(
        inputs,
        {
            "left": Dense(1, name="l")(pair),
            "middle": Dense(1, name="m")(pair),
            "right": Dense(1, name="r")(deep),
        },
    )


def test_several_but_not_all_is_shared():
    x, y = regression_data(rows=8)
    model = partly_shared(MultiTaskModel)
    layers = [v.path.split("/")[0] for v in model.shared_variables]
    assert layers == ["trunk", "trunk", "pair", "pair"]
    assert paths(model.task_variables("right")) == [
        "deep/kernel",
        "deep/bias",
        "r/kernel",
        "r/bias",
    ]
    assert train(model, x, y) == set(paths(model.variables))
    # A step of `right` moves nothing of the pair.
    only_right = Sampled({"left": 0, "middle": 0, "right": 1}, seed=0)
    moved = train(model, x, y, only_right)
    assert moved == {
        f"{layer}/{kind}"
        for layer in ("trunk", "deep", "r")
        for kind in ("kernel", "bias")
    }


def with_auxiliary(cls):
    """`embedding` has no loss; `probe` leads to it only."""
    inputs = keras.Input((6,))
    x = Dense(5, activation="tanh", name="trunk")(inputs)
    probe = Dense(4, name="probe")(x)
    return cls(
        inputs,
        {
            "left": Dense(1, name="l")(x),
            "embedding": Dense(2, name="e")(probe),
            "right": Dense(1, name="r")(x),
        },
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_output_without_loss_is_no_task(strategy):
    x, y = regression_data(("left", "right"), rows=16)
    keras.utils.set_random_seed(0)
    for model in (
        with_auxiliary(MultiTaskModel),
        Opaque(with_auxiliary(keras.Model)),
    ):
        moved = train(model, x, y, strategy, losses(("left", "right")))
        assert model.task_names == ("left", "right")
        assert paths(model.shared_variables) == ["trunk/kernel", "trunk/bias"]
        assert {path.split("/")[-2] for path in moved} == {"trunk", "l", "r"}
        assert set(model.predict(x, verbose=0)) == {
            "left",
            "embedding",
            "right",
        }
        assert set(model.history.history) == {"loss", "left_loss", "right_loss"}
        with pytest.raises(ValueError, match="embedding"):
            model.task_variables("embedding")


def test_output_without_loss_in_a_list():
    x, y = regression_data(rows=8)
    model = mlp(structure="list")
    moved = train(
        model,
        x,
        [y["left"], y["middle"], y["right"]],
        loss=["mse", None, "mse"],
    )
    assert model.task_names == ("left", "right")
    assert {path.split("/")[0] for path in moved} == {
        "trunk_1",
        "trunk_2",
        "left",
        "right",
    }


@pytest.mark.parametrize("strategy", ["joint", *STRATEGIES])
def test_frozen_trunk(strategy):
    x, y = regression_data(rows=24)
    model = mlp(batch_norm=True)
    for layer in model.layers:
        if layer.name.startswith("trunk"):
            layer.trainable = False
    assert model.shared_variables == []
    moved = train(model, x, y, strategy)
    assert model.shared_variables == []
    assert moved == {
        f"head_{name}/{kind}" for name in TASKS for kind in ("kernel", "bias")
    }
    # Unfrozen and compiled again, it trains.
    model.trainable = True
    for layer in model.layers:
        layer.trainable = True
    moved = train(model, x, y, strategy)
    assert moved == set(paths(model.variables))


def nested(cls):
    """A trunk that is a model, with one output that each task uses alone."""
    inner_inputs = keras.Input((6,))
    h = Dense(5, activation="tanh", name="common")(inner_inputs)
    inner = keras.Model(
        inner_inputs,
        [
            Dense(4, activation="tanh", name="for_left")(h),
            Dense(3, activation="tanh", name="for_rest")(h),
        ],
        name="inner",
    )
    inputs = keras.Input((6,))
    first, second = inner(inputs)
    head_inputs = keras.Input((4,))
    head = keras.Model(
        head_inputs, Dense(1, name="in_head")(head_inputs), name="head"
    )
    return cls(
        inputs,
        {
            "left": head(first),
            "middle": Dense(1, name="m")(second),
            "right": Dense(1, name="r")(second),
        },
    )


def test_nested_models():
    x, y = regression_data(rows=8)
    model = nested(MultiTaskModel)

    def layers(variables):
        return {v.path.split("/")[-2] for v in variables}

    assert layers(model.shared_variables) == {"common", "for_rest"}
    assert layers(model.task_variables("left")) == {"for_left", "in_head"}
    assert layers(model.task_variables("middle")) == {"m"}
    assert train(model, x, y) == set(paths(model.variables))
    only_left = Sampled({"left": 1, "middle": 0, "right": 0}, seed=0)
    moved = train(model, x, y, only_left)
    assert {path.split("/")[-2] for path in moved} == {
        "common",
        "for_left",
        "in_head",
    }


def called_twice(cls):
    """`both` is called by two heads, `again` twice by one."""
    inputs = keras.Input((6,))
    x = Dense(5, activation="tanh", name="trunk")(inputs)
    both = Dense(4, activation="tanh", name="both")
    again = Dense(5, activation="tanh", name="again")
    left = Dense(5, activation="tanh", name="left_first")(x)
    return cls(
        inputs,
        {
            "left": Dense(1, name="l")(both(left)),
            "middle": Dense(1, name="m")(both(x)),
            "right": Dense(1, name="r")(again(again(x))),
        },
    )


def test_layer_called_twice():
    x, y = regression_data(rows=8)
    model = called_twice(MultiTaskModel)
    assert paths(model.shared_variables) == [
        "trunk/kernel",
        "trunk/bias",
        "both/kernel",
        "both/bias",
    ]
    assert set(paths(model.task_variables("right"))) == {
        "again/kernel",
        "again/bias",
        "r/kernel",
        "r/bias",
    }
    assert train(model, x, y) == set(paths(model.variables))


def two_inputs(cls):
    """Named inputs of which `right` uses one only; no layer for `middle`."""
    image = keras.Input((6,), name="image")
    text = keras.Input((4,), name="text")
    seen = Dense(5, activation="tanh", name="see")(image)
    read = Dense(5, activation="tanh", name="read")(text)
    return cls(
        {"image": image, "text": text},
        {
            "left": Dense(1, name="l")(keras.layers.add([seen, read])),
            "middle": keras.ops.sum(seen, axis=-1, keepdims=True),
            "right": Dense(1, name="r")(read),
        },
    )


def test_two_inputs():
    model = two_inputs(MultiTaskModel)
    assert model.task_variables("middle") == []
    assert paths(model.task_variables("right")) == ["r/kernel", "r/bias"]
    assert paths(model.shared_variables) == [
        f"{layer}/{kind}"
        for layer in ("see", "read")
        for kind in ("kernel", "bias")
    ]


@pytest.mark.parametrize(
    ("build", "strategy"),
    [
        *itertools.product(
            (partly_shared, nested, called_twice, two_inputs),
            ("alternating", "round_robin"),
        ),
        (nested, "multi_adaptive"),
        (nested, RandomGroups(2, "step", seed=0)),
        (called_twice, Alternating(shuffle=True, seed=0)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_trains_as_if_the_graph_were_unknown(build, strategy):
    """Running only a task's part of the graph changes nothing in the result."""
    x, y = regression_data(rows=24)
    if build is two_inputs:
        x = {"image": x, "text": x[:, :4]}
    keras.utils.set_random_seed(0)
    functional = build(MultiTaskModel)
    keras.utils.set_random_seed(0)
    opaque = Opaque(build(keras.Model))
    assert train(functional, x, y, strategy) == set(paths(functional.variables))
    train(opaque, x, y, strategy)
    assert opaque.task_names == functional.task_names
    assert paths(opaque.shared_variables) == paths(functional.shared_variables)
    for name in TASKS:
        assert paths(opaque.task_variables(name)) == paths(
            functional.task_variables(name)
        )
    for a, b in zip(functional.weights, opaque.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=a.path)


def test_no_shared_layer_at_all():
    """Tasks that share nothing train as two models would."""
    x, y = regression_data(("left", "right"), rows=8)

    def build(cls, names):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        heads = [Dense(1)(inputs) for _ in range(2)]
        outputs = dict(zip(("left", "right"), heads, strict=True))
        return cls(inputs, {name: outputs[name] for name in names})

    model = build(MultiTaskModel, ("left", "right"))
    train(model, x, y, "alternating", losses(("left", "right")))
    assert model.shared_variables == []
    for name in ("left", "right"):
        alone = build(MultiTaskModel, (name,))
        train(alone, x, {name: y[name]}, "joint", {name: "mse"})
        for a, b in zip(model.task_variables(name), alone.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_gradient_stopped_before_the_trunk():
    """A head that a `stop_gradient` cuts off does not count for the trunk."""
    x, y = regression_data(("left", "right"), rows=8)
    inputs = keras.Input((6,))
    h = Dense(5, activation="tanh", name="trunk")(inputs)
    model = MultiTaskModel(
        inputs,
        {
            "left": Dense(1, name="l")(h),
            "right": Dense(1, name="r")(keras.ops.stop_gradient(h)),
        },
    )
    assert model.shared_variables == []
    assert len(model.task_variables("left")) == 4
    moved = train(model, x, y, loss=losses(("left", "right")))
    assert moved == set(paths(model.variables))


def test_same_bits_for_same_seed():
    """And the dict's order, not the names' alphabet, is the tasks' order."""
    x, y = regression_data(rows=8)
    first, second, other = mlp(), mlp(), mlp()
    for model in (first, second):
        train(model, x, y)
    train(other, x, y, "joint")
    assert_same_bits(values(first.weights), values(second.weights))
    assert (np.array(first.weights[0]) != np.array(other.weights[0])).any()
