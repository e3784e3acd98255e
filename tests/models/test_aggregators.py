"""What an aggregator does inside of a model's training step.

The rules themselves are tested in `tests/aggregators`. Here a step with SGD at
rate 1 shows the direction that was used, beside the rule called on per-task
gradients that a tape took from a stock Keras model.
"""

import cases
import keras
import nets
import numpy as np
import pytest
import tensorflow as tf
from nets import TASKS

import mtlkeras
from mtlkeras import aggregators
from mtlkeras.aggregators import (
    EMA,
    MGDA,
    CAGrad,
    GradDrop,
    GradVac,
    MoCo,
    NashMTL,
    PCGrad,
    Sum,
    TaskTensioner,
    UPGrad,
)
from mtlkeras.strategies import Grouped, RandomGroups

HEADS = {name: f"head_{name}" for name in TASKS}
ROWS = 8


def batch(task_with_nan=None):
    x, y = nets.regression_data(rows=ROWS)
    # Of unlike scales, so that rules differ.
    y["middle"] = 5.0 * y["middle"]
    if task_with_nan:
        y[task_with_nan][:] = np.nan
    return x, y


def compiled(aggregator, model=None, optimizer=None, **options):
    model = model or nets.mlp()
    model.compile(
        optimizer or keras.optimizers.SGD(1.0),
        loss=options.pop("loss", None) or nets.losses(),
        aggregator=aggregator,
        # Without tracing, which is most of a test's time.
        run_eagerly=options.pop("run_eagerly", True),
        **options,
    )
    return model


def is_head(variable):
    return "head_" in variable.path


def task_gradients(model, x, y, features=None):
    """Losses, rows over the shared variables and head gradients by task.

    With `features`, the name of a layer, rows over its output, too.
    """
    shared = [v for v in model.trainable_variables if not is_head(v)]
    output = model.get_layer(features).output if features else model.output
    wrapped = keras.Model(model.input, [model.output, output])
    losses, rows, heads, at_features = [], [], {}, []
    for name in TASKS:
        own = model.get_layer(HEADS[name]).trainable_variables
        with tf.GradientTape() as tape:
            predictions, tensor = wrapped(x)
            loss = tf.reduce_mean((predictions[name] - y[name]) ** 2)
        sources = [v.value for v in shared + own]
        sources += [tensor] if features else []
        taken = [np.asarray(g) for g in tape.gradient(loss, sources)]
        losses.append(float(loss))
        rows.append(np.concatenate([g.ravel() for g in taken[: len(shared)]]))
        heads[name] = taken[len(shared) : len(shared) + len(own)]
        at_features.append(taken[-1].ravel())
    return np.array(losses), np.stack(rows), heads, np.stack(at_features)


def step_of(model, x, y):
    """How far a step moved: the shared variables, flat, and every head."""
    before = {v.path: np.array(v) for v in model.trainable_variables}
    model.train_on_batch(x, y)
    moved = {
        v.path: before[v.path] - np.array(v) for v in model.trainable_variables
    }
    shared = [v for v in model.trainable_variables if not is_head(v)]
    heads = {
        name: [
            moved[v.path]
            for v in model.get_layer(HEADS[name]).trainable_variables
        ]
        for name in TASKS
    }
    return np.concatenate([moved[v.path].ravel() for v in shared]), heads


def assert_close(found, expected, tolerance=2e-6):
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


MULTI = mtlkeras.MultiTaskModel

RULES = {
    **{
        name: (lambda name=name, **k: aggregators.get(name).__class__(**k))
        for name in aggregators.ids()
    },
    "ema": lambda **k: EMA("mgda", **k),
}


@pytest.mark.parametrize("name", RULES)
def test_the_direction_is_the_rules_and_heads_follow_their_own(name):
    x, y = batch()
    losses, rows, heads, _ = task_gradients(nets.mlp(keras.Model), x, y)
    model = compiled(RULES[name]())
    shared, moved_heads = step_of(model, x, y)
    expected = RULES[name]()(rows, losses.astype("float32"))
    # Rows that nearly cancel lose digits in float32.
    assert_close(shared, expected, 3e-5)
    for task in TASKS:
        for found, wanted in zip(moved_heads[task], heads[task], strict=True):
            assert_close(found, wanted)


