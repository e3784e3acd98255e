"""Unlabelled tasks rest, and means are over labelled entries."""

import warnings

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf
from cases import STRATEGIES, SUB_STEPPED
from reference import stock

import mtlkeras
from mtlkeras import strategies

TASKS = nets.TASKS
every_strategy = pytest.mark.parametrize("case", STRATEGIES, ids=repr)
every_sub_stepped = pytest.mark.parametrize("case", SUB_STEPPED, ids=repr)


def compiled(strategy, optimizer=None, model=None, **options):
    model = model or nets.mlp(batch_norm=True)
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        loss=options.pop("loss", nets.losses()),
        strategy=strategy,
        run_eagerly=True,
        **options,
    )
    return model


def state(model):
    return nets.values(model.variables + model.optimizer.variables)


def batch_of(step, rows=8):
    x, y = nets.regression_data(rows=24)
    part = slice(rows * step, rows * step + rows)
    return x[part], {name: target[part] for name, target in y.items()}


# -- a task without labels in a batch ---------------------------------------


@every_strategy
def test_weights_of_zero_mean_unlabelled(case):
    """A batch with weights 0 for a task: bit for bit a batch of NaN targets."""
    ended = []
    for coded_by in ("weights", "nan"):
        model = compiled(case.strategy())
        for step, unlabelled in enumerate(["left", "middle"]):
            x, y = batch_of(step)
            weights = {name: np.ones(8, "float32") for name in TASKS}
            if coded_by == "weights":
                weights[unlabelled][:] = 0
            else:
                y[unlabelled][:] = np.nan
            model.train_on_batch(x, y, sample_weight=weights)
        ended.append(state(model))
    nets.assert_same_bits(*ended)


@every_sub_stepped
def test_nothing_moves_without_any_label(case):
    model = compiled(case.strategy())
    x, y = batch_of(0)
    model.train_on_batch(x, y)
    before = state(model)
    counters = {id(model.optimizer.iterations)}
    y = {name: np.full_like(target, np.nan) for name, target in y.items()}
    logs = model.train_on_batch(x, y, return_dict=True)
    for variable, old in zip(
        model.variables + model.optimizer.variables, before, strict=True
    ):
        if id(variable) not in counters:
            np.testing.assert_array_equal(variable.numpy(), old)
    assert int(model.optimizer.iterations) == 2
    assert np.isfinite(logs["loss"])


