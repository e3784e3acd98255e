"""`TaskMonitor`: what it measures, and that training is the same without it.

The reference is a plain Keras model with a gradient tape per task, at the
weights that a stock callback copied before the batch.
"""

import csv

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf
from cases import STRATEGIES
from nets import TASKS
from reference import Reference

from mtlkeras import plot
from mtlkeras.callbacks import TaskMonitor

ROWS, BATCH_SIZE = 40, 8
PAIRS = [("left", "middle"), ("left", "right"), ("middle", "right")]


def compiled(strategy="joint", net=None, **kwargs):
    model = nets.mlp(**(net or {}))
    kwargs.setdefault("optimizer", keras.optimizers.Adam(0.01))
    kwargs.setdefault("loss", nets.losses())
    model.compile(strategy=strategy, **kwargs)
    return model


def data(seed=0):
    return nets.regression_data(rows=ROWS, seed=seed)


def train(model, callbacks, epochs=2, y=None, **kwargs):
    x, targets = data()
    kwargs.setdefault("batch_size", BATCH_SIZE)
    return model.fit(
        x,
        y or targets,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **kwargs,
    ).history


class Weights(keras.callbacks.Callback):
    """Copies of the weights before every batch."""

    def on_train_begin(self, logs=None):
        self.copies = []

    def on_train_batch_begin(self, batch, logs=None):
        self.copies.append(nets.values(self.model.weights))


def gradients_of(weights, batch, y=None, loss_weights=None):
    """`[num_tasks, num_params]` by a plain model, float64; NaN where none."""
    x, targets = data()
    y = y or targets
    rows = slice(BATCH_SIZE * batch, BATCH_SIZE * (batch + 1))
    stock = nets.mlp(keras.Model)
    stock.set_weights(weights)
    trunk = [v.value for v in stock.trainable_variables[:4]]
    found = []
    for name in TASKS:
        target = y[name][rows]
        known = ~np.isnan(target[:, 0])
        with tf.GradientTape() as tape:
            error = stock(x[rows], training=True)[name] - target
            loss = tf.reduce_mean(tf.boolean_mask(error, known) ** 2)
            loss *= (loss_weights or {}).get(name, 1.0)
        flat = [np.ravel(g) for g in tape.gradient(loss, trunk)]
        found.append(np.concatenate(flat).astype("float64"))
        if not known.any():
            found[-1][:] = np.nan
    return np.stack(found)


def expected_logs(gradients):
    """The logs of one batch, by NumPy."""
    logs = {}
    norms = dict(zip(TASKS, np.linalg.norm(gradients, axis=1), strict=True))
    rows = dict(zip(TASKS, gradients, strict=True))
    for a, b in PAIRS:
        length = norms[a] * norms[b]
        logs[f"cosine/{a}/{b}"] = rows[a] @ rows[b] / length
        logs[f"magnitude_similarity/{a}/{b}"] = (
            2 * length / (norms[a] ** 2 + norms[b] ** 2)
        )
    logs.update({f"gradient_norm/{n}": norms[n] for n in TASKS})
    return logs


# -- nothing that trains is touched -------------------------------------------


def momentum():
    return keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize(
    ("id", "optimizer", "more"),
    [
        ("joint", momentum, {}),
        ("joint", momentum, {"aggregator": "pcgrad"}),
        ("alternating", lambda: keras.optimizers.AdamW(0.01), {}),
        ("alternating_shuffled", lambda: keras.optimizers.RMSprop(0.01), {}),
        ("grouped", momentum, {"balancer": "uncertainty_weighting"}),
        ("random_groups_step", momentum, {}),
        ("sampled", lambda: keras.optimizers.Adam(0.01), {}),
        ("multi_adaptive", lambda: keras.optimizers.Lion(0.01), {}),
    ],
)
def test_bits_are_those_of_training_without_it(id, optimizer, more):
    """Weights, statistics, seeds, slots, all that the optimizer keeps; logs."""
    (case,) = (case for case in STRATEGIES if case.id == id)
    runs = []
    for callbacks in ([], [TaskMonitor(2)]):
        model = compiled(
            case.strategy(),
            {"batch_norm": True, "dropout": 0.3},
            optimizer=optimizer(),
            **more,
        )
        logs = train(model, callbacks, epochs=1)
        state = model.variables + model.optimizer.variables
        runs.append((nets.values(state), logs))
    (without, expected), (watched, logs) = runs
    nets.assert_same_bits(without, watched)
    for key, values in expected.items():
        assert logs[key] == values, key
    found = logs["cosine/left/right"]
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 1
    shares = [logs.get(f"motion_share/{name}") for name in TASKS]
    if "aggregator" in more:
        assert shares == [None] * len(TASKS)
    else:
        np.testing.assert_allclose(np.sum(shares), 1)