GRAMIAN_RULES = [n for n in RULES if not RULES[n]().needs_rows]


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "ema"])
def test_low_memory_is_the_same_direction(name):
    x, y = batch()
    high, _ = step_of(compiled(RULES[name]()), x, y)
    low, _ = step_of(compiled(RULES[name](memory="low")), x, y)
    assert_close(low, high, 1e-5)


@pytest.mark.parametrize("name", ["sum", "mgda", "cagrad", "gradvac"])
def test_at_features_the_weights_are_those_of_the_features(name):
    x, y = batch()
    stock = nets.mlp(keras.Model)
    _, rows, heads, features = task_gradients(stock, x, y, "trunk_2")
    model = compiled(RULES[name](gradients_at="features"))
    shared, moved_heads = step_of(model, x, y)
    rule = RULES[name]()
    rule(features)
    weights = rule.last_task_weights
    assert_close(model.aggregator.last_task_weights, weights, 1e-5)
    assert_close(shared, weights @ rows, 1e-5)
    for task in TASKS:
        for found, wanted in zip(moved_heads[task], heads[task], strict=True):
            assert_close(found, wanted)


def test_graddrop_at_features_drops_there():
    x, y = batch()
    model = compiled(aggregators.GradDrop(gradients_at="features"))
    stock = nets.mlp(keras.Model)
    _, _, _, features = task_gradients(stock, x, y, "trunk_2")
    direction = aggregators.GradDrop()(features)
    shared = [v for v in stock.trainable_variables if not is_head(v)]
    trunk = keras.Model(stock.input, stock.get_layer("trunk_2").output)
    with tf.GradientTape() as tape:
        output = trunk(x)
    seed = tf.reshape(direction, output.shape)
    taken = tape.gradient(output, [v.value for v in shared], seed)
    expected = np.concatenate([np.ravel(g) for g in taken])
    found, _ = step_of(model, x, y)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["mgda", "upgrad"])
def test_features_equal_parameters_behind_an_isometric_trunk(name):
    """A single sample, all of whose gradients keep their inner products."""
    rng = np.random.default_rng(0)
    kernel, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    x = np.array([[1.0, 0.0, 0.0, 0.0]], "float32")
    y = {name: rng.normal(size=(1, 1)).astype("float32") for name in TASKS}

    def network():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        trunk = keras.layers.Dense(4, use_bias=False, name="trunk")
        hidden = trunk(inputs)
        trunk.set_weights([kernel.astype("float32")])
        hidden = keras.layers.Identity(name="features")(hidden)
        return mtlkeras.MultiTaskModel(
            inputs,
            {n: keras.layers.Dense(1, name=HEADS[n])(hidden) for n in TASKS},
        )

    found = [
        step_of(compiled(RULES[name](gradients_at=place), network()), x, y)[0]
        for place in ("parameters", "features")
    ]
    assert_close(found[1], found[0], 1e-6)


class Subclass(mtlkeras.MultiTaskModel):
    """The layers of `nets.mlp` in a `call`."""

    def __init__(self, twin):
        super().__init__()
        self.parts = [twin.get_layer(f"trunk_{k}") for k in (1, 2)]
        self.heads = {n: twin.get_layer(HEADS[n]) for n in TASKS}

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return {name: head(inputs) for name, head in self.heads.items()}


def test_feature_layers_of_a_subclass_and_of_a_graph():
    x, y = batch()
    expected, _ = step_of(compiled(MGDA(gradients_at="features")), x, y)
    for model in (Subclass(nets.mlp(keras.Model)), nets.mlp()):
        rule = MGDA(gradients_at="features", feature_layers=["trunk_2"])
        model = compiled(rule, model)
        variables = nets.mlp().trainable_variables
        model.fit(x, y, batch_size=ROWS, verbose=0)
        moved = [
            np.ravel(v - np.array(new))
            for v, new in zip(
                variables,
                sorted(
                    model.trainable_variables,
                    key=lambda v: [u.path for u in variables].index(v.path),
                ),
                strict=True,
            )
            if not is_head(new)
        ]
        assert_close(np.concatenate(moved), expected, 1e-5)


