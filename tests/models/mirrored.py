"""Trains on one device and on two virtual ones, and prints the differences.

`python mirrored.py strategies` (or another of `RUNS`) prints a JSON dict.
"""

import contextlib
import json
import sys
import traceback
import warnings

import keras
import nets
import numpy as np
import tensorflow as tf
from cases import BALANCERS, RULES, STRATEGIES, Case

import mtlkeras
from mtlkeras import aggregators, strategies

OPTIMIZERS = {
    "full": lambda: keras.optimizers.SGD(0.01),
    "partial": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, epsilon=1e-3
    ),
    "averaged": lambda: keras.optimizers.SGD(0.01, use_ema=True),
    # A gradient of 4 overflows, as float16 does with others.
    "overflow": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=2.0**126
    ),
}
# Missing labels are the harder case; these have code of their own without.
ALSO_FULL = ("alternating",)
RATED = Case(strategies.Alternating(task_learning_rates={"left": 0.5}), "rated")
# Of each class one; a second where replicas have code of their own for it.
OF_ITS_OWN = ("gradnorm_equal", "famo_same_batch")


def shared_layers():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, activation="tanh", name="trunk")(inputs)
    return inputs, {
        n: keras.layers.Dense(1, name=f"head_{n}")(x) for n in nets.TASKS
    }


def functional():
    return mtlkeras.MultiTaskModel(*shared_layers())


def roaming():
    model = keras.Model(*shared_layers())
    return mtlkeras.MultiTaskModel.with_roaming(model, 0.5, dense=True, seed=1)


class Subclassed(mtlkeras.MultiTaskModel):
    def __init__(self):
        super().__init__()
        self.trunk = keras.layers.Dense(4, activation="tanh")
        self.heads = {n: keras.layers.Dense(1) for n in nets.TASKS}
        self.trunk.build((None, 6))
        for head in self.heads.values():
            head.build((None, 4))

    def call(self, inputs):
        x = self.trunk(inputs)
        return {n: head(x) for n, head in self.heads.items()}


def data(labels):
    x, y = nets.regression_data(rows=24)
    if labels == "partial":
        y["left"][:8] = np.nan  # no label on either replica
        y["middle"][8:12] = np.nan  # none on the first replica
        y["right"][[16, 17, 22]] = np.nan  # unequal numbers
        y["middle"][21] = np.inf  # on the second replica only
    elif labels == "overflow":
        y["middle"][13] = 30.0  # on the second replica only
    return x, y


def train(
    scope,
    labels="partial",
    build=functional,
    epochs=1,
    callbacks=lambda: [],
    change=None,
    run_eagerly=False,
    evaluate=False,
    **rules,
):
    """Initial weights, weights, logs; `fit` is outside of the scope.

    Args:
        change: Dict of functions that make the arguments of a second `fit`.
        **rules: Functions that make the arguments of `compile`.
    """
    keras.utils.set_random_seed(0)
    with scope():
        model = build()
        model.compile(
            OPTIMIZERS[labels](),
            loss=nets.losses(),
            run_eagerly=run_eagerly,
            **{name: make() for name, make in rules.items()},
        )
    initial = nets.values(model.weights)
    x, y = data(labels)
    for number in range(1 if change is None else 2):
        made = {name: make() for name, make in (change or {}).items()}
        history = model.fit(
            x,
            y,
            batch_size=8,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=callbacks(),
            **(made if number else {}),
        )
    logs = history.history
    if evaluate:
        found = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
        logs.update({f"evaluated_{key}": v for key, v in found.items()})
    state = getattr(model.update_strategy.state, "weights", [])
    return initial, nets.values(model.weights + state), logs


def largest_difference(first, second):
    differences = [0.0]
    for a, b in zip(first, second, strict=True):
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        # A task that never ran has NaN in the logs.
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        differences.append(float(np.max(np.abs(np.nan_to_num(a - b)))))
    return max(differences)


