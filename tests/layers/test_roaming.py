"""`RoamingMask`, `MaximumRoaming`, `with_roaming` and their properties."""

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf
from nets import TASKS

import mtlkeras
from mtlkeras import strategies
from mtlkeras.callbacks import MaximumRoaming
from mtlkeras.layers import RoamingMask, TaskBatchNormalization

Adam = keras.optimizers.Adam


def as_array(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def built_mask(num_tasks, units, ratio, seed=0):
    mask = RoamingMask(num_tasks, ratio, seed=seed)
    mask.build((None, units))
    return mask


def convolutional(cls=keras.Model, seed=0):
    """Two masked stages, a residual connection and three heads."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, padding="same", name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    short = layers.Conv2D(8, 1, name="short")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="last")(x)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, short]))
    x = layers.Dense(5, activation="relu", name="dense")(x)
    heads = {n: layers.Dense(1, name=f"head_{n}")(x) for n in TASKS}
    return cls(inputs, heads)


def pictures(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6, 6, 2)).astype("float32")
    y = {n: rng.normal(size=(rows, 1)).astype("float32") for n in TASKS}
    return x, y


def train(model, strategy="joint", epochs=2, callbacks=(), **kwargs):
    if not model.compiled:
        model.compile(Adam(0.01), nets.losses(), strategy=strategy)
    x, y = pictures()
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **kwargs,
    ).history


# -- the mask and its updates -------------------------------------------------


@pytest.mark.parametrize(
    ("num_tasks", "units", "ratio", "expected"),
    [
        (3, 10, 0.8, 8),  # 9 if rounding decided
        (2, 5, 0.5, 3),
        (4, 64, 0.8, 52),
        (3, 9, 1 / 3, 3),
        (2, 7, 1.0, 7),
        (5, 20, 0.6, 12),
    ],
)
def test_initial_partition(num_tasks, units, ratio, expected):
    layer = built_mask(num_tasks, units, ratio)
    mask = as_array(layer.mask)
    assert layer.units_per_task == expected
    np.testing.assert_array_equal(mask.sum(1), expected)
    assert np.all(mask.sum(0) >= 1)  # every unit has a task
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(as_array(layer.visited), mask > 0)


@pytest.mark.parametrize(
    ("num_tasks", "units", "ratio"), [(3, 10, 0.8), (2, 16, 0.5), (4, 9, 0.3)]
)
def test_properties_of_roaming(num_tasks, units, ratio):
    layer = built_mask(num_tasks, units, ratio, seed=5)
    steps = units - layer.units_per_task
    masks = [as_array(layer.mask)]
    for _ in range(steps):
        assert layer.roam()
        masks.append(as_array(layer.mask))
    # One unit in and one out, per task.
    changes = np.diff(np.stack(masks), axis=0)
    np.testing.assert_array_equal((changes == 1).sum(2), 1)
    np.testing.assert_array_equal((changes == -1).sum(2), 1)
    np.testing.assert_array_equal(np.stack(masks).sum(2), layer.units_per_task)
    # Each pair of a task and a unit has one interval and no more.
    history = np.stack([np.zeros_like(masks[0]), *masks])
    starts = (np.diff(history, axis=0) == 1).sum(0)
    np.testing.assert_array_equal(starts, 1)
    # All visited, and final from now on.
    assert as_array(layer.visited).all()
    assert not layer.roam()
    np.testing.assert_array_equal(as_array(layer.mask), masks[-1])


def test_an_update_ratio_stops_early():
    layer = built_mask(2, 20, 0.5)
    assert [layer.roam(0.35) for _ in range(6)] == [True] * 4 + [False] * 2
    before = as_array(layer.mask)
    assert not layer.roam(0.0)
    np.testing.assert_array_equal(as_array(layer.mask), before)


def test_draws_depend_on_the_seed_and_on_nothing_else():
    def run(seed):
        layer = built_mask(3, 12, 0.5, seed)
        for _ in range(3):
            np.random.default_rng().random()
            layer.roam()
        return as_array(layer.mask)

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_all_units_are_taken_up_equally_often():
    taken = np.zeros(8)
    for seed in range(400):
        layer = built_mask(2, 8, 0.5, seed)
        before = as_array(layer.visited)
        layer.roam()
        taken += (as_array(layer.visited) & ~before)[0]
    # Task 0 always has the even units, and the rest at random.
    assert np.all(taken[::2] == 0)
    assert np.all(np.abs(taken[1::2] - 100) < 4 * np.sqrt(100 * 0.75))


def test_a_masked_unit_has_no_gradient():
    layer = built_mask(2, 6, 0.5)
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 6)))
    for task in range(2):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, task=task) ** 2)
        gradient = tape.gradient(y, x).numpy()
        mask = as_array(layer.mask)[task]
        np.testing.assert_allclose(gradient, 2 * x.numpy() * mask)


def test_the_axis_of_the_units():
    layer = RoamingMask(2, 0.5, axis=1, seed=0)
    y = keras.ops.convert_to_numpy(layer(np.ones((2, 4, 3, 5)), task=1))
    np.testing.assert_array_equal(y[0, :, 0, 0], as_array(layer.mask)[1])


# -- in a model ---------------------------------------------------------------


def test_masks_come_behind_the_normalization_of_each_convolution():
    model = mtlkeras.MultiTaskModel.with_roaming(convolutional(), 0.5, seed=0)
    names = [layer.name for layer in model.layers]
    assert names.count("norm") == 1
    assert isinstance(model.get_layer("norm"), TaskBatchNormalization)

    def before(name):
        operation = model.get_layer(name)._inbound_nodes[0].input_tensors[0]
        return operation._keras_history.operation.name

    masks = [n for n in names if n.startswith("roaming_mask")]
    assert {before(n) for n in masks} == {"norm", "short", "last"}
    dense = mtlkeras.MultiTaskModel.with_roaming(
        convolutional(), 0.5, dense=True
    )
    masks = [n for n in dense.layers if isinstance(n, RoamingMask)]
    assert len(masks) == 4  # none in the heads
    assert len({mask.seed for mask in masks}) == 4


def test_a_nested_backbone_is_masked_inside():
    inputs = keras.Input((6, 6, 2))
    y = keras.layers.Conv2D(4, 3, name="inner")(inputs)
    backbone = keras.Model(inputs, keras.layers.ReLU()(y), name="backbone")
    outer = keras.Input((6, 6, 2))
    x = keras.layers.GlobalAveragePooling2D()(backbone(outer))
    model = keras.Model(
        outer, {n: keras.layers.Dense(1, name=n)(x) for n in TASKS}
    )
    masked = mtlkeras.MultiTaskModel.with_roaming(model, 0.5, seed=0)
    found = [m for m in masked._flatten_layers() if isinstance(m, RoamingMask)]
    assert len(found) == 1
    train(masked, "alternating", callbacks=[MaximumRoaming(1)])
    assert int(found[0].updates) == 2


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_full_sharing_is_plain_training(strategy):
    plain = mtlkeras.MultiTaskModel.from_model(convolutional_without_norm())
    masked = mtlkeras.MultiTaskModel.with_roaming(
        convolutional_without_norm(), 1.0
    )
    histories = [train(m, strategy, 3) for m in (plain, masked)]
    for a, b in zip(
        nets.values(plain.trainable_variables),
        nets.values(masked.trainable_variables),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for key, values in histories[0].items():
        np.testing.assert_allclose(histories[1][key], values, rtol=1e-5)


def convolutional_without_norm():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(inputs)
    x = keras.layers.Conv2D(4, 3, activation="tanh")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    heads = {n: keras.layers.Dense(1, name=n)(x) for n in TASKS}
    return keras.Model(inputs, heads)


def by_hand(model, x, task):
    """The output of a task, layer by layer, with its mask."""
    layers = {layer.name: layer for layer in model.layers}
    masks = {
        m._inbound_nodes[0].input_tensors[0]._keras_history.operation.name: (
            as_array(m.mask)[task]
        )
        for m in model.layers
        if isinstance(m, RoamingMask)
    }
    norm = layers["norm"]
    y = keras.ops.convert_to_numpy(layers["first"](x))
    y = (y - as_array(norm.moving_mean)[task]) / np.sqrt(
        as_array(norm.moving_variance)[task] + 1e-3
    ) * as_array(norm.gamma) + as_array(norm.beta)
    y = np.maximum(y * masks["norm"], 0).astype("float32")
    short = keras.ops.convert_to_numpy(layers["short"](y)) * masks["short"]
    y = keras.ops.convert_to_numpy(layers["last"](y)) * masks["last"]
    y = layers["dense"]((y + short).mean((1, 2)))
    return keras.ops.convert_to_numpy(layers[f"head_{TASKS[task]}"](y))


@pytest.mark.parametrize("strategy", ["joint", "alternating", "sampled"])
def test_prediction_runs_the_trunk_with_the_mask_of_each_task(strategy):
    model = mtlkeras.MultiTaskModel.with_roaming(convolutional(), 0.5, seed=3)
    train(model, strategies.get(strategy), 4, [MaximumRoaming(2)])
    x, _ = pictures(5, seed=1)
    predicted = model.predict(x, verbose=0)
    for task, name in enumerate(TASKS):
        np.testing.assert_allclose(
            predicted[name], by_hand(model, x, task), rtol=1e-4, atol=1e-5
        )
    # Before the first mask the tasks of a joint step see the same.
    rows = as_array(model.get_layer("norm").moving_mean)
    assert np.allclose(rows, rows[:1]) == (strategy == "joint")


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_updates_do_not_trace_again(strategy):
    traces = []

    class Counting(keras.losses.Loss):
        def call(self, y_true, y_pred):
            traces.append(1)
            return keras.ops.mean((y_true - y_pred) ** 2, -1)

    model = mtlkeras.MultiTaskModel.with_roaming(convolutional(), 0.5, seed=0)
    losses = {**nets.losses(), "left": Counting()}
    model.compile(Adam(0.01), losses, strategy=strategy)
    train(model, epochs=1)
    before = len(traces)
    roaming = MaximumRoaming(1)
    train(model, epochs=2, callbacks=[roaming])
    assert len(traces) == before
    assert set(roaming.updates.values()) == {3, 4}


def test_a_saved_run_goes_on_with_the_same_bits(tmp_path):
    def new():
        model = convolutional()
        return mtlkeras.MultiTaskModel.with_roaming(model, 0.5, seed=2)

    whole, first = new(), new()
    train(whole, "alternating", 4, [MaximumRoaming()])
    train(first, "alternating", 2, [MaximumRoaming()])
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    train(second, epochs=4, callbacks=[MaximumRoaming()], initial_epoch=2)
    nets.assert_same_bits(
        nets.values(whole.weights), nets.values(second.weights)
    )


def test_the_export_runs_every_task_with_its_mask(tmp_path):
    model = mtlkeras.MultiTaskModel.with_roaming(convolutional(), 0.5, seed=0)
    train(model, "alternating", 1)
    x, _ = pictures(3, seed=1)
    model.export(tmp_path / "export", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "export")
    served = loaded.serve(x)
    predicted = model.predict(x, verbose=0)
    for name in TASKS:
        np.testing.assert_allclose(served[name], predicted[name], rtol=1e-5)
        alone = loaded.signatures[name](tf.constant(x))[name]
        np.testing.assert_allclose(alone, predicted[name], rtol=1e-5)
        alone = model.predict(x, tasks=[name], verbose=0)
        np.testing.assert_array_equal(alone[name], predicted[name])
        alone = model.task_model(name).predict(x, verbose=0)
        np.testing.assert_allclose(alone, predicted[name], rtol=1e-5)


def test_periods():
    def updates(roaming, epochs):
        model = convolutional()
        model = mtlkeras.MultiTaskModel.with_roaming(model, 0.5, seed=0)
        train(model, "alternating", epochs, [roaming])  # 2 batches an epoch
        return sorted(roaming.updates.values())

    assert updates(MaximumRoaming(), 3) == [2, 2, 2]
    assert updates(MaximumRoaming(period=3), 3) == [2, 2, 2]
    assert updates(MaximumRoaming(update_ratio=0.0), 3) == [0, 0, 0]
    # 3 and 4 updates, one in 12 // 3 and 12 // 4 batches.
    assert updates(MaximumRoaming(finish_by=12), 3) == [1, 2, 2]
    assert updates(MaximumRoaming(finish_by=12), 6) == [3, 4, 4]


def test_moving_statistics_are_those_of_keras_task_by_task():
    x = np.random.default_rng(0).normal(2.0, 3.0, (32, 4)).astype("float32")
    ours = TaskBatchNormalization(2, momentum=0.7)
    stock = [keras.layers.BatchNormalization(momentum=0.7) for _ in range(2)]
    for task, rows in ((0, x), (1, x * 5), (0, x + 1), (1, x)):
        found = ours(rows, training=True, task=task)
        expected = stock[task](rows, training=True)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for task in range(2):
        np.testing.assert_allclose(
            as_array(ours.moving_variance)[task],
            as_array(stock[task].moving_variance),
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            ours(x, task=task), stock[task](x), rtol=1e-4, atol=1e-5
        )
    batch = TaskBatchNormalization(2, batch_statistics=True)
    np.testing.assert_allclose(
        batch(x, task=0), stock[0](x, training=True), rtol=1e-4, atol=1e-5
    )


def test_masked_entries_do_not_count_in_statistics():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    mask = np.arange(15).reshape(3, 5) % 3 > 0
    stock = keras.layers.BatchNormalization()
    found = TaskBatchNormalization(1)(x, training=True, mask=mask, task=0)
    expected = stock(x, training=True, mask=mask)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


# -- bad input ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoamingMask(0), "num_tasks=0"),
        (lambda: RoamingMask(4, 0.2), "sharing_ratio=0.2"),
        (lambda: RoamingMask(2, 1.1), "sharing_ratio=1.1"),
        (lambda: RoamingMask(2)(np.ones((1, 3))), "task=0"),
        (lambda: RoamingMask(2)(np.ones((1, 3)), task=2), "task=2"),
        (lambda: MaximumRoaming(period=0), "period=0"),
        (lambda: MaximumRoaming(period="day"), "period='day'"),
        (lambda: MaximumRoaming(update_ratio=2), "update_ratio=2"),
        (lambda: MaximumRoaming(finish_by=-1), "finish_by=-1"),
        (lambda: MaximumRoaming(3, finish_by=9), "finish_by=9"),
        (
            lambda: mtlkeras.MultiTaskModel.with_roaming(nets.mlp()),
            "dense=True",
        ),
        (
            lambda: mtlkeras.MultiTaskModel.with_roaming(nets.Subclassed()),
            "functional",
        ),
        (lambda: train(nets_model(), callbacks=[MaximumRoaming()]), "RoamingM"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def nets_model():
    return convolutional(mtlkeras.MultiTaskModel)


@pytest.mark.parametrize(
    "arguments",
    [
        {"strategy": strategies.RandomGroups(2, "step")},
        {"strategy": strategies.Grouped([TASKS[:2], TASKS[2:]], shuffle=True)},
        {"aggregator": mtlkeras.aggregators.MGDA(gradients_at="features")},
        {"balancer": "gradnorm"},
    ],
)
def test_what_needs_features_in_common_is_refused(arguments):
    model = mtlkeras.MultiTaskModel.with_roaming(convolutional(), 0.5)
    with pytest.raises(ValueError, match="trunk runs once per task"):
        model.compile("sgd", nets.losses(), **arguments)
