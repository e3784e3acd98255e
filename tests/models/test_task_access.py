"""Single tasks of a model: predicted, taken out, added, shown."""

import doctest
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import (
    TASKS,
    Subclassed,
    assert_same_bits,
    losses,
    mlp,
    regression_data,
    values,
)

import mtlkeras
from mtlkeras import MultiTaskModel
from mtlkeras.models import task_access

Dense = keras.layers.Dense


def test_examples_run():
    """`tests/test_public_api.py` sees the methods of a class only."""
    names = {"keras": keras, "np": np, "mtlkeras": mtlkeras}
    found = doctest.DocTestFinder(exclude_empty=True).find(
        task_access, globs=names
    )
    examples = [test for test in found if test.examples]
    assert len(examples) == 4
    for test in examples:
        output = []
        doctest.DocTestRunner().run(test, out=output.append)
        assert not output, "".join(output)


def compiled(model=None, **arguments):
    model = model or mlp()
    arguments = {"strategy": "alternating", "run_eagerly": True, **arguments}
    model.compile(keras.optimizers.Adam(0.01), losses(), **arguments)
    return model


# -- predict -------------------------------------------------------------------


def two_inputs():
    """`right` needs one input only."""
    image = keras.Input((6,), name="image")
    text = keras.Input((4,), name="text")
    seen, read = Dense(5)(image), Dense(5)(text)
    heads = {
        "left": Dense(1)(keras.layers.add([seen, read])),
        "right": Dense(1)(read),
    }
    return MultiTaskModel({"image": image, "text": text}, heads)


FORMS = {
    "dict": lambda: mlp(batch_norm=True, dropout=0.5),
    "list": lambda: mlp(structure="list"),
    "single": lambda: mlp(structure="single"),
    "compiled": lambda: compiled(mlp(dropout=0.5), run_eagerly=False),
    "subclassed": Subclassed,
    "compiled_subclass": lambda: compiled(Subclassed()),
    "two_inputs": two_inputs,
}


@pytest.mark.parametrize("form", FORMS)
def test_predict_some_tasks(form):
    x, _ = regression_data(rows=7)
    if form == "two_inputs":
        x = {"image": x, "text": x[:, :4]}
    model = FORMS[form]()
    whole = model(x)
    names = TASKS if "subclass" in form else model.task_names
    flat = keras.tree.flatten(whole)
    expected = (
        whole
        if isinstance(whole, dict)
        else dict(zip(names, flat, strict=True))
    )
    for tasks in ([names[-1]], (names[-1], names[0])):
        found = model.predict(x, batch_size=4, verbose=0, tasks=tasks)
        assert set(found) == set(tasks)
        for name in tasks:
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-5, atol=1e-6
            )
    # And all of them again, in the model's own structure.
    keras.tree.assert_same_structure(model.predict(x, verbose=0), whole)