def compare(devices, **arguments):
    # That graphs and eager mode are the same is another test.
    initial, weights, logs = train(
        contextlib.nullcontext, **arguments, run_eagerly=True
    )
    _, mirrored, mirrored_logs = train(devices.scope, **arguments)
    assert set(logs) == set(mirrored_logs)
    return {
        "moved": largest_difference(initial, weights[: len(initial)]),
        "weights": largest_difference(weights, mirrored),
        "logs": largest_difference(
            [logs[key] for key in logs], [mirrored_logs[key] for key in logs]
        ),
    }


def refused(devices):
    """What `TaskMonitor` says of two replicas, and whether any weight moved."""
    said = ""
    with devices.scope():
        model = functional()
        model.compile("sgd", loss=nets.losses())
    before = nets.values(model.weights)
    x, y = data("full")
    try:
        monitor = mtlkeras.callbacks.TaskMonitor()
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    except ValueError as error:
        said = str(error)
    moved = largest_difference(before, nets.values(model.weights))
    model.fit(x, y, batch_size=8, verbose=0)
    trained = largest_difference(before, nets.values(model.weights))
    return {"said": said, "moved": moved, "trained": trained}


def one_per_class(cases):
    kinds = {type(case.given): case for case in reversed(cases)}
    return [c for c in cases if c in kinds.values() or c.id in OF_ITS_OWN]


RUNS = {
    "strategies": {
        f"{case.id}/{labels}": {"strategy": case.strategy, "labels": labels}
        for case in [*STRATEGIES, RATED]
        for labels in ("full", "partial")
        if labels == "partial" or case.id in ALSO_FULL
    },
    "aggregators": {
        **{case.id: {"aggregator": case.aggregator} for case in RULES},
        "low": {"aggregator": lambda: aggregators.Normalized(memory="low")},
        "features": {
            "aggregator": lambda: aggregators.Normalized(
                gradients_at="features"
            )
        },
    },
    "balancers": {
        **{
            case.id: {"balancer": case.balancer}
            for case in one_per_class(BALANCERS)
        },
        # By SGD: steps of Adam would not tell a gradient from twice that.
        "learned, sampled": {
            "balancer": lambda: mtlkeras.balancers.UncertaintyWeighting(
                learning_rate=0.5, optimizer="sgd"
            ),
            "strategy": strategies.Sampled,
        },
    },
    "models": {
        "roaming": {
            "build": roaming,
            "epochs": 2,
            "strategy": strategies.Alternating,
            "callbacks": lambda: [mtlkeras.callbacks.MaximumRoaming(2)],
        },
        "roaming, aggregator": {
            "build": roaming,
            "aggregator": aggregators.ConFIG,
        },
        "subclassed": {"build": Subclassed, "strategy": strategies.Alternating},
        "averaged": {
            "labels": "averaged",
            "strategy": strategies.Alternating,
            "evaluate": True,
        },
        "overflow, joint": {"labels": "overflow"},
        "overflow, alternating": {
            "labels": "overflow",
            "strategy": strategies.Alternating,
        },
        "joint, then others": {
            "change": {
                "strategy": lambda: strategies.Grouped(
                    [["left", "middle"], ["right"]]
                ),
                "aggregator": lambda: "db_mtl",
                "balancer": lambda: "uncertainty_weighting",
            },
        },
        "alternating, then joint": {
            "strategy": strategies.Alternating,
            "change": {"strategy": strategies.Joint},
        },
    },
}
# Gradients are exchanged in a scope of one replica, too.
RUNS["one replica"] = {
    "joint": RUNS["strategies"]["joint/partial"],
    "alternating": RUNS["strategies"]["alternating/partial"],
}


def main():
    warnings.simplefilter("ignore")
    names = ["CPU:0"]
    if sys.argv[1] != "one replica":
        names.append("CPU:1")
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    devices = tf.distribute.MirroredStrategy(names)
    if sys.argv[1] == "refused":
        return print(json.dumps(refused(devices)))
    results = {}
    for key, arguments in RUNS[sys.argv[1]].items():
        try:
            results[key] = compare(devices, **arguments)
        except Exception:
            results[key] = {"error": traceback.format_exc()[-1500:]}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
