"""Trains on one device and on two virtual ones, and prints the differences."""

import json
import traceback
import warnings

import keras
import nets
import numpy as np
import tensorflow as tf
from cases import STRATEGIES

import mtlkeras

IDS = ("joint", "alternating", "grouped", "multi_adaptive")


def data(labels):
    x, y = nets.regression_data(rows=24)
    if labels == "partial":
        y["left"][:8] = np.nan  # no label on either replica
        y["middle"][8:12] = np.nan  # none on the first replica
        y["right"][[16, 17, 22]] = np.nan  # unequal numbers
    return x, y


def train(case, optimizer, labels):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, activation="tanh", name="trunk")(inputs)
    model = mtlkeras.MultiTaskModel(
        inputs,
        {n: keras.layers.Dense(1, name=f"head_{n}")(x) for n in nets.TASKS},
    )
    initial = nets.values(model.weights)
    model.compile(
        getattr(keras.optimizers, optimizer)(
            0.01, **({"epsilon": 1e-3} if optimizer == "Adam" else {})
        ),
        loss=nets.losses(),
        strategy=case.strategy(),
    )
    x, y = data(labels)
    history = model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    return initial, nets.values(model.weights), history.history


def largest_difference(first, second):
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        for a, b in zip(first, second, strict=True)
    )


def compare(case, optimizer, labels, strategy):
    initial, weights, logs = train(case, optimizer, labels)
    with strategy.scope():
        _, mirrored, mirrored_logs = train(case, optimizer, labels)
    assert set(logs) == set(mirrored_logs)
    return {
        "moved": largest_difference(initial, weights),
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
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    for case in STRATEGIES:
        if case.id not in IDS:
            continue
        for optimizer, labels in (("SGD", "full"), ("Adam", "partial")):
            key = f"{case.id}/{optimizer}/{labels}"
            try:
                results[key] = compare(case, optimizer, labels, strategy)
            except Exception:
                results[key] = {"error": traceback.format_exc()[-1500:]}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