def two_exits(cls):
    """`left` leaves the trunk after the first layer, the others later."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    early = keras.layers.Dense(5, activation="tanh", name="early")(inputs)
    late = keras.layers.Dense(5, activation="tanh", name="late")(early)
    shared_head = keras.layers.Dense(4, activation="tanh", name="twice")
    exits = {"left": early, "middle": late, "right": late}
    return cls(
        inputs,
        {
            n: keras.layers.Dense(1, name=HEADS[n])(
                exits[n] if n == "left" else shared_head(exits[n])
            )
            for n in TASKS
        },
    )


@pytest.mark.parametrize("place", ["parameters", "features"])
def test_tasks_that_leave_the_trunk_at_different_tensors(place):
    """`Sum` shows whether every path is there once."""
    x, y = batch()
    stock = two_exits(keras.Model)
    with tf.GradientTape() as tape:
        predictions = stock(x)
        loss = sum(tf.reduce_mean((predictions[n] - y[n]) ** 2) for n in TASKS)
    variables = stock.trainable_variables
    expected = tape.gradient(loss, [v.value for v in variables])
    before = nets.values(variables)
    model = compiled(
        Sum(gradients_at=place), two_exits(mtlkeras.MultiTaskModel)
    )
    model.train_on_batch(x, y)
    for old, new, gradient in zip(
        before, model.trainable_variables, expected, strict=True
    ):
        assert_close(old - np.array(new), gradient, 1e-5)


@pytest.mark.parametrize("place", ["parameters", "features"])
def test_what_the_model_adds_to_the_loss_stays_outside(place):
    x, y = batch()
    plain, _ = step_of(compiled(MGDA(gradients_at=place)), x, y)
    model = nets.mlp(regularizer=keras.regularizers.L2(0.5))
    kernel = np.array(model.get_layer("trunk_2").kernel)
    decayed, _ = step_of(compiled(MGDA(gradients_at=place), model), x, y)
    difference = (decayed - plain)[-kernel.size - 5 : -5].reshape(kernel.shape)
    assert_close(difference, kernel, 1e-5)


@pytest.mark.parametrize("place", ["parameters", "features"])
@pytest.mark.parametrize("kind", ["no label", "not finite"])
def test_a_dead_task_leaves_the_problem_and_its_head_rests(place, kind):
    x, y = batch()
    _, rows, _, features = task_gradients(
        nets.mlp(keras.Model), x, y, "trunk_2"
    )
    model = compiled(
        UPGrad(gradients_at=place),
        optimizer=keras.optimizers.Adam(0.1, epsilon=1e-3),
    )
    model.train_on_batch(x, y)
    head = model.get_layer(HEADS["middle"]).trainable_variables
    slots = [
        slot
        for v in head
        for slot in (
            model.optimizer._momentums[model.optimizer._get_variable_index(v)],
        )
    ]
    before = nets.values([*head, *slots])
    y["middle"][:] = np.nan if kind == "no label" else np.inf
    others = np.array(model.get_layer("trunk_1").kernel)
    model.train_on_batch(x, y)
    nets.assert_same_bits(nets.values([*head, *slots]), before)
    assert (others != np.array(model.get_layer("trunk_1").kernel)).any()
    weights = model.aggregator.last_task_weights
    assert weights[1] == 0
    assert np.isfinite(weights).all()
    # The rule on the live rows alone.
    model = compiled(UPGrad(gradients_at=place))
    moved, _ = step_of(model, x, y)
    live = UPGrad()
    live((rows if place == "parameters" else features)[[0, 2]])
    assert_close(moved, live.last_task_weights @ rows[[0, 2]], 1e-5)


@pytest.mark.parametrize("name", ["db_mtl", "task_tensioner"])
def test_a_loss_that_is_not_positive_is_reported_and_skipped(name):
    def negated(y_true, y_pred):
        return -keras.losses.mean_squared_error(y_true, y_pred)

    x, y = batch()
    model = compiled(name, loss={**nets.losses(), "middle": negated})
    heads = {
        task: model.get_layer(layer).trainable_variables
        for task, layer in HEADS.items()
    }
    before = {task: nets.values(head) for task, head in heads.items()}
    with pytest.warns(UserWarning, match="not positive.*'middle' \\(2 times"):
        model.fit(x, y, batch_size=ROWS // 2, verbose=0)
    nets.assert_same_bits(nets.values(heads["middle"]), before["middle"])
    for task in ("left", "right"):
        for value, old in zip(
            nets.values(heads[task]), before[task], strict=True
        ):
            assert np.isfinite(value).all()
            assert (value != old).any()


def test_groups_have_a_rule_each():
    x, y = batch()
    losses, rows, _, _ = task_gradients(nets.mlp(keras.Model), x, y)
    groups = [["right", "left"], ["middle"]]
    model = compiled(
        MGDA(), strategy=Grouped(groups), optimizer=keras.optimizers.SGD(1e-4)
    )
    moved, _ = step_of(model, x, y)
    rule = MGDA()
    direction = rule(rows[[2, 0]])
    # The second group's step is from the weights that the first one left.
    assert_close(moved / 1e-4, np.asarray(direction) + rows[1], 5e-3)
    weights = model.aggregator.last_task_weights
    assert_close(weights[[2, 0]], rule.last_task_weights, 1e-5)
    assert weights[1] == 1


STATEFUL = {
    "gradvac": lambda: GradVac(seed=3),
    "pcgrad": lambda: PCGrad(seed=3),
    "moco": MoCo,
    "db_mtl": aggregators.DBMTL,
    "ema": lambda: EMA(MGDA(normalization="l2"), momentum=0.5),
    "nash": lambda: NashMTL(update_every=2),
    "task_tensioner": lambda: TaskTensioner(window=2),
    "graddrop": lambda: aggregators.GradDrop(seed=1),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_saved_rule_goes_on(name, tmp_path):
    x, y = batch()
    strategy = (
        Grouped([["left", "right"], ["middle"]]) if name == "ema" else "joint"
    )

    def build():
        return compiled(
            STATEFUL[name](),
            # In a graph, which takes longer, where most comes together.
            run_eagerly=name != "ema",
            strategy=strategy,
            optimizer=keras.optimizers.Adam(0.01),
        )

    model = build()
    for _ in range(3):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    weights_only = build()
    weights_only.train_on_batch(x, y)
    weights_only.load_weights(tmp_path / "model.weights.h5")
    fresh = build()
    fresh.set_weights(model.get_weights())
    for each in (model, loaded, weights_only, fresh):
        each.train_on_batch(x, y)
    expected = nets.values(model.weights)
    assert loaded.aggregator.same_rule(model.aggregator)
    nets.assert_same_bits(nets.values(loaded.weights), expected)
    nets.assert_same_bits(nets.values(weights_only.weights), expected)
    # A model whose state was lost does not go on like that.
    assert any(
        (a != b).any()
        for a, b in zip(nets.values(fresh.weights), expected, strict=True)
    )


def test_fit_keeps_an_equal_rule_and_replaces_another():
    x, y = batch()
    model = compiled(EMA(MGDA()))
    optimizer = model.optimizer
    model.fit(x, y, verbose=0)
    rule = model.aggregator
    average = np.array(rule.average)
    model.fit(x, y, verbose=0, aggregator=EMA(MGDA()))
    assert model.aggregator is rule
    assert (np.array(rule.average) != average).any()
    model.fit(x, y, verbose=0, aggregator="cagrad")
    assert isinstance(model.aggregator, CAGrad)
    model.fit(x, y, verbose=0, aggregator=None)
    assert model.aggregator is None
    assert model.optimizer is optimizer


@pytest.mark.parametrize("place", ["parameters", "features"])
def test_an_overflow_halves_the_loss_scale_and_changes_nothing_else(place):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        x, y = batch()
        model = compiled(
            GradVac(gradients_at=place, order="ascending"),
            optimizer=keras.optimizers.LossScaleOptimizer(
                keras.optimizers.Adam(0.01), initial_scale=2.0**8
            ),
        )
        model.train_on_batch(x, y)
        model.optimizer.dynamic_scale.assign(2.0**60)
        kept = [
            v for v in [*model.trainable_variables, model.aggregator.targets]
        ]
        before = nets.values(kept)
        model.train_on_batch(x, y)
        nets.assert_same_bits(nets.values(kept), before)
        assert float(model.optimizer.dynamic_scale) == 2.0**59
        model.optimizer.dynamic_scale.assign(2.0**8)
        model.train_on_batch(x, y)
        after = nets.values(kept)
        assert all(np.isfinite(v).all() for v in after)
        assert (after[0] != before[0]).any()
    finally:
        keras.mixed_precision.set_global_policy("float32")


# -- bad input ----------------------------------------------------------------


def test_features_of_an_opaque_model_need_names():
    x, y = batch()
    model = compiled(
        MGDA(gradients_at="features"), Subclass(nets.mlp(keras.Model))
    )
    with pytest.raises(ValueError, match="feature_layers=\\['name'\\]"):
        model.fit(x, y, verbose=0)
    model.fit(x, y, verbose=0, aggregator="mgda")


def test_feature_layers_must_be_layers():
    x, y = batch()
    rule = MGDA(gradients_at="features", feature_layers=["trunk_22"])
    with pytest.raises(ValueError, match="Did you mean 'trunk_2'"):
        compiled(rule)


def test_feature_layers_must_be_called_once_before_the_heads():
    x, y = batch()
    rule = Sum(gradients_at="features", feature_layers=["twice"])
    model = compiled(rule, two_exits(mtlkeras.MultiTaskModel))
    with pytest.raises(ValueError, match="called again"):
        model.train_on_batch(x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients_at": "logits"}, "gradients_at"),
        ({"memory": "tiny"}, "memory"),
        ({"feature_layers": ["a"]}, "goes with gradients_at='features'"),
    ],
)
def test_arguments_of_all_rules(arguments, message):
    with pytest.raises(ValueError, match=message):
        MGDA(**arguments)


def test_rules_on_rows_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="keeps estimates"):
        MoCo(gradients_at="features")
    with pytest.raises(ValueError, match="all tasks at once"):
        aggregators.GradDrop(memory="low")


def test_a_rule_of_another_number_of_tasks_is_refused_whole():
    x, y = batch()
    rule = MGDA()
    rule(np.eye(2, dtype="float32"))
    model = compiled(None)
    before = nets.values(model.weights)
    with pytest.raises(ValueError, match="built for 2 tasks"):
        model.fit(x, y, verbose=0, aggregator=rule)
    assert model.aggregator is None
    nets.assert_same_bits(nets.values(model.weights), before)
    model.fit(x, y, verbose=0)


OF_ONE_TASK = (
    "joins the gradients of several tasks",
    "has one task",
    "Use strategy='joint', 'grouped' or 'random_groups'",
)
NOT_FIXED = (
    "joins the gradients of a fixed group of tasks",
    "resample='never'",
    "Use one of those strategies",
)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("alternating", OF_ONE_TASK),
        (Grouped([[name] for name in TASKS]), OF_ONE_TASK),
        ("round_robin", NOT_FIXED),
        ("sampled", NOT_FIXED),
        ("multi_adaptive", NOT_FIXED),
        (RandomGroups(2, resample="step", seed=0), NOT_FIXED),
        (RandomGroups(2, resample="epoch", seed=0), NOT_FIXED),
    ],
    ids=repr,
)
def test_strategies_without_groups_to_join(strategy, words):
    """Said: what must hold, what came and what to do."""
    model = compiled("mgda")
    x, y = batch()
    came = type(mtlkeras.strategies.get(strategy)).__name__
    for call in (
        lambda: compiled("mgda", strategy=strategy),
        lambda: model.fit(x, y, strategy=strategy, verbose=0),
    ):
        with pytest.raises(ValueError, match="aggregator=None") as caught:
            call()
        for part in (*words, "Received:", f"strategy={came}(", "=MGDA"):
            assert part in str(caught.value)
    assert model.update_strategy.updates_jointly
    model.fit(x, y, verbose=0)


class OnTheHost(mtlkeras.aggregators.GramianAggregator):
    """Weights from NumPy, which XLA cannot compile."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_jit = False

    def compute_weights(self, gramian, task_losses=None, live=None):
        weights = tf.numpy_function(
            lambda g: np.linspace(1.0, 2.0, len(g)), [gramian], tf.float64
        )
        return tf.ensure_shape(weights, gramian.shape[:1])