# -- what is measured ---------------------------------------------------------


@pytest.mark.parametrize("strategy", ["joint", "alternating", "round_robin"])
def test_measured_is_what_a_tape_measures(strategy, tmp_path):
    """Every second batch, at the weights before the batch, missing labels."""
    _, y = data()
    y["left"][3:6] = np.nan  # of batch 0
    y["middle"][16:24] = np.nan  # batch 2
    loss_weights = {"left": 1.0, "middle": 2.0, "right": 0.25}
    file, weights = tmp_path / "tasks.csv", Weights()
    model = compiled(
        strategy,
        loss_weights=loss_weights,
        optimizer=keras.optimizers.SGD(0.1, momentum=0.5),
    )
    logs = train(model, [weights, TaskMonitor(2, str(file))], y=y)
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["epoch"]) for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 6, 8, 10]
    measured = []
    for row in rows:
        number = int(row["step"]) - 1
        gradients = gradients_of(
            weights.copies[number], number % 5, y, loss_weights
        )
        expected = expected_logs(gradients)
        measured.append(expected)
        for key, value in expected.items():
            np.testing.assert_allclose(
                float(row[key]), value, rtol=2e-4, atol=1e-5, err_msg=key
            )
    assert np.isnan(measured[1]["cosine/left/middle"])
    for epoch, found in enumerate((measured[:3], measured[3:])):
        for key in expected:
            mean = np.nanmean([row[key] for row in found])
            np.testing.assert_allclose(
                logs[key][epoch], mean, rtol=2e-4, atol=1e-5, err_msg=key
            )


class Moving(Reference):
    """Adds up how far each slot moves the shared variables, per batch."""

    moved = ()

    def train_batch(self, x, y):
        self.moved = (*self.moved, dict.fromkeys(self.tasks, 0.0))
        super().train_batch(x, y)

    def _apply(self, visit, pairs):
        before = nets.values(self.shared())
        super()._apply(visit, pairs)
        (name,) = visit[1]
        self.moved[-1][name] += sum(
            np.sum((a.astype("float64") - b) ** 2)
            for a, b in zip(nets.values(self.shared()), before, strict=True)
        )


@pytest.mark.parametrize(
    ("id", "every"),
    [("alternating", 2), ("multi_adaptive", 3), ("round_robin", 3)],
)
def test_shares_are_those_of_the_updates_of_stock_optimizers(id, every):
    def adam():
        return keras.optimizers.Adam(0.01, epsilon=1e-4)

    (case,) = (case for case in STRATEGIES if case.id == id)
    model = compiled(case.strategy(), optimizer=adam())
    logs = train(model, [TaskMonitor(every)])
    reference = Moving(case, nets.mlp(keras.Model), adam)
    reference.fit(*data(), BATCH_SIZE, 2)
    # A batch of `round_robin` moves one task, so there every batch counts.
    every = 1 if id == "round_robin" else every
    for epoch in range(2):
        batches = reference.moved[5 * epoch : 5 * epoch + 5][::every]
        moved = {n: sum(batch[n] for batch in batches) for n in TASKS}
        for name in TASKS:
            np.testing.assert_allclose(
                logs[f"motion_share/{name}"][epoch],
                moved[name] / sum(moved.values()),
                rtol=5e-3,
            )


def test_shares_within_a_group_follow_weighted_gradients():
    """One batch: the balancer's weights are those that it was trained with."""
    weights = Weights()
    model = compiled(balancer="random_loss_weighting")
    x, y = data()
    logs = model.fit(
        x[:BATCH_SIZE],
        {name: target[:BATCH_SIZE] for name, target in y.items()},
        batch_size=BATCH_SIZE,
        shuffle=False,
        verbose=0,
        callbacks=[weights, TaskMonitor()],
    ).history
    given = np.array([logs[f"task_weight/{name}"][0] for name in TASKS])
    np.testing.assert_allclose(given, model.balancer.last_task_weights)
    assert np.ptp(given) > 0.01
    gradients = gradients_of(weights.copies[0], 0)
    squares = np.sum(gradients**2, 1) * given**2
    for name, share in zip(TASKS, squares / squares.sum(), strict=True):
        np.testing.assert_allclose(
            logs[f"motion_share/{name}"], [share], rtol=1e-4
        )


