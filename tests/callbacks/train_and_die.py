"""Trains a model, and kills its own process where it is told to.

`python train_and_die.py stock --backup_dir d --out o.npz --kill_at 1 2` dies by
SIGKILL after batch 2 of epoch 1. A run that gets through writes its end state
(weights, optimizer variables, random states, logs) to `--out`.

To test another model, add a function to `MODELS`: it returns a built and
compiled model, with the same bits in every process.
"""

import argparse
import os
import signal

import keras
import numpy as np

BATCHES = 5
BATCH_SIZE = 8


def stock(steps_per_execution=1, **compile_arguments):
    """Two inputs to what `save_weights` leaves out: Dropout and metrics."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3)(x)
    left = keras.layers.Dense(1, name="left")(x)
    right = keras.layers.Dense(1, activation="sigmoid", name="right")(x)
    model = keras.Model(inputs, {"left": left, "right": right})
    model.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss={"left": "mse", "right": "binary_crossentropy"},
        metrics={"left": ["mae"], "right": ["accuracy"]},
        steps_per_execution=steps_per_execution,
        **compile_arguments,
    )
    return model


MODELS = {"stock": stock}


def data(batches=BATCHES):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(batches * BATCH_SIZE, 6)).astype("float32")
    return x, {
        "left": x[:, :1] - x[:, 1:2],
        "right": (x[:, 2:3] > 0).astype("float32"),
    }


def end_state(model, history):
    """Everything that must be equal in bits, as `name -> array`."""
    variables = model.variables + model.optimizer.variables
    state = {
        f"variable_{number}": variable.numpy()
        for number, variable in enumerate(variables)
    }
    for key, values in history.history.items():
        state[f"log_{key}"] = np.array(float(values[-1]))
    return state


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(keras.callbacks.Callback):
    """Dies after a batch; placed before the backup, so without one."""

    def __init__(self, epoch, batch, die=die):
        super().__init__()
        self.place = (epoch, batch)
        self.die = die

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            self.die()


def die_in_write(number, die=die):
    """Dies when the files of a backup are there and its index is not."""
    replace = os.replace
    count = 0

    def replace_or_die(source, target):
        nonlocal count
        count += 1
        if count == number:
            die()
        replace(source, target)

    os.replace = replace_or_die


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", required=True)
    parser.add_argument("--backup_dir")
    parser.add_argument("--save_freq", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps_per_execution", type=int, default=1)
    parser.add_argument("--kill_at", type=int, nargs=2, metavar="EPOCH BATCH")
    parser.add_argument("--kill_in_write", type=int, metavar="NUMBER")
    arguments = parser.parse_args()

    # Not at the top: the run to compare with needs nothing of ours.
    from mtlkeras.callbacks import BackupAndResume

    callbacks = []
    if arguments.kill_at:
        callbacks.append(Killer(*arguments.kill_at))
    if arguments.kill_in_write:
        die_in_write(arguments.kill_in_write)
    if arguments.backup_dir:
        callbacks.append(
            BackupAndResume(
                arguments.backup_dir, save_freq=arguments.save_freq or "epoch"
            )
        )
    model = MODELS[arguments.model](arguments.steps_per_execution)
    x, y = data()
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    np.savez(
        arguments.out,
        epochs_run=len(history.epoch),
        **end_state(model, history),
    )


if __name__ == "__main__":
    main()
