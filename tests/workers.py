"""One of two workers that train the same models.

`python workers.py train d` trains some models and stores in `d` what they ended
with; in the middle of the last one the second worker kills itself.
`python workers.py resume d` goes on with that one.
"""

import os
import signal
import sys

import keras
import nets
import numpy as np
import tensorflow as tf

import mtlkeras

BATCH_SIZE, EPOCHS = 8, 2
KILL_AT = (1, 2)  # epoch and batch; not a batch with a backup

RUNS = {
    "joint": {},
    "aggregator": {"aggregator": "db_mtl"},
    "balancer": {"balancer": "uncertainty_weighting"},
    "alternating": {"strategy": "alternating"},
}
KILLED = "alternating"


def data():
    x, y = nets.regression_data(rows=32)
    y["left"][:8] = np.nan  # no label on either worker
    y["middle"][8:12] = np.nan  # none on the first worker
    y["right"][[16, 17, 22]] = np.nan  # unequal numbers
    return x, y


def build(**arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    model = mtlkeras.MultiTaskModel(
        inputs, {n: keras.layers.Dense(1, name=n)(x) for n in nets.TASKS}
    )
    model.compile(
        # Its epsilon keeps rounding from growing where gradients are small.
        keras.optimizers.Adam(0.01, epsilon=1e-2),
        loss=nets.losses(),
        metrics={"left": ["mae"]},
        **arguments,
    )
    return model


def train(scope, arguments, callbacks=None):
    """What a model ends with: arrays by name."""
    x, y = data()
    with scope():
        model = build(**arguments)
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    found = {f"log_{key}": value for key, value in history.history.items()}
    if not arguments:
        logs = model.evaluate(
            x, y, batch_size=BATCH_SIZE, verbose=0, return_dict=True
        )
        found.update({f"evaluated_{key}": v for key, v in logs.items()})
        predictions = model.predict(x, batch_size=BATCH_SIZE, verbose=0)
        found.update({f"predicted_{key}": v for key, v in predictions.items()})
    variables = model.variables + model.optimizer.variables
    found.update({f"variable_{i}": v.numpy() for i, v in enumerate(variables)})
    return {key: np.asarray(value) for key, value in found.items()}


class Killer(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def store(results, path):
    np.savez(
        path,
        **{f"{run}/{k}": v for run in results for k, v in results[run].items()},
    )


def main():
    what, directory = sys.argv[1:]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    path = os.path.join(directory, f"{what}_{worker}.npz")
    callbacks = [
        mtlkeras.callbacks.BackupAndResume(
            os.path.join(directory, "backup"), save_freq=2
        )
    ]
    if what == "train":
        others = {key: run for key, run in RUNS.items() if key != KILLED}
        store(
            {key: train(strategy.scope, run) for key, run in others.items()},
            path,
        )
        if worker == 1:
            callbacks.insert(0, Killer())
    killed = train(strategy.scope, RUNS[KILLED], callbacks)
    store({KILLED: killed}, path)


if __name__ == "__main__":
    main()
