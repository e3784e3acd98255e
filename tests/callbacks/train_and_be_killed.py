"""Trains several models in one process and kills it in the middle of them all.

`python train_and_be_killed.py kill d o.npz` starts a `fit` whose callback, in
the middle of an epoch, starts the next `fit`, and so on; the last one ends the
process by SIGKILL. So each of them is killed, at the price of one process.
`python train_and_be_killed.py resume d o.npz` then runs all of them to the end,
each once from its backup in `d` and once from the start, and writes the end
states.
"""

import os
import signal
import sys

import keras
import numpy as np

import mtlkeras
from mtlkeras import strategies

TASKS = ("left", "middle", "right")
BATCHES, BATCH_SIZE, EPOCHS = 5, 4, 3
KILL_AT = (1, 3)  # epoch and batch; not a batch with a backup
SAVE_FREQ = 2

SETTINGS = {
    "alternating": lambda: {"strategy": "alternating"},
    "random_groups_step": lambda: {
        "strategy": strategies.RandomGroups(2, "step", seed=1)
    },
    "random_groups_epoch": lambda: {
        "strategy": strategies.RandomGroups(2, "epoch", seed=1)
    },
    "sampled": lambda: {"strategy": strategies.Sampled(seed=5)},
    "affinity_groups": lambda: {
        "strategy": strategies.AffinityGroups(0.5, 0, 3, "median", seed=2)
    },
    "balancer": lambda: {"strategy": "alternating", "balancer": "famo"},
    "balancer_and_rule": lambda: {
        "balancer": "uncertainty_weighting",
        "aggregator": "db_mtl",
    },
}


def build(setting, dropout):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    if dropout:
        x = keras.layers.Dropout(0.3)(x)
    model = mtlkeras.MultiTaskModel(
        inputs, {name: keras.layers.Dense(1, name=name)(x) for name in TASKS}
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=dict.fromkeys(TASKS, "mse"),
        metrics={"left": ["mae"]},
        **SETTINGS[setting](),
    )
    return model


def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCHES * BATCH_SIZE, 6)).astype("float32")
    y = {name: x[:, [i]] - x[:, [i + 1]] for i, name in enumerate(TASKS)}
    y["left"][BATCH_SIZE : 2 * BATCH_SIZE] = np.nan
    return x, y


class At(keras.callbacks.Callback):
    """Calls a function after a batch."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == KILL_AT:
            self.action()


def backup(kind, folder):
    if kind == "stock":
        return keras.callbacks.BackupAndRestore(folder)
    return mtlkeras.callbacks.BackupAndResume(folder, save_freq=SAVE_FREQ)


def remembered(model):
    """Variables of the rule and the balancer."""
    parts = [model.aggregator, model.balancer]
    return [v for part in parts if part for v in part.variables]


def train(setting, callbacks, dropout):
    model = build(setting, dropout)
    history = model.fit(
        *data(),
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    state = {
        f"variable_{number}": variable.numpy()
        for number, variable in enumerate(
            model.variables + model.optimizer.variables + remembered(model)
        )
    }
    for key, values in history.history.items():
        state[f"log_{key}"] = np.array(float(values[-1]))
    if model.update_strategy.state is not None:
        state["affinity"] = model.update_strategy.affinity
    state["groups"] = np.array(repr(model.update_strategy.groups))
    return state, len(history.epoch)


# The stock callback does not save the seeds of dropout.
RUNS = [("ours", setting, True) for setting in SETTINGS] + [
    ("stock", setting, False)
    for setting in ("alternating", "affinity_groups", "balancer_and_rule")
]


def folder_of(root, kind, setting):
    return os.path.join(root, f"{kind}_{setting}")


def kill(root, runs):
    if not runs:
        os.kill(os.getpid(), signal.SIGKILL)
    (kind, setting, dropout), *others = runs
    callbacks = [
        At(lambda: kill(root, others)),
        backup(kind, folder_of(root, kind, setting)),
    ]
    train(setting, callbacks, dropout)


def resume(root, out):
    states = {}
    for kind, setting, dropout in RUNS:
        callback = backup(kind, folder_of(root, kind, setting))
        for name, callbacks in (("resumed", [callback]), ("whole", [])):
            state, epochs = train(setting, callbacks, dropout)
            state["epochs"] = np.array(epochs)
            for key, value in state.items():
                states[f"{kind}_{setting}/{name}/{key}"] = value
    np.savez(out, **states)


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(sys.argv[2], RUNS)
    else:
        resume(sys.argv[2], sys.argv[3])