def test_a_rule_that_xla_cannot_compile_says_so():
    model = compiled(OnTheHost())
    x, y = batch()
    model.fit(x, y, verbose=0)
    weights = model.aggregator.last_task_weights
    np.testing.assert_allclose(weights, np.linspace(1, 2, len(weights)))


# -- features, further cases --------------------------------------------------


@pytest.mark.parametrize("rule", [GradDrop, MGDA, UPGrad])
def test_features_of_batches_of_any_size(rule):
    """In a graph that does not know how many rows a batch has."""
    x, y = nets.regression_data(rows=12)
    model = compiled(rule(gradients_at="features"), run_eagerly=False)
    before = nets.values(model.variables)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    for value, old in zip(nets.values(model.variables), before, strict=True):
        assert np.isfinite(value).all()
        assert (value != old).any()


class TwoExits(mtlkeras.MultiTaskModel):
    """`left` is computed before the trunk goes on."""

    def __init__(self, functional):
        super().__init__()
        self.early = functional.get_layer("early")
        self.late = functional.get_layer("late")
        self.twice = functional.get_layer("twice")
        self.heads = [functional.get_layer(HEADS[name]) for name in TASKS]

    def call(self, inputs):
        early = self.early(inputs)
        left = self.heads[0](early)
        late = self.late(early)
        return {
            "left": left,
            "middle": self.heads[1](self.twice(late)),
            "right": self.heads[2](self.twice(late)),
        }


