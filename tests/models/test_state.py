"""Once per batch: regularizers, decay, statistics; once per pass: seeds."""

import functools

import keras
import nets
import numpy as np
import pytest
from cases import STRATEGIES, SUB_STEPPED, Case
from keras import ops

import mtlkeras
from mtlkeras import aggregators, strategies

TASKS = nets.TASKS
every_strategy = pytest.mark.parametrize("case", STRATEGIES, ids=repr)
every_sub_stepped = pytest.mark.parametrize("case", SUB_STEPPED, ids=repr)


def nothing(y_true, y_pred):
    """A loss with gradient 0."""
    return 0.0 * ops.mean(y_pred, axis=-1)


def compiled(model, optimizer, strategy="joint", loss="mse"):
    options = {"run_eagerly": True, "loss": nets.losses(loss=loss)}
    if isinstance(model, mtlkeras.MultiTaskModel):
        options["strategy"] = strategy
    model.compile(optimizer, **options)
    return model


def batch_of(step=0, unlabelled=()):
    x, y = nets.regression_data(rows=24)
    rows = slice(8 * step, 8 * step + 8)
    y = {name: target[rows].copy() for name, target in y.items()}
    for name in unlabelled:
        y[name][:] = np.nan
    return x[rows], y


def visited(case, step=0, labelled=None):
    """Names in the order in which the batch trains them."""
    groups = case.visits(TASKS, step, labelled=labelled)
    return [name for _, group in groups for name in group]


def moves(case, first_is_unlabelled):
    """Whether a batch updates anything."""
    return not first_is_unlabelled or len(visited(case)) > 1


first_unlabelled_or_not = pytest.mark.parametrize(
    ("case", "first_is_unlabelled"),
    [
        (case, flag)
        for case in STRATEGIES
        for flag in (False, True)
        if moves(case, flag)
    ],
    ids=repr,
)


def by_name(model):
    return {v.path: v.numpy() for v in model.variables}


# -- regularizers and add_loss ----------------------------------------------


class Adds(keras.layers.Layer):
    """Adds 0.5 times the sum of its weights to the loss: a constant pull."""

    def build(self, input_shape):
        self.pulled = self.add_weight(
            shape=(3,), initializer="ones", name="pulled"
        )

    def call(self, inputs):
        self.add_loss(0.5 * ops.sum(self.pulled))
        return inputs + 0.0 * ops.sum(self.pulled)


def regularized(cls=mtlkeras.MultiTaskModel):
    """Constant pulls: L1, where the sign stays, and `Adds`."""
    keras.utils.set_random_seed(0)
    l1 = keras.regularizers.L1(0.01)

    def dense(units, name):
        return keras.layers.Dense(
            units,
            # Away from 0 by more than the steps of the test.
            kernel_initializer=keras.initializers.RandomUniform(0.5, 1.0),
            kernel_regularizer=l1,
            name=name,
        )

    inputs = keras.Input((6,))
    x = dense(8, "trunk")(inputs)
    x = Adds(name="adds_trunk")(x)
    return cls(
        inputs,
        {
            name: dense(1, f"head_{name}")(Adds(name=f"adds_{name}")(x))
            for name in TASKS
        },
    )


@first_unlabelled_or_not
def test_regularizers_and_added_losses_count_once(case, first_is_unlabelled):
    """With zero task gradients, the decay is that of one stock step."""
    order = visited(case)
    unlabelled = order[:1] if first_is_unlabelled else []
    model = compiled(
        regularized(), keras.optimizers.SGD(0.1), case.strategy(), nothing
    )
    stock = compiled(
        regularized(keras.Model), keras.optimizers.SGD(0.1), loss=nothing
    )
    initial = by_name(stock)
    logs = model.train_on_batch(*batch_of(0, unlabelled), return_dict=True)
    expected_logs = stock.train_on_batch(*batch_of(), return_dict=True)
    expected = by_name(stock)
    ran = set(order) - set(unlabelled)
    for path, value in by_name(model).items():
        owner = path.split("/")[0].rpartition("_")[2]
        rests = owner in TASKS and owner not in ran and case.id != "joint"
        wanted = initial[path] if rests else expected[path]
        np.testing.assert_allclose(value, wanted, rtol=1e-6, err_msg=path)
    if ran == set(TASKS):
        # Up to the little that the sub-steps before have decayed.
        np.testing.assert_allclose(
            logs["loss"], expected_logs["loss"], rtol=0.05
        )