def test_huge_and_tiny_gradients_keep_their_angle():
    """Losses 1e30 apart, whose squares no float32 holds."""
    weights = Weights()
    scales = {"left": 1e15, "middle": 1e-15, "right": 1.0}
    model = compiled(loss_weights=scales, optimizer=keras.optimizers.SGD(0.0))
    logs = train(model, [weights, TaskMonitor()], epochs=1)
    expected = expected_logs(gradients_of(weights.copies[0], 0))
    for a, b in PAIRS:
        key = f"cosine/{a}/{b}"
        np.testing.assert_allclose(logs[key], expected[key], rtol=1e-4)
    assert logs["magnitude_similarity/left/middle"][0] < 1e-29


@pytest.mark.parametrize("kind", ["subclassed", "opaque_xla", "float16"])
def test_other_kinds_of_models(kind):
    weights, more = Weights(), {"optimizer": "sgd"}
    if kind == "subclassed":
        model = nets.Subclassed()
    elif kind == "opaque_xla":
        model, more["jit_compile"] = nets.Opaque(nets.mlp()), True
    else:
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = nets.mlp()
        finally:
            keras.config.set_dtype_policy("float32")
    model.compile(loss=nets.losses(), strategy="alternating", **more)
    logs = train(model, [weights, TaskMonitor()], epochs=1)
    expected = expected_logs(gradients_of(weights.copies[0], 0))
    tolerance = 2e-2 if kind == "float16" else 1e-4
    for key, value in expected.items():
        np.testing.assert_allclose(
            logs[key], value, rtol=tolerance, atol=tolerance, err_msg=key
        )


# -- where it goes ------------------------------------------------------------


def test_tensorboard_reads_every_measurement(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    file = tmp_path / "tasks.csv"
    train(compiled(), [TaskMonitor(2, file, tmp_path / "events")])
    events = reader.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    tags = events.Tags()["tensors"]
    assert set(tags) == set(rows[0]) - {"epoch", "step"}
    for tag in tags:
        found = events.Tensors(tag)
        assert [e.step for e in found] == [1, 3, 5, 6, 8, 10]
        np.testing.assert_allclose(
            [tf.make_ndarray(e.tensor_proto) for e in found],
            [float(row[tag]) for row in rows],
            rtol=1e-6,
        )


def test_plots_draw_what_is_recorded():
    history = train(compiled(), [TaskMonitor()])
    figure = plot.conflicts(history, pairs=[("right", "left")])
    (line,) = [
        line
        for line in figure.axes[0].lines
        if line.get_label() == "left / right"
    ]
    np.testing.assert_array_equal(
        line.get_ydata(), history["cosine/left/right"]
    )
    assert len(plot.conflicts(history).axes[0].lines) > 3


def test_an_epoch_begins_with_a_measurement_and_no_cost_stays():
    model = compiled("alternating")
    logs = train(model, [TaskMonitor(1000)])
    assert np.isfinite(logs["gradient_norm/left"]).all()
    assert model._multi_task.measurements is None
    assert set(train(model, [])) == {"loss", *(f"{n}_loss" for n in TASKS)}


def test_several_steps_per_execution():
    logs = train(
        compiled(steps_per_execution=2, optimizer="sgd"), [TaskMonitor(1)]
    )
    assert np.isfinite(logs["cosine/left/right"]).all()


def test_bad_use():
    for every in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"every={every}"):
            TaskMonitor(every)
    model = nets.mlp(tasks=["left"])
    model.compile("sgd", {"left": "mse"})
    x, y = data()
    with pytest.raises(ValueError, match="share none"):
        model.fit(x, {"left": y["left"]}, callbacks=[TaskMonitor()], verbose=0)
    stock = nets.mlp(keras.Model)
    stock.compile("sgd", nets.losses())
    with pytest.raises(ValueError, match="MultiTaskModel"):
        train(stock, [TaskMonitor()])
