"""Keras's own callbacks under `joint` and `alternating`.

Under `joint` a run is, callbacks and all, that of a stock `keras.Model`; under
`alternating` files, logs and weights are compared with one another.
"""

import csv

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf
from nets import TASKS

import mtlkeras

both = pytest.mark.parametrize("strategy", ["joint", "alternating"])
EPOCHS = 3


def compiled(strategy, optimizer=None, **kwargs):
    stock = strategy is None
    model = nets.mlp(keras.Model if stock else mtlkeras.MultiTaskModel)
    model.compile(
        optimizer or keras.optimizers.Adam(0.05),
        nets.losses(),
        metrics=dict.fromkeys(TASKS, "mae"),
        run_eagerly=True,
        **({} if stock else {"strategy": strategy}),
        **kwargs,
    )
    return model


def train(model, callbacks, epochs=EPOCHS, y=None, **kwargs):
    x, targets = nets.regression_data(rows=16)
    return model.fit(
        x,
        y or targets,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=nets.regression_data(rows=16, seed=1),
        callbacks=callbacks,
        **kwargs,
    ).history


def compare_with_stock(strategy, model, history, callbacks, optimizer=None):
    """Under `joint` all is as with a stock model and the same callbacks."""
    if strategy != "joint":
        return
    stock = compiled(None, optimizer)
    expected = train(stock, callbacks)
    nets.assert_same_bits(
        nets.values(model.weights), nets.values(stock.weights)
    )
    assert set(history) == set(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(history[key], values, key)


def num_logged_rates(strategy):
    """Keras 3.15 logs the rate of every clone, before it was one for all."""
    if strategy == "joint" or keras.version() < "3.15":
        return 1
    return len(TASKS)


class Copies(keras.callbacks.Callback):
    """Weights after batches, at the ends of epochs and before validation."""

    def on_train_begin(self, logs=None):
        self.batches, self.epochs, self.tests = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(nets.values(self.model.trainable_variables))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(nets.values(self.model.trainable_variables))

    def on_test_begin(self, logs=None):
        self.tests.append(nets.values(self.model.trainable_variables))


def averaged(batches, momentum=0.5):
    """Running means of the weights, after every batch."""
    found = [batches[0]]
    for weights in batches[1:]:
        found.append(
            [
                momentum * a + (1 - momentum) * b
                for a, b in zip(found[-1], weights, strict=True)
            ]
        )
    return found


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("on_epoch", [False, True])
def test_swap_ema_weights(strategy, on_epoch, tmp_path):
    """Validation and checkpoints have the averages, training has not."""

    def optimizer():
        return keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5)

    def callbacks(name):
        return [
            keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch),
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / f"{name}{{epoch}}.weights.h5"),
                save_weights_only=True,
            ),
        ]

    model, copies = compiled(strategy, optimizer()), Copies()
    history = train(model, [*callbacks("a"), copies])
    compare_with_stock(
        strategy, model, history, callbacks("b"), optimizer=optimizer()
    )
    # Training goes on from its own weights.
    plain, untouched = compiled(strategy, optimizer()), Copies()
    train(plain, [untouched])
    averages = averaged(untouched.batches)
    for number in range(2 * EPOCHS):
        assert_close(copies.batches[number], untouched.batches[number])
    for epoch in range(EPOCHS):
        number = 2 * epoch + 1
        assert_close(copies.tests[epoch], averages[number])
        kept = averages if on_epoch else untouched.batches
        assert_close(copies.epochs[epoch], kept[number])
    # As Keras ends a run with `use_ema`.
    assert_close(nets.values(model.trainable_variables), averages[-1])
    model.load_weights(tmp_path / f"a{EPOCHS}.weights.h5")
    assert_close(nets.values(model.trainable_variables), kept[number])
    model.load_weights(tmp_path / "a1.weights.h5")
    assert_close(nets.values(model.trainable_variables), kept[1])


def test_swap_ema_weights_without_averages():
    with pytest.raises(ValueError, match="use_ema=True"):
        train(compiled("alternating"), [keras.callbacks.SwapEMAWeights()])


@both
def test_model_checkpoint(strategy, tmp_path):
    """The best model by a task's metric, whole: it goes on as it was."""
    file = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            file, monitor="val_left_mae", mode="min", save_best_only=True
        )
    ]
    # Too fast to get better all the time.
    model = compiled(strategy, keras.optimizers.Adam(0.3))
    history = train(model, callbacks, epochs=5)
    best = int(np.argmin(history["val_left_mae"]))
    assert best < 4
    loaded = keras.saving.load_model(file)
    assert loaded.update_strategy == model.update_strategy
    again = compiled(strategy, keras.optimizers.Adam(0.3))
    train(again, [], epochs=best + 1)
    nets.assert_same_bits(
        nets.values(loaded.variables + loaded.optimizer.variables),
        nets.values(again.variables + again.optimizer.variables),
    )