@pytest.mark.parametrize("rule", [Sum, UPGrad, MGDA])
def test_named_features_are_those_of_the_graph(rule):
    """The same model with its graph known and not, for rules that weigh."""
    x, y = batch()
    known = compiled(rule(gradients_at="features"), two_exits(MULTI))
    known.train_on_batch(x, y)
    opaque = TwoExits(two_exits(MULTI))
    opaque(x)
    names = ["early", "late"]
    compiled(rule(gradients_at="features", feature_layers=names), opaque)
    opaque.train_on_batch(x, y)
    np.testing.assert_allclose(
        opaque.aggregator.last_task_weights,
        known.aggregator.last_task_weights,
        rtol=1e-5,
    )
    for layer in (opaque.early, opaque.late, opaque.twice, *opaque.heads):
        for v, expected in zip(
            layer.weights, known.get_layer(layer.name).weights, strict=True
        ):
            np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-6)


class TwoOutputs(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)

    def call(self, inputs):
        x = self.dense(inputs)
        return x, keras.ops.tanh(x)


class Forked(mtlkeras.MultiTaskModel):
    def __init__(self):
        super().__init__()
        self.fork = TwoOutputs(name="fork")
        self.heads = [keras.layers.Dense(1) for _ in TASKS]

    def call(self, inputs):
        first, second = self.fork(inputs)
        return {
            name: head(first if name == "left" else second)
            for name, head in zip(TASKS, self.heads, strict=True)
        }


