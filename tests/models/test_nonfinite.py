"""A task whose loss or gradient is not finite reaches nobody else."""

import keras
import nets
import numpy as np
import pytest
from cases import SUB_STEPPED
from keras import ops

import mtlkeras
from mtlkeras import strategies

TASKS = nets.TASKS
BAD_STEP = 1


class Breakable(keras.layers.Layer):
    """The identity, with a gradient of NaN while `broken` is 1.

    Also where the gradient that comes in is 0, as behind a division by 0.
    """

    def build(self, input_shape):
        self.broken = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="broken"
        )

    def call(self, inputs):
        factor = ops.where(self.broken > 0, float("nan"), 1.0)

        @ops.custom_gradient
        def pass_on(x):
            return 1.0 * x, lambda upstream: upstream * factor

        return pass_on(inputs)


def network(tasks=TASKS):
    """A trunk with statistics and dropout, and a breakable head per task."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk")(inputs)
    x = Breakable(name="breakable_trunk")(x)
    x = keras.layers.BatchNormalization(name="trunk_norm")(x)
    x = keras.layers.Dropout(0.2, seed=3)(x)
    outputs = {}
    for task in tasks:
        head = Breakable(name=f"breakable_{task}")(x)
        head = keras.layers.BatchNormalization(name=f"norm_{task}")(head)
        outputs[task] = keras.layers.Dense(1, name=f"head_{task}")(head)
    return mtlkeras.MultiTaskModel(inputs, outputs)


def compiled(strategy, **options):
    model = network()
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=nets.losses(),
        metrics={name: ["mae"] for name in TASKS},
        strategy=strategy,
        run_eagerly=True,
        **options,
    )
    return model


def state(model):
    """Everything but the batch counter and the switch of the layer."""
    skipped = {id(model.optimizer.iterations)}
    return nets.values(
        v
        for v in model.variables + model.optimizer.variables
        if id(v) not in skipped and v.name != "broken"
    )


def batch_of(step):
    x, y = nets.regression_data(rows=24)
    rows = slice(8 * step, 8 * step + 8)
    return x[rows], {name: target[rows] for name, target in y.items()}


def user_warnings(caught):
    return [str(w.message) for w in caught if w.category is UserWarning]


def train(case, kind, bad_task, companions):
    """Three batches; in the second one `bad_task` is bad in the given way.

    Returns the model and the logs, which are means over the three.
    """
    model = compiled(case.strategy())
    for step in range(3):
        x, y = batch_of(step)
        bad = step == BAD_STEP
        if bad and kind == "inf_target":
            y[bad_task][2] = np.inf
        elif bad and kind == "huge_target":
            y[bad_task][2] = 1e30  # its square overflows
        elif kind == "nan_gradient":
            model.get_layer(f"breakable_{bad_task}").broken.assign(float(bad))
        elif bad and kind == "unlabelled":
            for name in companions:
                y[name][:] = np.nan
        logs = model.train_on_batch(x, y, return_dict=True)
    return model, logs


@pytest.mark.parametrize("case", SUB_STEPPED, ids=repr)
def test_a_bad_task_is_as_one_without_labels(case):
    """Bit for bit: weights and slots, statistics, seeds and logs.

    One backward pass serves a group, so its members are skipped with it.
    """
    group = case.visits(TASKS, BAD_STEP)[0][1]
    # Another task would take the turn of one that has no labels.
    rest = TASKS if case.strategy().one_group_per_step else group
    expected, expected_logs = train(case, "unlabelled", group[0], rest)
    kinds = ["inf_target", "nan_gradient"]
    if case.id == "alternating":
        kinds.append("huge_target")
    for kind in kinds:
        model, logs = train(case, kind, group[0], group)
        nets.assert_same_bits(state(model), state(expected))
        for key, value in expected_logs.items():
            np.testing.assert_array_equal(logs[key], value, key)


@pytest.mark.parametrize("case", SUB_STEPPED, ids=repr)
def test_a_bad_trunk_leaves_everything_as_it_was(case):
    """Its own derivative fails, behind losses and heads that are finite."""
    model = compiled(case.strategy())
    model.train_on_batch(*batch_of(0))
    seeds = {id(v) for v in model.variables if "seed" in v.name}
    kept = [
        v
        for v in model.variables + model.optimizer.variables
        if id(v) not in seeds | {id(model.optimizer.iterations)}
    ]
    model.get_layer("breakable_trunk").broken.assign(1.0)
    before = nets.values(kept)
    model.train_on_batch(*batch_of(1))
    nets.assert_same_bits(nets.values(kept), before)


@pytest.mark.parametrize("kind", ["inf_target", "nan_gradient"])
def test_joint_skips_the_whole_batch(kind):
    """Weights, slots and statistics stay as they were; later ones go on."""
    model = compiled("joint")
    model.train_on_batch(*batch_of(0))
    seeds = {id(v) for v in model.variables if "seed" in v.name}
    constant = {id(v) for v in model.variables if v.name == "broken"}
    constant.add(id(model.optimizer.variables[1]))  # the learning rate
    kept = [
        v
        for v in model.variables + model.optimizer.variables
        if id(v) not in seeds | constant
    ]
    assert any(v is model.optimizer.iterations for v in kept)
    before = nets.values(kept)
    x, y = batch_of(1)
    if kind == "inf_target":
        y["left"][0] = np.inf
    else:
        model.get_layer("breakable_left").broken.assign(1.0)
    model.train_on_batch(x, y)
    nets.assert_same_bits(nets.values(kept), before)
    model.get_layer("breakable_left").broken.assign(0.0)
    model.train_on_batch(*batch_of(2))
    for old, variable in zip(before, kept, strict=True):
        assert np.isfinite(variable.numpy()).all()
        assert not np.array_equal(old, variable.numpy())


@pytest.mark.parametrize(
    ("strategy", "named"),
    [
        ("joint", ["middle"]),
        ("alternating", ["middle"]),
        # The loss is that of one member; it is known which.
        (strategies.Grouped([["left", "middle"], ["right"]]), ["middle"]),
        (strategies.RandomGroups(2, "step", seed=0), ["middle"]),
        ("multi_adaptive", ["middle"]),
    ],
    ids=lambda value: getattr(value, "id", None),
)
def test_one_warning_per_epoch_names_and_counts(strategy, named):
    x, y = nets.regression_data(rows=24)
    y["middle"][3] = np.inf
    y["middle"][20] = -np.inf
    model = compiled(strategy)
    with pytest.warns(UserWarning, match="not finite") as caught:
        history = model.fit(
            x, y, batch_size=8, epochs=2, shuffle=False, verbose=0
        ).history
    messages = user_warnings(caught)
    assert len(messages) == 2
    for epoch, message in enumerate(messages, 1):
        assert f"Epoch {epoch}:" in message
        for name in TASKS:
            assert (f"'{name}' (2 times)" in message) == (name in named)
    # The batches that ran, with finite values.
    assert all(np.isfinite(values).all() for values in history.values())


def test_a_bad_gradient_behind_finite_losses_names_the_group():
    model = compiled(strategies.Grouped([["left", "middle"], ["right"]]))
    model.get_layer("breakable_middle").broken.assign(1.0)
    with pytest.warns(UserWarning, match="not finite") as caught:
        model.fit(*batch_of(0), verbose=0)
    (message,) = user_warnings(caught)
    assert "'middle' (1 times)" in message
    assert "'right'" not in message


def test_an_unlabelled_task_is_not_called_bad():
    x, y = batch_of(0)
    y["left"][:] = np.nan
    model = compiled("alternating", on_nonfinite="raise")
    with pytest.warns(UserWarning, match="no batch held a label"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("kind", ["inf_target", "nan_gradient"])
@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        ("joint", "fit"),
        ("joint", "train_on_batch"),
        ("alternating", "fit"),
        ("round_robin", "train_on_batch"),
    ],
)
def test_raise(strategy, method, kind):
    """After the batch, with the task's name; the weights stay finite."""
    model = compiled(strategy, on_nonfinite="raise")
    x, y = nets.regression_data(rows=8)
    if kind == "inf_target":
        y["left"][0] = np.inf
    else:
        model.get_layer("breakable_left").broken.assign(1.0)
    with pytest.raises(FloatingPointError, match="'left'") as error:
        getattr(model, method)(x, y)
    if not (strategy == "joint" and kind == "nan_gradient"):
        assert "'right'" not in str(error.value)
    assert all(np.isfinite(value).all() for value in state(model))
    # Usable again.
    model.get_layer("breakable_left").broken.assign(0.0)
    x, y = nets.regression_data(rows=8)
    model.train_on_batch(x, y)


def test_unknown_on_nonfinite():
    with pytest.raises(ValueError, match="'skip' or 'raise'.*'ignore'"):
        compiled("joint", on_nonfinite="ignore")


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_gradients_that_are_huge_but_finite_count(strategy):
    """Their sum of squares overflows; they do not."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    trunk = keras.layers.Dense(2, name="trunk")(inputs)
    model = mtlkeras.MultiTaskModel(
        inputs,
        {name: keras.layers.Dense(1, name=name)(trunk) for name in "ab"},
    )
    model.compile(
        keras.optimizers.SGD(1e-25),
        loss=dict.fromkeys("ab", "mae"),
        strategy=strategy,
        run_eagerly=True,
        on_nonfinite="raise",
    )
    x = np.full((4, 2), 1e24, "float32")
    before = nets.values(model.trainable_variables)
    model.train_on_batch(x, dict.fromkeys("ab", np.zeros((4, 1), "float32")))
    after = nets.values(model.trainable_variables)
    assert not np.array_equal(before[0], after[0])
    assert np.isfinite(after[0]).all()