@every_strategy
def test_activity_regularizers_count_once(case):
    """Its gradient is linear in the pulled weight's inputs, all constant."""

    def network(cls=mtlkeras.MultiTaskModel):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = keras.layers.Dense(
            4,
            kernel_initializer="ones",
            activity_regularizer=keras.regularizers.L1(0.01),
            name="trunk",
        )(inputs)
        heads = {
            name: keras.layers.Dense(1, name=f"head_{name}")(x)
            for name in TASKS
        }
        return cls(inputs, heads)

    model = compiled(
        network(), keras.optimizers.SGD(0.01), case.strategy(), nothing
    )
    stock = compiled(
        network(keras.Model), keras.optimizers.SGD(0.01), loss=nothing
    )
    x, y = batch_of()
    for each in (model, stock):
        each.train_on_batch(np.abs(x), y)
    np.testing.assert_allclose(
        model.get_layer("trunk").kernel.numpy(),
        stock.get_layer("trunk").kernel.numpy(),
        rtol=1e-6,
    )
    assert np.abs(stock.get_layer("trunk").kernel.numpy() - 1).max() > 1e-6


# -- weight decay -----------------------------------------------------------


@first_unlabelled_or_not
def test_weights_decay_once_per_batch(case, first_is_unlabelled):
    """With zero gradients: by one decay, whatever the number of sub-steps."""
    rate, decay = 0.1, 0.2
    kind = "AdamW" if first_is_unlabelled else "SGD"
    order = visited(case)
    unlabelled = order[:1] if first_is_unlabelled else []
    ran = set(order) - set(unlabelled)
    optimizer = getattr(keras.optimizers, kind)(rate, weight_decay=decay)
    model = compiled(nets.mlp(), optimizer, case.strategy(), nothing)
    before = by_name(model)
    model.train_on_batch(*batch_of(0, unlabelled))
    for path, value in by_name(model).items():
        layer = path.split("/")[0]
        owner = layer.removeprefix("head_")
        rests = owner in TASKS and owner not in ran and case.id != "joint"
        factor = 1.0 if rests else 1.0 - rate * decay
        np.testing.assert_allclose(
            value, before[path] * factor, rtol=1e-6, err_msg=path
        )


@pytest.mark.parametrize(
    "strategy",
    [strategies.Alternating, strategies.RoundRobin, strategies.MultiAdaptive],
)
def test_factors_of_tasks_do_not_scale_the_decay(strategy):
    rate, decay = 0.1, 0.2
    model = compiled(
        nets.mlp(),
        keras.optimizers.AdamW(rate, weight_decay=decay),
        strategy(task_learning_rates={"left": 0.25}),
        nothing,
    )
    before = by_name(model)
    model.train_on_batch(*batch_of())
    path = model.get_layer("trunk_1").kernel.path
    np.testing.assert_allclose(
        by_name(model)[path], before[path] * (1 - rate * decay), rtol=1e-6
    )


# -- statistics and seeds ---------------------------------------------------