@both
def test_early_stopping_on_the_metric_of_a_task(strategy):
    copies = Copies()
    callback = keras.callbacks.EarlyStopping(
        "val_left_mae", mode="min", patience=1, restore_best_weights=True
    )
    model = compiled(strategy, keras.optimizers.Adam(0.3))
    history = train(model, [copies, callback], epochs=20)
    values = history["val_left_mae"]
    assert len(values) < 20
    # It stops at the first value that is no better than the best before.
    assert all(b < a for a, b in zip(values, values[1:-1], strict=False))
    assert values[-1] >= values[-2]
    nets.assert_same_bits(
        nets.values(model.trainable_variables), copies.epochs[-2]
    )


@both
def test_learning_rate_scheduler(strategy):
    """As a rate that is set by hand before every epoch, logs included."""

    def schedule(epoch, rate):
        return 0.1 * 0.5**epoch

    callbacks = [keras.callbacks.LearningRateScheduler(schedule)]
    optimizers = [keras.optimizers.SGD(1.0) for _ in range(3)]
    model = compiled(strategy, optimizers[0])
    history = train(model, callbacks)
    rates = [v for k, v in history.items() if k.startswith("learning_rate")]
    assert len(rates) == num_logged_rates(strategy)
    np.testing.assert_allclose(rates, [[0.1, 0.05, 0.025]] * len(rates))
    other = compiled(strategy, optimizers[1])

    def set_rate(epoch, logs):
        other.optimizer.learning_rate = schedule(epoch, None)

    train(other, [keras.callbacks.LambdaCallback(on_epoch_begin=set_rate)])
    nets.assert_same_bits(
        nets.values(model.weights), nets.values(other.weights)
    )
    compare_with_stock(strategy, model, history, callbacks, optimizers[2])


@both
def test_reduce_on_plateau(strategy):
    """Every clone's rate, by the metric of one task."""

    def callbacks():
        # Before Keras 3.15 it keeps the best value over to a next `fit`.
        return [
            keras.callbacks.ReduceLROnPlateau(
                "val_left_mae",
                factor=0.5,
                patience=1,
                min_delta=1e3,
                mode="min",
            )
        ]

    optimizers = [keras.optimizers.SGD(0.08) for _ in range(2)]
    model = compiled(strategy, optimizers[0])
    history = train(model, callbacks())
    rates = [v for k, v in history.items() if k.startswith("learning_rate")]
    np.testing.assert_allclose(
        rates, [[0.08, 0.08, 0.04]] * len(rates), rtol=1e-6
    )
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)
    compare_with_stock(strategy, model, history, callbacks(), optimizers[1])


@both
def test_csv_logger(strategy, tmp_path):
    file = tmp_path / "log.csv"
    # It opens with the keys of its first epoch, and has all of them.
    model, logger = compiled(strategy), keras.callbacks.CSVLogger(file)
    history = train(model, [mtlkeras.callbacks.TaskMonitor(), logger])
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert set(rows[0]) == {"epoch", *history}
    for key, values in history.items():
        assert [float(row[key]) for row in rows] == pytest.approx(values)


@both
def test_tensorboard(strategy, tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    callback = keras.callbacks.TensorBoard(
        tmp_path, histogram_freq=1, update_freq=1
    )
    model = compiled(strategy)
    history = train(model, [mtlkeras.callbacks.TaskMonitor(), callback])

    def read(part):
        events = reader.EventAccumulator(str(tmp_path / part))
        events.Reload()
        return events

    found = {
        part: (events, events.Tags()["tensors"])
        for part in ("train", "validation")
        for events in [read(part)]
    }
    for key, values in history.items():
        part = "validation" if key.startswith("val_") else "train"
        tag = f"epoch_{key.removeprefix('val_')}"
        events, tags = found[part]
        assert tag in tags
        points = [
            float(tf.make_ndarray(event.tensor_proto))
            for event in events.Tensors(tag)
        ]
        assert points == pytest.approx(values, rel=1e-5)
    _, tags = found["train"]
    assert any(tag.startswith("batch_left_loss") for tag in tags)
    rates = [tag for tag in tags if tag.startswith("epoch_learning_rate")]
    assert len(rates) == num_logged_rates(strategy)
    assert any("trunk_1" in tag and "kernel" in tag for tag in tags)


@both
@pytest.mark.parametrize("rows", [slice(9, 10), slice(None)])
def test_terminate_on_nan_sees_none(strategy, rows):
    """Bad updates are left out, so neither loss nor weights become NaN.

    `compile(on_nonfinite="raise")` is what stops at the first one.
    """
    _, y = nets.regression_data(rows=16)
    bad = ["left"] if rows.start else TASKS
    for name in bad:
        y[name][rows] = np.inf
    callback = keras.callbacks.TerminateOnNaN(raise_error=True)
    model = compiled(strategy)
    with pytest.warns(UserWarning, match="not finite"):
        history = train(model, [callback], y=y, epochs=2)
    assert len(history["loss"]) == 2
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(v).all() for v in nets.values(model.weights))
    with pytest.raises(FloatingPointError, match="'left'"):
        train(compiled(strategy, on_nonfinite="raise"), [callback], y=y)