def test_nothing_reaches_the_weights_without_any_label_in_joint():
    """The sum is 0, as for stock Keras with weights of 0."""
    models = [nets.mlp(), nets.mlp(keras.Model)]
    x, y = batch_of(0)
    missing = {name: np.full_like(target, np.nan) for name, target in y.items()}
    zeros = {name: np.zeros(8, "float32") for name in TASKS}
    for model in models:
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            loss=nets.losses(),
            run_eagerly=True,
        )
        model.train_on_batch(x, y)
    models[0].train_on_batch(x, missing)
    models[1].train_on_batch(x, y, sample_weight=zeros)
    for a, b in zip(*(nets.values(m.weights) for m in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_members_of_a_group_rest_one_by_one():
    """The unlabelled member's head, its moments, and nobody else's."""
    strategy = strategies.Grouped([["left", "right"], ["middle"]])
    model = compiled(strategy)
    x, y = batch_of(0)
    model.train_on_batch(x, y)
    own = {id(v) for v in model.get_layer("head_left").weights}
    clone = model.optimizer.optimizers[0]
    names = [v.name for v in model.get_layer("head_left").weights]
    resting = [
        moment
        for v in model.get_layer("head_left").weights
        for moment in clone.variables
        if v.path.replace("/", "_") in moment.path
    ]
    assert len(resting) == 2 * len(names)
    before = nets.values(resting)
    others = [v for v in model.trainable_variables if id(v) not in own]
    before_others = nets.values(others)
    head = nets.values(model.get_layer("head_left").weights)
    x, y = batch_of(1)
    y["left"][:] = np.nan
    model.train_on_batch(x, y)
    nets.assert_same_bits(nets.values(resting), before)
    nets.assert_same_bits(
        nets.values(model.get_layer("head_left").weights), head
    )
    for a, b in zip(nets.values(others), before_others, strict=True):
        assert not np.array_equal(a, b)
    assert int(clone.iterations) == 2


@every_sub_stepped
def test_what_no_labelled_task_reaches_rests(case):
    """A branch that two tasks share, both without labels after a while."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    trunk = keras.layers.Dense(5, name="trunk")(inputs)
    branch = keras.layers.Dense(4, name="branch")(trunk)
    model = mtlkeras.MultiTaskModel(
        inputs,
        {
            "left": keras.layers.Dense(1, name="head_left")(branch),
            "middle": keras.layers.Dense(1, name="head_middle")(branch),
            "right": keras.layers.Dense(1, name="head_right")(trunk),
        },
    )
    compiled(case.strategy(), keras.optimizers.Adam(0.01), model)
    for _ in range(3):
        model.train_on_batch(*batch_of(0))
    names = ("branch", "head_left", "head_middle")
    resting = [v for n in names for v in model.get_layer(n).weights]
    before = nets.values(resting)
    for step in range(3):
        x, y = batch_of(step)
        y["left"][:] = y["middle"][:] = np.nan
        model.train_on_batch(x, y)
    nets.assert_same_bits(nets.values(resting), before)


def test_a_row_with_a_missing_part_is_no_labelled_entry():
    """Every row lacks one of two values, so no row has a loss."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    trunk = keras.layers.Dense(5)(inputs)
    outputs = {
        "pair": keras.layers.Dense(2, name="head_pair")(trunk),
        "one": keras.layers.Dense(1, name="head_one")(trunk),
    }
    model = mtlkeras.MultiTaskModel(inputs, outputs)
    compiled("alternating", None, model, loss=dict.fromkeys(outputs, "mse"))
    x = np.ones((8, 6), "float32")
    y = {"pair": np.ones((8, 2), "float32"), "one": np.ones((8, 1), "float32")}
    model.train_on_batch(x, y)
    head = nets.values(model.get_layer("head_pair").weights)
    y["pair"][:4, 0] = y["pair"][4:, 1] = np.nan
    logs = model.train_on_batch(x, y, return_dict=True)
    nets.assert_same_bits(
        nets.values(model.get_layer("head_pair").weights), head
    )
    assert np.isfinite(logs["one_loss"])


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_rows_with_a_missing_part_do_not_weigh(strategy):
    """Three of four rows of batch 1 lack a value, no row of batch 2 does."""
    inputs = keras.Input((3,))
    outputs = {"pair": keras.layers.Dense(2)(inputs), "one": inputs}
    model = mtlkeras.MultiTaskModel(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=dict.fromkeys(outputs, "mse"),
        strategy=strategy,
        run_eagerly=True,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype("float32")
    y = {"pair": rng.normal(size=(8, 2)).astype("float32"), "one": x}
    y["pair"][:3, 0] = np.nan
    error = model.predict(x, verbose=0)["pair"] - y["pair"]
    expected = np.mean(np.square(error[3:]))
    history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["pair_loss"], expected, rtol=1e-5)
    logs = model.evaluate(x, y, batch_size=4, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["pair_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_batches_of_unequal_size(strategy):
    """Seven rows in batches of four, with labels in part: a mean over rows."""
    x, y = nets.regression_data(("left", "right"), rows=7)
    y["left"][:3] = np.nan
    model = nets.mlp(tasks=tuple(y))
    compiled(
        strategy,
        keras.optimizers.SGD(0.0),
        model,
        loss=nets.losses(y),
        metrics={name: ["mae"] for name in y},
    )
    outputs = model.predict(x, verbose=0)
    history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
    logs = model.evaluate(x, y, batch_size=4, return_dict=True, verbose=0)
    error = (outputs["left"] - y["left"])[3:]
    for found in (history, logs):
        np.testing.assert_allclose(
            found["left_loss"], np.mean(error**2), rtol=1e-5
        )
        np.testing.assert_allclose(
            found["left_mae"], np.mean(np.abs(error)), rtol=1e-5
        )
        np.testing.assert_allclose(
            found["loss"],
            np.add(found["left_loss"], found["right_loss"]),
            rtol=1e-5,
        )


# -- rows, pixels, classes, weights -----------------------------------------


def dense_prediction(cls=mtlkeras.MultiTaskModel):
    """Two pixel-wise tasks, one of them with classes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    trunk = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    return cls(
        inputs,
        {
            "depth": keras.layers.Conv2D(1, 1, name="head_depth")(trunk),
            "parts": keras.layers.Conv2D(3, 1, name="head_parts")(trunk),
        },
    )


def pixels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4, 4, 3)).astype("float32")
    depth = rng.normal(size=(8, 4, 4, 1)).astype("float32")
    parts = rng.integers(0, 3, size=(8, 4, 4))
    depth[rng.random(depth.shape) < 0.4] = np.nan
    parts[rng.random(parts.shape) < 0.6] = -1
    return x, {"depth": depth, "parts": parts}


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


PIXEL_LOSSES = {
    "depth": "mae",
    "parts": mtlkeras.losses.MaskedLoss(cross_entropy(), missing=-1),
}


def pixel_means(model, x, y):
    """Losses and metrics of a stock model on the labelled pixels."""
    outputs = model(x)
    seen = ~np.isnan(y["depth"])
    labelled = y["parts"] >= 0
    error = (outputs["depth"].numpy() - y["depth"])[seen]
    logits = outputs["parts"].numpy()[labelled]
    classes = y["parts"][labelled]
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return {
        "depth_loss": np.mean(np.abs(error)),
        "depth_mean_squared_error": np.mean(error**2),
        "parts_loss": -np.mean(log_p[np.arange(len(classes)), classes]),
        "parts_accuracy": np.mean(logits.argmax(-1) == classes),
    }


PIXEL_METRICS = {
    "depth": [keras.metrics.MeanSquaredError()],
    "parts": ["accuracy"],
}


@pytest.mark.parametrize("strategy", ["joint", "alternating", "multi_adaptive"])
def test_pixels(strategy):
    x, y = pixels()
    model = dense_prediction()
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=PIXEL_LOSSES,
        metrics=PIXEL_METRICS,
        strategy=strategy,
    )
    expected = pixel_means(dense_prediction(keras.Model), x, y)
    expected["loss"] = expected["depth_loss"] + expected["parts_loss"]
    history = model.fit(x, y, verbose=0).history
    evaluated = model.evaluate(x, y, return_dict=True, verbose=0)
    assert set(history) == set(evaluated) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(history[key], value, rtol=1e-5)
        np.testing.assert_allclose(evaluated[key], value, rtol=1e-5)


def test_pixels_move_weights_as_the_labelled_pixels_alone():
    x, y = pixels()
    model, reference = dense_prediction(), dense_prediction(keras.Model)
    compiled("alternating", keras.optimizers.SGD(0.1), model, loss=PIXEL_LOSSES)
    model.train_on_batch(x, y)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(reference.trainable_variables)
    for task in ("depth", "parts"):
        with tf.GradientTape() as tape:
            output = reference(x)[task]
            if task == "depth":
                seen = ~np.isnan(y["depth"])
                loss = tf.reduce_mean(
                    tf.abs(tf.boolean_mask(output, seen) - y["depth"][seen])
                )
            else:
                seen = y["parts"] >= 0
                loss = cross_entropy()(
                    y["parts"][seen], tf.boolean_mask(output, seen)
                )
        variables = [
            *reference.layers[1].trainable_variables,
            *reference.get_layer(f"head_{task}").trainable_variables,
        ]
        optimizer.apply(tape.gradient(loss, variables), variables)
    for a, b in zip(
        nets.values(model.weights), nets.values(reference.weights), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def classifier(cls=mtlkeras.MultiTaskModel):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    trunk = keras.layers.Dense(8, activation="tanh")(inputs)
    return cls(
        inputs,
        {
            "sort": keras.layers.Dense(4, name="head_sort")(trunk),
            "flag": keras.layers.Dense(
                1, activation="sigmoid", name="head_flag"
            )(trunk),
        },
    )


@pytest.mark.parametrize("shape", [(), (1,)], ids=["flat", "column"])
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_integer_classes(shape, dtype):
    """`missing` as a number: stock Keras on the labelled rows."""
    rng = np.random.default_rng(0)
    missing = 255 if dtype == "uint8" else -1
    x = rng.normal(size=(8, 6)).astype("float32")
    y = {
        "sort": rng.integers(0, 4, size=(8, *shape)).astype(dtype),
        "flag": rng.integers(0, 2, size=(8, 1)).astype(dtype),
    }
    y["sort"][2:5] = missing
    y["flag"][5:] = missing
    losses = {
        "sort": cross_entropy(),
        "flag": keras.losses.BinaryCrossentropy(),
    }
    metrics = {
        "sort": [keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")],
        "flag": ["accuracy", keras.metrics.AUC(name="auc")],
    }
    model = classifier()
    compiled(
        "alternating",
        keras.optimizers.SGD(0.0),
        model,
        loss={
            name: mtlkeras.losses.MaskedLoss(loss, missing=missing)
            for name, loss in losses.items()
        },
        metrics=metrics,
    )
    logs = model.train_on_batch(x, y, return_dict=True)
    model.reset_metrics()
    evaluated = model.evaluate(x, y, return_dict=True, verbose=0)
    for task in losses:
        rows = (y[task] != missing).reshape(8, -1).all(-1)
        expected = stock(classifier(keras.Model), [task])
        expected.compile(
            loss={task: losses[task]},
            metrics={task: metrics[task]},
            run_eagerly=True,
        )
        expected = expected.evaluate(
            x[rows], {task: y[task][rows]}, return_dict=True, verbose=0
        )
        expected[f"{task}_loss"] = expected.pop("loss")
        for key, value in expected.items():
            key = key if key.startswith(task) else f"{task}_{key}"
            np.testing.assert_allclose(logs[key], value, rtol=1e-5)
            np.testing.assert_allclose(evaluated[key], value, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_sample_weights_keep_the_meaning_of_keras(strategy):
    """Weighted and divided by the number of rows, here the labelled ones."""
    x, y = nets.regression_data(("left", "right"), rows=8)
    y["left"][:3] = np.nan
    rng = np.random.default_rng(1)
    weights = {name: rng.random(8).astype("float32") for name in y}
    weights["left"][4] = 0.0
    model = nets.mlp(tasks=tuple(y))
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=nets.losses(y),
        metrics={name: ["mae"] for name in y},
        weighted_metrics={
            name: [keras.metrics.MeanAbsoluteError(name="wmae")] for name in y
        },
        strategy=strategy,
        run_eagerly=True,
    )
    logs = model.fit(x, y, sample_weight=weights, verbose=0).history
    evaluated = model.evaluate(
        x, y, sample_weight=weights, return_dict=True, verbose=0
    )
    outputs = nets.mlp(keras.Model, tasks=tuple(y)).predict(x, verbose=0)
    for name in y:
        rows = ~np.isnan(y[name][:, 0])
        error = (outputs[name] - y[name])[rows, 0]
        weight = weights[name][rows]
        expected = {
            f"{name}_loss": np.mean(weight * error**2),
            f"{name}_mae": np.mean(np.abs(error)),
            f"{name}_wmae": np.average(np.abs(error), weights=weight),
        }
        for key, value in expected.items():
            np.testing.assert_allclose(logs[key], value, rtol=1e-5)
            np.testing.assert_allclose(evaluated[key], value, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["joint", "alternating", "sampled"])
def test_subclassed_models(strategy):
    """Labelled rows of a model whose graph is not known."""
    x, y = nets.regression_data(rows=8)
    y["left"][2:] = np.nan
    y["middle"][:] = np.nan
    if strategy == "sampled":
        strategy = strategies.Sampled(
            {"left": 0.0, "middle": 1.0, "right": 0.0}, seed=0
        )
    model = nets.Subclassed()
    compiled(strategy, None, model, metrics={"left": ["mae"]})
    model(x)
    before = nets.values(model.variables)
    logs = model.evaluate(x, y, return_dict=True, verbose=0)
    error = model.predict(x, verbose=0)["left"][:2] - y["left"][:2]
    np.testing.assert_allclose(logs["left_loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(
        logs["left_mae"], np.mean(np.abs(error)), rtol=1e-5
    )
    assert np.isnan(logs["middle_loss"])
    model.train_on_batch(x, y)
    after = nets.values(model.variables)
    if isinstance(strategy, str):
        assert all(np.isfinite(value).all() for value in after)
        assert not np.array_equal(before[0], after[0])
    else:
        nets.assert_same_bits(after, before)


# -- Keras's masks -----------------------------------------------------------


def masked_sequences(cls=mtlkeras.MultiTaskModel):
    """Two tasks on every step of sequences whose empty steps are masked."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3))
    x = keras.layers.Masking()(inputs)
    x = keras.layers.Dense(4, activation="tanh", name="trunk")(x)
    return cls(
        inputs,
        {
            "left": keras.layers.Dense(2, name="left")(x),
            "right": keras.layers.Dense(1, name="right")(x),
        },
    )


def sequences():
    """`(x, y, unmasked)`; of "left" half of the steps are labelled."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    unmasked = rng.random((4, 5)) < 0.6
    x[~unmasked] = 0
    y = {
        "left": rng.normal(size=(4, 5, 2)).astype("float32"),
        "right": rng.normal(size=(4, 5, 1)).astype("float32"),
    }
    y["left"][rng.random((4, 5)) < 0.5] = np.nan
    return x, y, unmasked


def masked_means(outputs, y, unmasked, weights=None):
    losses = {}
    for name, target in y.items():
        seen = unmasked & ~np.isnan(target).any(-1)
        error = tf.boolean_mask(outputs[name], seen) - target[seen]
        square = tf.reduce_mean(tf.square(error), -1)
        if weights is not None:
            square *= weights[seen]
        losses[name] = tf.reduce_mean(square)
    return losses


WITH_MASKS = [
    "joint",
    "alternating",
    "multi_adaptive",
    strategies.Alternating(shuffle=True, seed=0),
    strategies.RandomGroups(2, resample="step", seed=0),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("strategy", WITH_MASKS, ids=repr)
def test_means_over_labelled_and_unmasked_entries(strategy, weighted):
    x, y, unmasked = sequences()
    model = masked_sequences()
    compiled(strategy, keras.optimizers.SGD(0.0), model, loss="mse")
    weights = None
    if weighted:
        weights = np.linspace(0.5, 2.0, 20, dtype="float32").reshape(4, 5)
    given = None if weights is None else dict.fromkeys(y, weights)
    outputs = masked_sequences(keras.Model).predict(x, verbose=0)
    expected = masked_means(outputs, y, unmasked, weights)
    logs = model.train_on_batch(x, y, sample_weight=given, return_dict=True)
    evaluated = model.evaluate(
        x, y, sample_weight=given, return_dict=True, verbose=0
    )
    for name, value in expected.items():
        for found in (logs, evaluated):
            np.testing.assert_allclose(found[f"{name}_loss"], value, rtol=1e-5)
    # The loss by itself says the same.
    output = tf.constant(outputs["left"])
    output._keras_mask = tf.constant(unmasked)
    alone = mtlkeras.losses.MaskedLoss("mse")(y["left"], output, weights)
    np.testing.assert_allclose(alone, expected["left"], rtol=1e-5)


@pytest.mark.parametrize("strategy", ["joint", "multi_adaptive"])
def test_masked_entries_do_not_move_weights(strategy):
    """With plain SGD both are one step down the sum of the means."""
    x, y, unmasked = sequences()
    model, reference = masked_sequences(), masked_sequences(keras.Model)
    compiled(strategy, keras.optimizers.SGD(0.1), model, loss="mse")
    model.train_on_batch(x, y)
    with tf.GradientTape() as tape:
        losses = masked_means(reference(x), y, unmasked)
        total = losses["left"] + losses["right"]
    variables = reference.trainable_variables
    keras.optimizers.SGD(0.1).apply(tape.gradient(total, variables), variables)
    for a, b in zip(
        nets.values(model.weights), nets.values(reference.weights), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_nothing_labelled_is_unmasked():
    x, y, unmasked = sequences()
    y["left"][unmasked] = np.nan
    y["left"][~unmasked] = 1.0
    model = masked_sequences()
    compiled("alternating", keras.optimizers.SGD(0.1), model, loss="mse")
    before = nets.values(model.get_layer("left").weights)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["left_loss"] == 0
    nets.assert_same_bits(nets.values(model.get_layer("left").weights), before)


# -- what is said -----------------------------------------------------------


@pytest.mark.parametrize("strategy", ["joint", "alternating", "round_robin"])
def test_one_warning_per_epoch_names_what_was_never_labelled(strategy):
    x, y = nets.regression_data(rows=8)
    y["left"][:] = y["right"][:] = np.nan
    model = compiled(strategy)
    with pytest.warns(UserWarning, match="no batch held a label") as caught:
        history = model.fit(x, y, batch_size=4, epochs=3, verbose=0).history
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(messages) == 3
    for epoch, message in enumerate(messages, 1):
        assert f"Epoch {epoch}" in message
        assert "'left'" in message
        assert "'right'" in message
        assert "'middle'" not in message
    assert set(history) == {"loss", *(f"{name}_loss" for name in TASKS)}
    assert np.isnan(history["left_loss"]).all()


def test_an_epoch_with_one_label_for_each_task_is_silent():
    """Also where a strategy did not get round to all tasks."""
    x, y = nets.regression_data(rows=8)
    y["left"][1:] = np.nan
    model = compiled("round_robin")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = model.fit(x, y, batch_size=8, verbose=0).history
    assert np.isnan(history["middle_loss"]).all()


@pytest.mark.parametrize("absent", ["none", "no key"])
@pytest.mark.parametrize("method", ["fit", "train_on_batch", "evaluate"])
def test_targets_that_are_none(absent, method):
    x, y = nets.regression_data(rows=8)
    y["left"] = None
    if absent == "no key":
        del y["left"]
    model = compiled("alternating")
    before = state(model)
    with pytest.raises(ValueError, match="NaN targets") as error:
        getattr(model, method)(x, y)
    message = str(error.value)
    assert "'left'" in message
    assert "MaskedLoss" in message
    nets.assert_same_bits(state(model), before)
    x, y = nets.regression_data(rows=8)
    model.fit(x, y, verbose=0)