def test_a_feature_layer_with_two_outputs():
    x, y = batch()
    moved = []
    for rule in (Sum(), Sum(gradients_at="features", feature_layers=["fork"])):
        keras.utils.set_random_seed(0)
        model = Forked()
        model(x)
        before = nets.values(model.trainable_variables)
        compiled(rule, model).train_on_batch(x, y)
        after = nets.values(model.trainable_variables)
        moved.append([b - a for a, b in zip(after, before, strict=True)])
    for one, other in zip(*moved, strict=True):
        assert_close(other, one, 1e-5)


def test_features_need_a_part_that_is_shared():
    inputs = keras.Input((6,))
    towers = {
        name: keras.layers.Dense(1)(keras.layers.Dense(4)(inputs))
        for name in TASKS
    }
    x, y = batch()
    model = mtlkeras.MultiTaskModel(inputs, towers)
    with pytest.raises(ValueError, match=r"(?s)\['left', 'middle', 'right'\]"):
        compiled(MGDA(gradients_at="features"), model)
    # Nothing to join, and nothing wrong with it: three separate networks.
    compiled(MGDA(), model).train_on_batch(x, y)


@pytest.mark.parametrize("place", ["parameters", "features"])
def test_an_added_loss_that_is_not_finite_skips_the_batch(place):
    class Adds(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(keras.ops.log(keras.ops.sum(inputs[:, :1]) * 0.0 - 1))
            return inputs

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(4, activation="tanh")(Adds()(inputs))
    model = mtlkeras.MultiTaskModel(
        inputs, {n: keras.layers.Dense(1, name=n)(h) for n in TASKS}
    )
    compiled(UPGrad(gradients_at=place), model, keras.optimizers.Adam(0.1))
    x, y = batch()
    before = nets.values(model.variables)
    with pytest.warns(UserWarning, match="not finite"):
        model.fit(x, y, verbose=0)
    nets.assert_same_bits(nets.values(model.variables), before)


@pytest.mark.parametrize(
    "rule",
    [
        MGDA(),
        GradDrop(),
        TaskTensioner(window=1),
        UPGrad(gradients_at="features"),
        MGDA(memory="low"),
    ],
    ids=["products", "rows", "state", "features", "low"],
)
def test_a_step_compiled_as_a_whole(rule):
    x, y = batch()
    found = []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        model = compiled(
            type(rule).from_config(rule.get_config()),
            optimizer=keras.optimizers.Adam(0.01, epsilon=1e-3),
            **{"run_eagerly": False, **options},
        )
        for _ in range(3):
            model.train_on_batch(x, y)
        found.append(nets.values(model.variables))
    for eager, xla in zip(*found, strict=True):
        np.testing.assert_allclose(xla, eager, rtol=1e-3, atol=1e-5)


def test_weights_are_those_of_the_strategy_in_force():
    x, y = batch()
    model = compiled("mgda", strategy=Grouped([["left", "right"], ["middle"]]))
    model.train_on_batch(x, y)
    assert model.aggregator.last_task_weights[1] == 1.0
    model.fit(x, y, strategy="joint", verbose=0)
    joint = model.aggregator.last_task_weights
    np.testing.assert_allclose(joint.sum(), 1.0, rtol=1e-6)


# -- every rule ---------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    (x, y), _, _ = mtlkeras.datasets.multi_digits(
        num_train=300, num_val=10, num_test=10
    )
    return x, y