def normalized(cls=mtlkeras.MultiTaskModel):
    """BatchNormalization in the trunk and in every head."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh", name="trunk")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm_trunk")(x)
    outputs = {}
    for name in TASKS:
        y = keras.layers.BatchNormalization(momentum=0.5, name=f"norm_{name}")(
            x
        )
        outputs[name] = keras.layers.Dense(1, name=f"head_{name}")(y)
    return cls(inputs, outputs)


def statistics(model, name):
    return nets.values(model.get_layer(f"norm_{name}").non_trainable_weights)


@pytest.mark.parametrize(
    ("case", "trouble"),
    [
        (case, trouble)
        for case in STRATEGIES
        for trouble in (None, "nan", "inf")
        # Else nothing would be left to run.
        if not trouble or len(case.visits(TASKS, 0)) > 1
    ],
    ids=repr,
)
def test_statistics_of_the_trunk_are_those_of_the_first_sub_step(case, trouble):
    """Also if the first task has no labels, or a loss that is not finite."""
    first_group = case.visits(TASKS, 0)[0][1]
    model = compiled(normalized(), keras.optimizers.SGD(0.5), case.strategy())
    stock = compiled(normalized(keras.Model), keras.optimizers.SGD(0.5))
    x, y = batch_of()
    stock.train_on_batch(x, y)
    if trouble:
        y = {name: target.copy() for name, target in y.items()}
        for name in first_group:
            y[name][:] = float(trouble)
    model.train_on_batch(x, y)
    for a, b in zip(
        statistics(model, "trunk"), statistics(stock, "trunk"), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@functools.cache
def stock_statistics(name):
    """After one batch at learning rate 0."""
    model = compiled(normalized(keras.Model), keras.optimizers.SGD(0.0))
    model.train_on_batch(*batch_of())
    return statistics(model, name)


@pytest.mark.parametrize("trouble", ["nan", "inf"])
@every_sub_stepped
def test_statistics_of_a_head_follow_its_own_sub_step(case, trouble):
    """At learning rate 0 they are Keras's, or untouched; in turn each task."""
    for bad in TASKS:
        # NaN is a missing label, by which a strategy may choose.
        labelled = [trouble == "inf" or name != bad for name in TASKS]
        visits = case.visits(TASKS, 0, labelled=labelled)
        group = next((group for _, group in visits if bad in group), ())
        # A loss that is not finite takes its group with it.
        resting = {bad, *(group if trouble == "inf" else ())}
        ran = set(visited(case, labelled=labelled)) - resting
        model = compiled(
            normalized(), keras.optimizers.SGD(0.0), case.strategy()
        )
        initial = {name: statistics(model, name) for name in TASKS}
        x, y = batch_of()
        y[bad][:] = float(trouble)
        model.train_on_batch(x, y)
        for name in TASKS:
            expected = stock_statistics(name) if name in ran else initial[name]
            for a, b in zip(statistics(model, name), expected, strict=True):
                np.testing.assert_allclose(
                    a, b, rtol=1e-5, atol=1e-7, err_msg=f"{name}, bad: {bad}"
                )


def test_a_head_is_normalized_once_at_the_weights_of_its_sub_step():
    """The second task's statistics come after the first task's update."""
    optimizer = keras.optimizers.SGD(0.5)
    model = compiled(normalized(), optimizer, "alternating")
    x, y = batch_of()
    model.train_on_batch(x, y)
    # By hand: a stock step on the first task alone, then look at the second.
    stock = normalized(keras.Model)
    first = keras.Model(stock.input, {"left": stock.output["left"]})
    first.compile(keras.optimizers.SGD(0.5), loss="mse", run_eagerly=True)
    first.train_on_batch(x, {"left": y["left"]})
    stock(x, training=True)
    for a, b in zip(
        statistics(model, "middle"), statistics(stock, "middle"), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def together(first, second):
    """A seed for which two groups hold these tasks and the third one."""
    for seed in range(100):
        case = Case(strategies.RandomGroups(2, "step", seed=seed), "random")
        groups = [set(group) for _, group in case.visits(TASKS, 0)]
        if groups[0] == {first, second}:
            return case.given
    raise AssertionError("no such seed")


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.Grouped([["left", "right"], ["middle"]]),
        together("left", "right"),
    ],
    ids=["grouped", "random_groups_step"],
)
@pytest.mark.parametrize("kind", ["decay", "regularizer", "statistics"])
def test_a_branch_follows_the_first_group_with_labels_for_it(strategy, kind):
    """`left` and `middle` share a branch; `left`, in the group that comes
    first and runs for `right`, has no labels. So `middle` makes the branch's
    one decay, its whole regularization and its statistics.
    """

    def network(cls=mtlkeras.MultiTaskModel):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        trunk = keras.layers.Dense(5, name="trunk")(inputs)
        regularizer = keras.regularizers.L1(0.01)
        branch = keras.layers.Dense(
            4,
            kernel_initializer=keras.initializers.RandomUniform(0.5, 1.0),
            kernel_regularizer=regularizer if kind == "regularizer" else None,
            name="branch",
        )(trunk)
        branch = keras.layers.BatchNormalization(name="norm_branch")(branch)
        return cls(
            inputs,
            {
                "left": keras.layers.Dense(1, name="head_left")(branch),
                "middle": keras.layers.Dense(1, name="head_middle")(branch),
                "right": keras.layers.Dense(1, name="head_right")(trunk),
            },
        )

    def optimizer():
        if kind == "statistics":
            return keras.optimizers.SGD(0.0)
        decay = 0.2 if kind == "decay" else None
        return keras.optimizers.SGD(0.1, weight_decay=decay)

    loss = "mse" if kind == "statistics" else nothing
    model = compiled(network(), optimizer(), strategy, loss)
    stock = compiled(network(keras.Model), optimizer(), loss=loss)
    model.train_on_batch(*batch_of(0, ["left"]))
    stock.train_on_batch(*batch_of())
    name = "norm_branch" if kind == "statistics" else "branch"
    found, expected, before = (
        nets.values(each.get_layer(name).weights)
        for each in (model, stock, network(keras.Model))
    )
    assert not all(map(np.array_equal, expected, before))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


