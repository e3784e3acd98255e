"""Trains several models in one process and kills it in the middle of them all.

`python strategies_and_die.py kill d o.npz` starts a `fit` whose callback, in
the middle of an epoch, starts the next `fit`, and so on; the last one ends the
process by SIGKILL. So each of them is killed, at the price of one process.
`python strategies_and_die.py resume d o.npz` then runs all of them to the end,
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

STRATEGIES = {
    "alternating": lambda: strategies.Alternating(),
    "random_groups_step": lambda: strategies.RandomGroups(2, "step", seed=1),
    "random_groups_epoch": lambda: strategies.RandomGroups(2, "epoch", seed=1),
    "sampled": lambda: strategies.Sampled(seed=5),
    "affinity_groups": lambda: strategies.AffinityGroups(
        0.5, 0, 3, "median", seed=2
    ),
}


def build(strategy, dropout):
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
        strategy=STRATEGIES[strategy](),
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


def train(strategy, callbacks, dropout):
    model = build(strategy, dropout)
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
            model.variables + model.optimizer.variables
        )
    }
    for key, values in history.history.items():
        state[f"log_{key}"] = np.array(float(values[-1]))
    if model.update_strategy.state is not None:
        state["affinity"] = model.update_strategy.affinity
    state["groups"] = np.array(repr(model.update_strategy.groups))
    return state, len(history.epoch)


# The stock callback does not save the seeds of dropout.
RUNS = [
    (kind, strategy, kind == "ours")
    for strategy in STRATEGIES
    for kind in ("ours", "stock")
]


def folder_of(root, kind, strategy):
    return os.path.join(root, f"{kind}_{strategy}")


def kill(root, runs):
    if not runs:
        os.kill(os.getpid(), signal.SIGKILL)
    (kind, strategy, dropout), *others = runs
    callbacks = [
        At(lambda: kill(root, others)),
        backup(kind, folder_of(root, kind, strategy)),
    ]
    train(strategy, callbacks, dropout)


def resume(root, out):
    states = {}
    for kind, strategy, dropout in RUNS:
        callback = backup(kind, folder_of(root, kind, strategy))
        for name, callbacks in (("resumed", [callback]), ("whole", [])):
            state, epochs = train(strategy, callbacks, dropout)
            state["epochs"] = np.array(epochs)
            for key, value in state.items():
                states[f"{kind}/{strategy}/{name}/{key}"] = value
    np.savez(out, **states)


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(sys.argv[2], RUNS)
    else:
        resume(sys.argv[2], sys.argv[3])