class TraceCounter(keras.layers.Layer):
    """Identity that counts how often Python runs it."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


@pytest.mark.parametrize("case", cases.RULES, ids=repr)
def test_trains_on_digits_in_one_trace(case, digits):
    x, y = digits
    inputs = keras.Input((12, 12, 1))
    h = TraceCounter(name="counter")(keras.layers.Flatten()(inputs))
    h = keras.layers.Dense(32, activation="relu")(h)
    tasks = list(y)
    model = mtlkeras.MultiTaskModel(
        inputs,
        {n: keras.layers.Dense(10, "softmax", name=n)(h) for n in tasks},
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        loss=dict.fromkeys(tasks, "sparse_categorical_crossentropy"),
        # The cases are rules for three tasks.
        aggregator=case.aggregator(tasks=[0, 1]),
    )
    counter = model.get_layer("counter")
    # The last batch is smaller.
    history = model.fit(x, y, batch_size=32, epochs=1, verbose=0).history
    # Once for the graph, and once each for what `fit` finds out before.
    traced, counter.calls = counter.calls, 0
    assert traced <= 2
    later = model.fit(x, y, batch_size=32, epochs=1, verbose=0).history
    assert counter.calls == 0
    for task in tasks:
        assert later[f"{task}_loss"][0] < history[f"{task}_loss"][0]


def seen_by_the_rule(case, place, policy):
    """What a rule gets in the first two steps, and the weights after them."""
    x, y = batch()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = nets.mlp()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    rule = type(case.given).from_config({**case.config, "gradients_at": place})
    seen = []
    method = "weigh" if case.is_gramian else "aggregate"
    original = getattr(rule, method)

    def note(matrix, *arguments):
        seen.append(np.array(matrix))
        return original(matrix, *arguments)

    object.__setattr__(rule, method, note)
    optimizer = keras.optimizers.SGD(1e-3)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**10)
    model.compile(
        optimizer, loss=nets.losses(), aggregator=rule, run_eagerly=True
    )
    for _ in range(2):
        model.train_on_batch(x, y)
    return seen, nets.values(model.trainable_variables)


@pytest.mark.parametrize("case", cases.RULES, ids=repr)
def test_half_precision_layers_give_float32_gradients(case):
    """Not scaled, in the precision of the variables, also at features."""
    for place in ("parameters", "features"):
        if place == "features" and not case.given.allows_features:
            continue
        wanted, _ = seen_by_the_rule(case, place, "float32")
        for policy in ("mixed_bfloat16", "mixed_float16"):
            seen, weights = seen_by_the_rule(case, place, policy)
            for found, matrix in zip(seen, wanted, strict=True):
                assert found.dtype == np.float32
                error = np.linalg.norm(found - matrix)
                assert error <= 0.05 * np.linalg.norm(matrix), (place, policy)
            for value in weights:
                assert np.isfinite(value).all()