class Recorder(keras.layers.Layer):
    """Keeps what passes in eager mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, inputs):
        if hasattr(inputs, "numpy"):
            self.seen.append(inputs.numpy() == 0)
        return inputs


@every_strategy
def test_every_pass_draws_its_own_dropout_mask(case):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    dropout = keras.layers.Dropout(0.5, seed=1)
    recorder = Recorder()
    x = recorder(dropout(keras.layers.Dense(16)(inputs)))
    model = mtlkeras.MultiTaskModel(
        inputs,
        {name: keras.layers.Dense(1, name=name)(x) for name in TASKS},
    )
    compiled(model, keras.optimizers.SGD(0.0), case.strategy())
    seed = dropout.seed_generator.state
    groups = case.visits(TASKS, 0)
    passes = 1 if case.strategy().at_same_weights else len(groups)
    passes += case.measures
    recorder.seen.clear()
    before = seed.numpy()
    model.train_on_batch(*batch_of())
    between = seed.numpy()
    model.train_on_batch(*batch_of())
    masks = [mask.tobytes() for mask in recorder.seen]
    assert len(masks) == 2 * passes
    assert len(set(masks)) == 2 * passes
    # As many draws as passes, in the first batch and in the second.
    np.testing.assert_array_equal(between - before, [0, passes])
    np.testing.assert_array_equal(seed.numpy() - between, [0, passes])


# -- layers that differ in training -----------------------------------------


class InTraining(keras.layers.Layer):
    """Adds 100 in training; the default of the flag is written as Keras's."""

    def call(self, inputs, training=False):
        return inputs + 100.0 if training else inputs


def flagged():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, name="trunk")(inputs)
    nested_input = keras.Input((8,))
    nested = keras.Model(nested_input, InTraining()(nested_input))
    return mtlkeras.MultiTaskModel(
        inputs,
        {
            name: InTraining(name=f"flag_{name}")(
                nested(keras.layers.Dense(8, name=f"head_{name}")(x))
            )
            for name in TASKS
        },
    )


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{"strategy": case} for case in STRATEGIES]
    + [
        {"aggregator": "mean"},
        {"aggregator": aggregators.Mean(gradients_at="features")},
    ],
    ids=repr,
)
def test_heads_know_that_they_train(arguments, run_eagerly):
    """Dropout and the like also act in heads that are run by themselves."""
    arguments = dict(arguments)
    if "strategy" in arguments:
        arguments["strategy"] = arguments["strategy"].strategy()
    model = flagged()
    model.compile(
        keras.optimizers.SGD(0.0),
        loss={name: "mse" for name in TASKS},
        run_eagerly=run_eagerly,
        **arguments,
    )
    x = np.zeros((8, 6), "float32")
    y = {name: np.zeros((8, 8), "float32") for name in TASKS}
    logs = model.train_on_batch(x, y, return_dict=True)
    for name in TASKS:
        if not np.isnan(logs[f"{name}_loss"]):
            np.testing.assert_allclose(logs[f"{name}_loss"], 200.0**2)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == 0.0