class Counted(Dense):
    """Counts how often it is traced or run."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs)


def test_predict_runs_only_what_the_tasks_need():
    x, _ = regression_data(rows=8)
    inputs = keras.Input((6,))
    trunk = Counted(5)
    heads = {name: Counted(1) for name in TASKS}
    hidden = trunk(inputs)
    model = MultiTaskModel(
        inputs, {name: head(hidden) for name, head in heads.items()}
    )

    def calls(tasks):
        layers = [trunk, *heads.values()]
        before = [layer.calls for layer in layers]
        model.predict(x, batch_size=2, verbose=0, tasks=tasks)
        return [a.calls - b for a, b in zip(layers, before, strict=True)]

    # Traced once for four batches, and not again.
    assert calls(["middle"]) == [1, 0, 1, 0]
    assert calls(["middle"]) == [0, 0, 0, 0]
    assert calls(["left", "right"]) == [1, 1, 0, 1]
    assert calls(None) == [1, 1, 1, 1]
    assert calls(["right", "left"]) == [0, 0, 0, 0]
    assert calls(None) == [0, 0, 0, 0]
    model.compile("adam", losses(), run_eagerly=True)
    assert calls(["middle"]) == [4, 0, 4, 0]


def test_predict_sees_later_training():
    x, y = regression_data(rows=8)
    model = compiled()
    before = model.predict(x, verbose=0, tasks=["left"])["left"]
    model.fit(x, y, epochs=2, verbose=0)
    after = model.predict(x, verbose=0, tasks=["left"])["left"]
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(x)["left"], rtol=1e-5, atol=1e-6)


def test_predict_takes_what_keras_takes():
    """Data sets, steps, callbacks, which see the model itself."""
    x, _ = regression_data(rows=8)
    model = mlp()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            seen.append((self.model, sorted(logs)))

    found = model.predict(
        ((batch,) for batch in (x[:4], x[4:], x)),
        steps=2,
        callbacks=[Watch()],
        verbose=0,
        tasks=["right"],
    )
    assert found["right"].shape == (8, 1)
    assert seen == [(model, ["right"])] * 2


@pytest.mark.parametrize("build", [mlp, Subclassed])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_predict_refuses_other_names(build, is_compiled):
    x, y = regression_data(rows=2)
    model = build()
    if is_compiled:
        compiled(model).fit(x, y, verbose=0)
    for tasks in ("left", [], ["up"], ["left", "up"], [0], {"left": 1}, [None]):
        with pytest.raises(ValueError, match="Argument `tasks` must"):
            model.predict(x, verbose=0, tasks=tasks)
    # Nothing is left of it.
    assert set(model.predict(x, verbose=0)) == set(TASKS)
    assert set(model.predict(x, verbose=0, tasks=["left"])) == {"left"}


# -- a model of one task -------------------------------------------------------


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_task_model(structure, tmp_path):
    x, y = regression_data(rows=8)
    model = mlp(structure=structure, batch_norm=True)
    alone = model.task_model("middle")
    assert type(alone) is type(mlp(keras.Model))
    assert alone.name == "middle"
    assert alone.output_shape == (None, 1)
    # Input, trunk of three layers, one head.
    assert len(alone.layers) == 5
    assert all(any(w is v for v in model.weights) for w in alone.weights)
    index = 1 if structure == "list" else "middle"
    np.testing.assert_allclose(
        alone.predict(x, verbose=0), model(x)[index], rtol=1e-5, atol=1e-6
    )
    # What trains the one trains the other, and no other head.
    before = values(model.trainable_variables)
    alone.compile("sgd", "mse", run_eagerly=True)
    alone.fit(x, y["middle"], verbose=0)
    moved = [
        (old != new).any()
        for old, new in zip(
            before, values(model.trainable_variables), strict=True
        )
    ]
    own = {id(v) for v in alone.trainable_variables}
    assert moved == [id(v) in own for v in model.trainable_variables]
    # By itself: a file of plain Keras.
    alone.save(tmp_path / "middle.keras")
    loaded = keras.models.load_model(tmp_path / "middle.keras")
    assert_same_bits(values(loaded.variables), values(alone.variables))
    np.testing.assert_array_equal(loaded(x), alone(x))


def test_task_model_of_a_trained_model_and_of_an_output_without_loss():
    x, y = regression_data(("left", "middle"), rows=8)
    model = mlp()
    model.compile(
        "adam",
        losses(("left", "middle")),
        strategy="alternating",
        run_eagerly=True,
    )
    model.fit(x, y, verbose=0)
    for name in TASKS:
        found = model.task_model(name)(x)
        np.testing.assert_array_equal(found, model(x)[name])


def test_task_model_takes_the_same_inputs():
    x, _ = regression_data(rows=4)
    given = {"image": x, "text": x[:, :4]}
    model = two_inputs()
    alone = model.task_model("right")
    assert set(alone.input) == {"image", "text"}
    np.testing.assert_allclose(alone(given), model(given)["right"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("depth/mean", "depth_mean"), ("left hand", "left_hand"), ("深", None)],
)
def test_names_that_a_model_cannot_have(name, expected):
    x, _ = regression_data(rows=2)
    model = mlp(tasks=("left",))
    model = model.with_task(name, Dense(1)(model.get_layer("trunk_2").output))
    alone = model.task_model(name)
    assert alone.name == expected or expected is None
    np.testing.assert_array_equal(alone(x), model(x)[name])


def test_what_needs_a_graph():
    model = Subclassed()
    model(regression_data(rows=2)[0])
    output = Dense(1)(keras.Input((5,)))
    for method, arguments in (
        ("task_model", ("left",)),
        ("with_task", ("up", output)),
    ):
        with pytest.raises(ValueError, match=f"{method}.*functional model"):
            getattr(model, method)(*arguments)


def test_task_model_of_an_unknown_task():
    for model in (mlp(), compiled()):
        with pytest.raises(ValueError, match=r"left.*right.*\['up'\]"):
            model.task_model("up")


# -- layers that depend on the task --------------------------------------------


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_tasks_with_units_of_their_own(structure, tmp_path):
    """Each task runs with its own mask, alone and exported, too."""
    x, y = regression_data(rows=8)
    stock = mlp(keras.Model, structure=structure, batch_norm=True)
    model = MultiTaskModel.with_roaming(stock, 0.5, dense=True, seed=0)
    expected = keras.tree.flatten(model(x))
    names = model.task_names
    for plain, masked in zip(
        keras.tree.flatten(stock(x)), expected, strict=True
    ):
        assert np.abs(plain - masked).max() > 1e-3
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model")).signatures
    found = loaded["serving_default"](features=tf.constant(x))
    for name, whole in zip(names, expected, strict=True):
        alone = model.task_model(name)
        alone.save(tmp_path / f"{name}.keras")
        for values_of_task in (
            model.predict(x, verbose=0, tasks=[name])[name],
            alone(x),
            keras.models.load_model(tmp_path / f"{name}.keras")(x),
            found[name],
            loaded[name](features=tf.constant(x))[name],
        ):
            np.testing.assert_allclose(
                values_of_task, whole, rtol=1e-5, atol=1e-6
            )
        assert all(any(w is v for v in model.weights) for w in alone.weights)
    with pytest.raises(ValueError, match="RoamingMask.*made for 3"):
        with_new(model)


# -- a task more ---------------------------------------------------------------


def with_new(model, name="new"):
    return model.with_task(name, Dense(1)(model.get_layer("trunk_2").output))


@pytest.mark.parametrize("structure", ["dict", "list", "single"])
def test_with_task(structure):
    x, y = regression_data(rows=8)
    model = mlp(structure=structure)
    names = model.task_names
    before = keras.tree.flatten(model(x))
    larger = with_new(model)
    assert isinstance(larger, MultiTaskModel)
    assert not larger.compiled
    assert larger.task_names == (*names, "new")
    assert len(larger.weights) == len(model.weights) + 2
    assert all(any(w is v for v in larger.weights) for w in model.weights)
    outputs = larger(x)
    if structure != "dict":
        for name, value in zip(names, before, strict=True):
            np.testing.assert_array_equal(outputs[name], value)
    targets = {name: y["left"] for name in larger.task_names}
    larger.compile(
        "adam", losses(targets), strategy="alternating", run_eagerly=True
    )
    larger.fit(x, targets, verbose=0)
    assert len(larger.optimizer.optimizers) == len(names) + 1
    # The model itself has the tasks that it had, and the trained trunk.
    assert model.task_names == names
    for name, value in zip(names, keras.tree.flatten(model(x)), strict=True):
        if structure != "dict":
            np.testing.assert_array_equal(larger(x)[name], value)


def test_only_the_new_head_trains():
    """Against a stock model of the head alone, on what the trunk gives."""
    x, y = regression_data(rows=8)
    model = compiled(mlp(batch_norm=True))
    model.fit(x, y, verbose=0)
    old = model(x)
    before = values(model.variables)
    for layer in model.layers:
        layer.trainable = False
    larger = with_new(model)
    new = larger.trainable_variables
    features = keras.Model(model.input, model.get_layer("trunk_2").output)(x)
    head = keras.Sequential([keras.Input((5,)), Dense(1)])
    head.set_weights([v.numpy() for v in new])
    head.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)
    head.fit(features, y["left"], epochs=3, shuffle=False, verbose=0)
    # No labels of the other tasks are needed: without a loss they are none.
    larger.compile(keras.optimizers.Adam(0.1), {"new": "mse"}, run_eagerly=True)
    larger.fit(x, {"new": y["left"]}, epochs=3, shuffle=False, verbose=0)
    assert larger.task_names == ("new",)
    for mine, theirs in zip(new, head.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    assert_same_bits(values(model.variables), before)
    for name in TASKS:
        np.testing.assert_array_equal(larger(x)[name], old[name])


def test_optimizer_state_of_a_larger_model():
    """Fresh, whatever optimizer the smaller one had."""
    x, y = regression_data(rows=8)
    targets = {**y, "new": y["left"]}
    for strategy in ("joint", "alternating"):
        model = compiled(strategy=strategy)
        model.fit(x, y, verbose=0)
        assert int(model.optimizer.iterations) == 1
        larger = with_new(model)
        if strategy == "joint":
            # Keras's own optimizer cannot grow.
            larger.compile(model.optimizer, losses(targets), run_eagerly=True)
            with pytest.raises(ValueError, match="recreate a new optimizer"):
                larger.fit(x, targets, verbose=0)
            continue
        larger.compile(model.optimizer, losses(targets), strategy=strategy)
        assert larger.optimizer is not model.optimizer
        assert int(larger.optimizer.iterations) == 0
        # And the smaller model goes on with its own.
        model.fit(x, y, verbose=0)
        assert int(model.optimizer.iterations) == 2


def test_a_larger_model_is_saved(tmp_path):
    x, y = regression_data(rows=8)
    targets = {**y, "new": y["left"]}
    larger = with_new(compiled())
    larger.compile(
        "adam", losses(targets), strategy="alternating", run_eagerly=True
    )
    larger.fit(x, targets, verbose=0)
    larger.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.task_names == (*TASKS, "new")
    assert_same_bits(
        values(loaded.variables) + values(loaded.optimizer.variables),
        values(larger.variables) + values(larger.optimizer.variables),
    )


@pytest.mark.parametrize("name", ["left", "", None, 3])
def test_with_task_refuses_names(name):
    with pytest.raises(ValueError, match="Argument `name` must be a string"):
        with_new(mlp(), name)


@pytest.mark.parametrize(
    "output", [None, Dense(1), np.ones((2, 1)), {"new": 1}], ids=repr
)
def test_with_task_refuses_what_is_no_output(output):
    with pytest.raises(ValueError, match="Argument `output` must be a Keras"):
        mlp().with_task("new", output)


def test_with_task_refuses_another_graph():
    with pytest.raises(ValueError, match="not connected to `inputs`"):
        mlp().with_task("new", Dense(1)(keras.Input((6,))))


# -- summary -------------------------------------------------------------------


def summary(model, **arguments):
    texts = []
    assert model.summary(print_fn=texts.append, **arguments) is None
    assert len(texts) == 1  # as in Keras
    return texts[0]


def rows_of_tasks(text):
    """Rows of the second table: tasks, layers, count."""
    table = text[text.index("┃ Tasks") :]
    rows = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) == 3 and cells[2]:
            rows.append(cells)
        elif len(cells) == 3:  # a long cell goes on
            for i, cell in enumerate(cells):
                rows[-1][i] = f"{rows[-1][i]} {cell}".strip()
    return rows


HEADS = [[name, f"head_{name}", "6"] for name in TASKS]


@pytest.mark.parametrize("is_compiled", [False, True])
def test_summary(is_compiled):
    model = mlp(batch_norm=True)
    plain = summary(keras.Model(model.input, model.output, name=model.name))
    if is_compiled:
        compiled(model)
    text = summary(model)
    first = text[: text.index("┏", text.index("Non-trainable params"))]
    trunk = ["shared by all 3", "trunk_1, trunk_norm, trunk_2", "133"]
    assert rows_of_tasks(text) == [trunk, *HEADS]
    # Keras's own table stays as it is (and tells of the optimizer).
    if not is_compiled:
        assert first == plain
    assert first.splitlines()[0] == plain.splitlines()[0]


def test_summary_of_a_part_of_the_tasks():
    inputs = keras.Input((6,))
    trunk = Dense(5, name="trunk")(inputs)
    pair = Dense(4, name="pair")(trunk)
    model = MultiTaskModel(
        inputs,
        {
            "left": Dense(1, name="l")(pair),
            "middle": Dense(1, name="m")(pair),
            "right": Dense(1, name="r")(trunk),
            "embedding": Dense(2, name="e")(trunk),
        },
    )
    model.compile("adam", losses())
    assert rows_of_tasks(summary(model)) == [
        ["shared by all 3", "trunk", "35"],
        ["shared by left, middle", "pair", "24"],
        ["left", "l", "5"],
        ["middle", "m", "5"],
        ["right", "r", "6"],
        ["no task", "e", "12"],
    ]


def nested_model():
    inner_inputs = keras.Input((6,))
    common = Dense(5, name="common")(inner_inputs)
    inner = keras.Model(
        inner_inputs,
        [Dense(4, name="for_left")(common), Dense(3, name="for_right")(common)],
        name="inner",
    )
    inputs = keras.Input((6,))
    first, second = inner(inputs)
    return MultiTaskModel(
        inputs,
        {
            "left": Dense(1, name="l")(first),
            "right": Dense(1, name="r")(second),
        },
    )


def test_arguments_of_summary():
    model = nested_model()
    assert rows_of_tasks(summary(model)) == [
        ["shared by all 2", "inner", "77"],
        ["left", "l", "5"],
        ["right", "r", "4"],
    ]
    text = summary(model, expand_nested=True, show_trainable=True)
    assert "Traina" in text
    assert rows_of_tasks(text) == [
        ["shared by all 2", "common", "35"],
        ["left", "for_left, l", "29"],
        ["right", "for_right, r", "22"],
    ]
    for bounds in (["trunk_2", "head_l.*"], ["head_l.*", "trunk_2"]):
        text = summary(mlp(), layer_range=bounds)
        assert "trunk_1 (Dense)" not in text
        assert rows_of_tasks(text) == [
            ["shared by all 3", "trunk_2", "45"],
            HEADS[0],
        ]
    text = summary(mlp(), line_length=50, positions=[0.4, 0.6, 0.8, 1.0])
    assert {len(line) for line in text.splitlines() if "┃" in line} == {50}
    with pytest.raises(ValueError, match="do not match the layer names"):
        summary(mlp(), layer_range=["none", "such"])
    with pytest.raises(ValueError, match="of length 2"):
        summary(mlp(), layer_range=["trunk_1"])


def test_summary_of_one_output_is_that_of_keras():
    model = mlp(structure="single")
    stock = keras.Model(model.input, model.output, name=model.name)
    assert summary(model) == summary(stock)


def test_summary_of_a_subclass():
    x, y = regression_data(rows=4)
    model = Subclassed()
    assert "Tasks" not in summary(model)
    compiled(model).fit(x, y, verbose=0)
    rows = rows_of_tasks(summary(model))
    assert [row[0] for row in rows] == ["shared by all 3", *TASKS]
    assert [row[2] for row in rows] == ["101", "6", "6", "6"]


def test_summary_prints_where_keras_does(capsys, caplog):
    model = mlp()
    model.summary()
    printed = capsys.readouterr().out
    assert "Total params" in printed
    assert "shared by all 3" in printed
    keras.config.disable_interactive_logging()
    try:
        with caplog.at_level("INFO", logger="absl"):
            model.summary()
    finally:
        keras.config.enable_interactive_logging()
    assert capsys.readouterr().out == ""
    (record,) = caplog.records
    assert "Total params" in record.getMessage()
    assert "shared by all 3" in record.getMessage()


def test_the_methods_are_in_a_file_of_their_own():
    """Where a reader looks for them: none is written twice."""
    own = set(vars(task_access.TaskAccess)) & set(vars(MultiTaskModel))
    assert not {name for name in own if not name.startswith("__")}
    assert pathlib.Path(task_access.__file__).name == "task_access.py"
