"""Trains on one device and on two virtual ones, and prints the differences."""

import json
import traceback
import warnings

import keras
import nets
import numpy as np
import tensorflow as tf
from cases import STRATEGIES, Case

import mtlkeras
from mtlkeras import strategies

OPTIMIZERS = {
    "full": lambda: keras.optimizers.SGD(0.01),
    "partial": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, epsilon=1e-3
    ),
}
# Missing labels are the harder case; these have code of their own without.
ALSO_FULL = ("alternating",)
# Of those that share a training step with another one.
LEFT_OUT = ("grouped", "random_groups", "random_groups_epoch", "round_robin")
# From inner products, in low memory, at features, and from whole gradients.
AGGREGATORS = {
    "products": lambda: mtlkeras.aggregators.MGDA(),
    "low": lambda: mtlkeras.aggregators.Normalized(memory="low"),
    "features": lambda: mtlkeras.aggregators.Normalized(
        gradients_at="features"
    ),
    "gradients": lambda: mtlkeras.aggregators.DBMTL(),
}
# Learned by gradients, and by lengths of the tasks' gradients.
BALANCERS = {
    # By SGD: steps of Adam would not tell a gradient from twice that.
    "learned": lambda: mtlkeras.balancers.UncertaintyWeighting(
        learning_rate=0.5, optimizer="sgd"
    ),
    "lengths": lambda: mtlkeras.balancers.GradNorm(),
}
RATED = Case(strategies.Alternating(task_learning_rates={"left": 0.5}), "rated")


def data(labels):
    x, y = nets.regression_data(rows=24)
    if labels == "partial":
        y["left"][:8] = np.nan  # no label on either replica
        y["middle"][8:12] = np.nan  # none on the first replica
        y["right"][[16, 17, 22]] = np.nan  # unequal numbers
        y["middle"][21] = np.inf  # on the second replica only
    return x, y


def train(strategy, labels, aggregator=None, balancer=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, activation="tanh", name="trunk")(inputs)
    model = mtlkeras.MultiTaskModel(
        inputs,
        {n: keras.layers.Dense(1, name=f"head_{n}")(x) for n in nets.TASKS},
    )
    initial = nets.values(model.weights)
    model.compile(
        OPTIMIZERS[labels](),
        loss=nets.losses(),
        strategy=strategy(),
        aggregator=aggregator and aggregator(),
        balancer=balancer and balancer(),
    )
    x, y = data(labels)
    history = model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    state = getattr(model.update_strategy.state, "weights", [])
    return initial, nets.values(model.weights + state), history.history


def largest_difference(first, second):
    differences = [0.0]
    for a, b in zip(first, second, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        # A task that never ran has NaN in the logs.
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        differences.append(float(np.max(np.abs(np.nan_to_num(a - b)))))
    return max(differences)


def compare(devices, *arguments):
    initial, weights, logs = train(*arguments)
    with devices.scope():
        _, mirrored, mirrored_logs = train(*arguments)
    assert set(logs) == set(mirrored_logs)
    return {
        "moved": largest_difference(initial, weights[: len(initial)]),
        "weights": largest_difference(weights, mirrored),
        "logs": largest_difference(
            [logs[key] for key in logs], [mirrored_logs[key] for key in logs]
        ),
    }


def main():
    warnings.simplefilter("ignore")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    devices = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    runs = {
        f"{case.id}/{labels}": (case.strategy, labels)
        for case in [*STRATEGIES, RATED]
        if case.id not in LEFT_OUT
        for labels in OPTIMIZERS
        if labels == "partial" or case.id in ALSO_FULL
    }
    for name, aggregator in AGGREGATORS.items():
        runs[name] = (strategies.Joint, "partial", aggregator)
    for name, balancer in BALANCERS.items():
        runs[name] = (strategies.Joint, "partial", None, balancer)
    learned = BALANCERS["learned"]
    runs["learned, sampled"] = (strategies.Sampled, "partial", None, learned)
    results = {}
    for key, arguments in runs.items():
        try:
            results[key] = compare(devices, *arguments)
        except Exception:
            results[key] = {"error": traceback.format_exc()[-1500:]}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
